"""Hosts on one machine: network namespaces on a switch of their own, with links that can be cut.

Nothing in them reaches the network outside, and nothing outside reaches them. Takes root.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self


def available() -> bool:
    """Whether this system lets us make namespaces, and links between them."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    try:
        with Network() as network:
            network.add_host()
    except RuntimeError:
        return False
    return True


class Network:
    """A switch and its hosts, `10.77.0.1` and up; gone with all that runs there at the end."""

    def __init__(self) -> None:
        self._prefix = f"sr{os.getpid()}"
        self._switch = f"{self._prefix}sw"
        self._hosts: list[str] = []

    def __enter__(self) -> Self:
        _ip("netns", "add", self._switch)
        self._inside(self._switch, "link", "add", "br0", "type", "bridge")
        self._inside(self._switch, "link", "set", "br0", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, namespace in enumerate(self._hosts, 1):
            self.kill_all(number)
            _ip("netns", "del", namespace)
        _ip("netns", "del", self._switch)

    def add_host(self) -> int:
        """A new host; its number."""
        number = len(self._hosts) + 1
        namespace = f"{self._prefix}h{number}"
        _ip("netns", "add", namespace)
        self._hosts.append(namespace)
        cable = ("link", "add", f"port{number}", "type", "veth", "peer", "name", "eth0")
        self._inside(self._switch, *cable, "netns", namespace)
        self._inside(self._switch, "link", "set", f"port{number}", "master", "br0", "up")
        self._inside(namespace, "addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self._inside(namespace, "link", "set", device, "up")
        # Ray takes the address from which the internet would be reached for the host's own.
        self._inside(namespace, "route", "add", "default", "dev", "eth0")
        return number

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host}"

    def on(self, host: int, command: Sequence[str]) -> list[str]:
        """The command, as it runs on a host."""
        return ["ip", "netns", "exec", self._hosts[host - 1], *command]

    def kill_all(self, host: int) -> None:
        """End every process of a host at once, as a power cut does."""
        found = _ip("netns", "pids", self._hosts[host - 1])
        for process in map(int, found.split()):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    def cut(self, host: int) -> None:
        """Pull the host's cable; what is sent to it is lost without a word."""
        self._inside(self._switch, "link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        self._inside(self._switch, "link", "set", f"port{host}", "up")

    def _inside(self, namespace: str, *arguments: str) -> None:
        _ip("-n", namespace, *arguments)


def _ip(*arguments: str) -> str:
    """What the command prints."""
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout

"""Hosts on one machine, on a switch of their own, with links that can be cut.

A host is a network of its own and sees its own processes alone; files are those of the machine.
Nothing in it reaches the network outside, and nothing outside reaches it. Takes root, on Linux.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

_TOOLS = ("ip", "unshare", "nsenter", "setpriv")
_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]


def available() -> bool:
    """Whether this system lets us make hosts, and links between them."""
    if os.geteuid() != 0 or not all(map(shutil.which, _TOOLS)):
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
        self._hosts: dict[int, _Host] = {}

    def __enter__(self) -> Self:
        self._switch = _Host()
        self._switch.ip("link", "add", "br0", "type", "bridge")
        self._switch.ip("link", "set", "br0", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for host in (*self._hosts.values(), self._switch):
            host.kill()

    def add_host(self) -> int:
        """A new host; its number."""
        number = len(self._hosts) + 1
        self.boot(number)
        return number

    def boot(self, number: int) -> None:
        """Start a host, for the first time or after it was killed."""
        host = self._hosts[number] = _Host()
        # The same each time, or the others would send to the former one for a while.
        hardware = ("address", f"02:00:00:00:00:{number:02x}")
        cable = ("type", "veth", "peer", "name", "eth0", *hardware, "netns", str(host.pid))
        self._switch.ip("link", "add", f"port{number}", *cable)
        self._switch.ip("link", "set", f"port{number}", "master", "br0", "up")
        host.ip("addr", "add", f"{self.address(number)}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            host.ip("link", "set", device, "up")
        # Ray takes the address from which the internet would be reached for the host's own.
        host.ip("route", "add", "default", "dev", "eth0")

    @staticmethod
    def address(host: int) -> str:
        return f"10.77.0.{host}"

    def on(self, host: int, command: Sequence[str], folder: Path = Path("/")) -> list[str]:
        """The command, as it runs on a host; whoever ends it ends it there too."""
        return self._hosts[host].enter([*_WITH_PARENT, "env", f"--chdir={folder}", *command])

    def kill(self, host: int) -> None:
        """Every process of a host at once, and its link, as a power cut does."""
        self._switch.ip("link", "del", f"port{host}")
        self._hosts[host].kill()

    def cut(self, host: int) -> None:
        """Pull the host's cable; what is sent to it is lost without a word."""
        self._switch.ip("link", "set", f"port{host}", "down")

    def mend(self, host: int) -> None:
        self._switch.ip("link", "set", f"port{host}", "up")


class _Host:
    """Namespaces of a network and of processes; they last as long as the first process there."""

    def __init__(self) -> None:
        namespaces = ["--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
        # It reads until our end of the pipe is gone, however that comes.
        first = ["sh", "-c", "echo up; read end"]
        self._outside = subprocess.Popen(
            ["unshare", *namespaces, *first],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._outside.stdout is not None
        assert self._outside.stderr is not None
        if not self._outside.stdout.readline():
            raise RuntimeError(self._outside.stderr.read().strip())
        [inside] = psutil.Process(self._outside.pid).children()
        self.pid: int = inside.pid

    def enter(self, command: Sequence[str]) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "--net", "--pid", "--mount", "--", *command]

    def ip(self, *arguments: str) -> None:
        # Of its processes it must not know: the other end of a cable is named by one elsewhere.
        command = ["nsenter", f"--target={self.pid}", "--net", "--", "ip", *arguments]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def kill(self) -> None:
        self._outside.kill()
        self._outside.communicate()

"""Ray nodes as operators start them, for the tests that kill them."""

import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.request import Request, urlopen

import psutil

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 240

StartNode = Callable[..., "Node"]


class Node:
    """A `ray start --block` and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def processes(self) -> list[psutil.Process]:
        return [*psutil.Process(self.process.pid).children(recursive=True)]

    def works_on(self, task: str) -> bool:
        """Whether a worker of this node is at a task or an actor of this name, or a part of it."""
        for process in self.processes():
            try:
                if task in " ".join(process.cmdline()):
                    return True
            except psutil.Error:
                continue
        return False

    def kill(self) -> None:
        """Pull the plug: every process of the node at once."""
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def ask(jobs: str, path: str, environment: Mapping[str, str]) -> str | None:
    """What a cluster's dashboard answers to this user; None while it does not.

    Ray's commands ask the same, and take a second of CPU to be imported: to wait with them for a
    node would keep it from its start.
    """
    token = {"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"}
    with (
        contextlib.suppress(OSError),
        urlopen(Request(f"{jobs}{path}", headers=token), timeout=20) as answer,
    ):
        return str(answer.read().decode())
    return None


def run_ray(
    environment: dict[str, str], *arguments: str, timeout: float = 180
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [RAY, *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=timeout,
    )

"""Ray nodes as operators start them, for the tests that kill them."""

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import builds
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
        """Pull the plug: every process of the node at once, unless it has ended."""
        if self.process.poll() is not None:
            return
        for process in self.processes():
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self.process.kill()
        self.process.wait()


def started(start: Callable[[], Node], is_up: Callable[[Node], bool]) -> Node:
    """A node that is up; another one where Ray gave up after its own 30 s, on a busy machine."""
    nodes = [start()]

    def came_up() -> bool:
        if nodes[-1].process.poll() is not None:
            nodes.append(start())
        return is_up(nodes[-1])

    builds.wait_until(came_up, f"a node; see {nodes[0].log}", seconds=START_S)
    return nodes[-1]


@contextlib.contextmanager
def starting_nodes(environment: Mapping[str, str], logs: Path) -> Iterator[StartNode]:
    """What starts a node with these arguments and more variables; those left are killed."""
    nodes: list[Node] = []
    # Ray's sockets lie below its folder, and their paths may have 107 characters at most.
    temporary = Path("/tmp") / f"srt{secrets.token_hex(3)}"

    def start(*arguments: str, **variables: str) -> Node:
        log = logs / f"{len(nodes)}.log"
        command = [RAY, "start", "--block", "--disable-usage-stats", f"--temp-dir={temporary}"]
        with log.open("wb") as file:
            process = subprocess.Popen(
                [*command, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**environment, **variables},
                start_new_session=True,
            )
        nodes.append(Node(process, log))
        return nodes[-1]

    try:
        yield start
    finally:
        for node in nodes:
            node.kill()
        shutil.rmtree(temporary, ignore_errors=True)


def start_head(start_node: StartNode, environment: Mapping[str, str]) -> dict[str, Any]:
    """A head node with two CPUs; its address for drivers, and for submitted jobs."""
    port, dashboard = free_port(), free_port()
    arguments = [
        "--head",
        "--num-cpus=2",
        "--include-dashboard=true",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    jobs = f"http://127.0.0.1:{dashboard}"
    node = started(
        lambda: start_node(*arguments), lambda _: ask(jobs, "/api/jobs/", environment) is not None
    )
    return {"address": f"127.0.0.1:{port}", "jobs": jobs, "node": node}


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

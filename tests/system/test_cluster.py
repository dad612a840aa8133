"""On a cluster that others run: jobs are submitted with a token, and whole nodes may die."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import builds
import psutil
import pytest

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).with_name("ray")
START_S = 90

StartNode = Callable[..., "Node"]


class Node:
    """A `ray start --block` and all that it started."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    def processes(self) -> list[psutil.Process]:
        return [*psutil.Process(self.process.pid).children(recursive=True)]

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


@pytest.fixture(scope="module")
def token() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="module")
def environment(token: str) -> dict[str, str]:
    """As a user of the cluster has it: the token, and nothing of other clusters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
    }


@pytest.fixture(scope="module")
def start_node(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartNode]:
    nodes: list[Node] = []
    # Ray's sockets lie below its folder, and their paths may have 107 characters at most.
    folder = Path("/tmp") / f"srt{secrets.token_hex(3)}"

    def start(*arguments: str) -> Node:
        log = tmp_path_factory.mktemp("node") / "log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                [
                    RAY,
                    "start",
                    "--block",
                    "--disable-usage-stats",
                    f"--temp-dir={folder}",
                    *arguments,
                ],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        nodes.append(Node(process, log))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.kill()
    subprocess.run(["rm", "-rf", str(folder)], check=True)


@pytest.fixture(scope="module")
def head(start_node: StartNode, environment: dict[str, str]) -> dict[str, Any]:
    """A head node with two CPUs; its address for drivers, and for submitted jobs."""
    port, dashboard = free_port(), free_port()
    node = start_node(
        "--head",
        "--num-cpus=2",
        "--include-dashboard=true",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    )
    jobs = f"http://127.0.0.1:{dashboard}"
    builds.wait_until(
        lambda: run_ray(environment, "job", "list", "--address", jobs).returncode == 0,
        f"a cluster that answers; see {node.log}",
        seconds=START_S,
    )
    return {"address": f"127.0.0.1:{port}", "jobs": jobs, "node": node}


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


def submit(
    head: dict[str, Any], environment: dict[str, str], *arguments: object
) -> subprocess.CompletedProcess[str]:
    """The line from the README."""
    return run_ray(
        environment,
        *("job", "submit", "--address", head["jobs"], "--working-dir", ".", "--"),
        *("python", "jobs/build_dataset.py", *map(str, arguments)),
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builds.write_numbers(tmp_path_factory.mktemp("cluster") / "in", range(1, 17))


def test_a_job_is_submitted(
    head: dict[str, Any], environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    """The working folder is uploaded, what .gitignore names aside, and a dataset is published."""
    done = submit(head, environment, "--input", videos, "--output", tmp_path / "set", "--fps", 2)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout + done.stderr
    assert f"published {tmp_path / 'set' / 'v1'}: 16 clips" in done.stdout
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(tmp_path / "set" / "v1"))
    assert captions == sorted(map(builds.caption_of_number, range(1, 17)))


def test_a_submitted_job_that_fails_says_so(
    head: dict[str, Any], environment: dict[str, str], tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    done = submit(head, environment, "--input", missing, "--output", tmp_path / "set")

    assert done.returncode != 0
    assert f"error: input: '{missing}' does not exist" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout


def test_a_wrong_token_is_refused(
    head: dict[str, Any], environment: dict[str, str], videos: Path, tmp_path: Path
) -> None:
    wrong = {**environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    done = submit(head, wrong, "--input", videos, "--output", tmp_path / "set")

    assert done.returncode != 0
    assert "authentication" in (done.stdout + done.stderr).lower()
    assert not (tmp_path / "set").exists()


def test_a_whole_node_dies(
    head: dict[str, Any],
    start_node: StartNode,
    environment: dict[str, str],
    videos: Path,
    tmp_path: Path,
) -> None:
    """kill -9 of every process of a worker node, while it decodes: the same dataset comes out."""
    address = {"RAY_ADDRESS": head["address"]}
    command = builds.build_command(videos, tmp_path / "undisturbed" / "set", fps=2)
    undisturbed = subprocess.run(command, env={**environment, **address}, capture_output=True)
    assert undisturbed.returncode == 0, undisturbed.stderr

    node = start_node(f"--address={head['address']}", "--num-cpus=2")
    builds.wait_until(
        lambda: b"Ray runtime started" in node.log.read_bytes(), "a second node", seconds=START_S
    )
    version = tmp_path / "set" / "v1"
    driver = subprocess.Popen(
        builds.build_command(videos, tmp_path / "set", fps=2),
        env={**environment, **address},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    builds.wait_until(lambda: decoding(node), "the node to decode", driver=driver)
    node.kill()
    killed_in_time = not (version / "metadata.json").exists()
    _, printed = driver.communicate(timeout=200)

    assert killed_in_time
    assert driver.returncode == 0, printed
    builds.assert_same(version, tmp_path / "undisturbed" / "set" / "v1")


def decoding(node: Node) -> bool:
    """Whether a worker of this node is at work on a block."""
    for process in node.processes():
        try:
            if "MapBatches" in " ".join(process.cmdline()):
                return True
        except psutil.Error:
            continue
    return False

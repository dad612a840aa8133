"""A Ray cluster whose nodes are hosts of a `Network`: started, killed, cut off, started again."""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import ROOT
from benchmarks.netns import Network
from spark_ray.cluster.values import KEEPALIVE

RAY = Path(sys.executable).with_name("ray")
_PORT, _REDIS_PORT = 6379, 6380
_START_S = 240.0
_LOOK_EVERY_S = 0.1
_OBJECT_STORE_BYTES = 400 << 20


class Cluster:
    """A head and a desk, where drivers run, both without CPUs; workers are added to them.

    With Redis, which has a host of its own, the cluster outlives its head.
    """

    def __init__(self, network: Network, folder: Path) -> None:
        self.network = network
        self.folder = folder
        self.head, self.desk = network.add_host(), network.add_host()
        # Ray's sockets lie below its folder, and their paths may have 107 characters at most.
        self._ray_folder = Path(tempfile.mkdtemp(prefix="srn", dir="/tmp"))
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
            "PYTHONPATH": str(ROOT),
            "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Else gloo looks for its own address by the name of the machine, which leads nowhere.
            "GLOO_SOCKET_IFNAME": "eth0",
            # Each node sees the whole machine's memory, and would kill its workers for others.
            "RAY_memory_monitor_refresh_ms": "0",
            **KEEPALIVE,
        }
        self._head_options: list[str] = []
        self._workers: dict[int, subprocess.Popen[bytes]] = {}

    @property
    def address(self) -> str:
        return f"{self.network.address(self.head)}:{_PORT}"

    def start_redis(self) -> None:
        """Before the head, which then finds its state there when it is started again."""
        host, password = self.network.add_host(), secrets.token_hex(16)
        address = self.network.address(host)
        settings = self.folder / "redis.conf"
        settings.write_text(
            f"port {_REDIS_PORT}\nrequirepass {password}\nbind {address}\n"
            f"appendonly yes\ndir {self.folder}\n"
        )
        process, log = self.run(host, ["redis-server", str(settings)], "redis")
        ready = b"Ready to accept connections"
        wait_until(lambda: ready in log.read_bytes(), "Redis", process, log)
        self._environment["RAY_REDIS_ADDRESS"] = f"{address}:{_REDIS_PORT}"
        self._head_options = [f"--redis-password={password}"]

    def start_head(self) -> None:
        self._start(
            self.head, "--head", f"--port={_PORT}", "--num-cpus=0", "--include-dashboard=false",
            *self._head_options,
        )  # fmt: skip

    def start_desk(self) -> None:
        self._start(self.desk, f"--address={self.address}", "--num-cpus=0")

    def have_workers(self, count: int, cpus: int = 1) -> list[int]:
        """Start as many as are missing; those there are."""
        self._workers = {
            host: process for host, process in self._workers.items() if process.poll() is None
        }
        while len(self._workers) < count:
            host = self.network.add_host()
            self._workers[host] = self._start(
                host, f"--address={self.address}", f"--num-cpus={cpus}"
            )
        return list(self._workers)

    def run(
        self, host: int, command: Sequence[str], name: str
    ) -> "tuple[subprocess.Popen[bytes], Path]":
        """Start a program on a host; what it prints is in the file."""
        log = self.folder / f"{name}-{time.monotonic_ns()}.log"
        with log.open("wb") as file:
            process = subprocess.Popen(
                self.network.on(host, command, ROOT),
                env={**self._environment, "RAY_ADDRESS": self.address},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return process, log

    def close(self) -> None:
        shutil.rmtree(self._ray_folder, ignore_errors=True)

    def _start(self, host: int, *arguments: str) -> "subprocess.Popen[bytes]":
        """Ray gives a node thirty seconds to start, which may be too few on a busy machine."""
        command = [
            str(RAY), "start", "--block", "--disable-usage-stats",
            f"--node-ip-address={self.network.address(host)}",
            f"--temp-dir={self._ray_folder}/{host}",
            f"--object-store-memory={_OBJECT_STORE_BYTES}", *arguments,
        ]  # fmt: skip
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            process, log = self.run(host, command, f"node-{host}")
            while process.poll() is None and time.monotonic() < end:
                if b"Ray runtime started" in log.read_bytes():
                    return process
                time.sleep(_LOOK_EVERY_S)
        raise RuntimeError(f"node {host} did not start\n{log.read_text()}")


@contextmanager
def cluster(*, redis: bool = False) -> Iterator[Cluster]:
    """A network, and on it a cluster with a head and a desk alone."""
    with (
        tempfile.TemporaryDirectory(prefix="nodes-", ignore_cleanup_errors=True) as folder,
        Network() as network,
    ):
        nodes = Cluster(network, Path(folder))
        try:
            if redis:
                nodes.start_redis()
            nodes.start_head()
            nodes.start_desk()
            yield nodes
        finally:
            nodes.close()


def wait_until(
    condition: Callable[[], object],
    what: str,
    process: "subprocess.Popen[bytes]",
    log: Path,
    seconds: float = _START_S,
) -> None:
    """Returns once the condition holds.

    Raises:
        RuntimeError: the process ended before, or the time is over; with what was printed last.
    """
    end = time.monotonic() + seconds
    while not condition():
        ended = process.poll()
        if ended is not None or time.monotonic() > end:
            why = "no longer waited for" if ended is None else f"ended with status {ended}"
            said = log.read_text(errors="replace").strip().splitlines()[-8:]
            raise RuntimeError(f"{what}: {why}\n  " + "\n  ".join(said))
        time.sleep(_LOOK_EVERY_S)

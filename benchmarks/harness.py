"""What every benchmark needs: results, facts about the machine, accounts of CPU and memory."""

import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
CACHE = ROOT / ".cache" / "benchmarks"
WORKERS = 2

_PACKAGES = ("av", "ray", "numpy", "opencv-python-headless", "scenedetect", "pyarrow")
_PR_SET_CHILD_SUBREAPER = 36
_SAMPLE_S = 0.05


@dataclass(frozen=True)
class Result:
    """One ratio against its named baseline, from one run. Below 1 is cheaper than the baseline."""

    name: str
    baseline: str
    ratio: float
    goal: float | None
    """The largest ratio that is good enough; None where it is only reported."""
    spread: tuple[float, float]
    """Smallest and largest ratio among the repetitions; the ratio itself where there was one."""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def met(self) -> bool:
        return self.goal is None or self.ratio <= self.goal

    def __str__(self) -> str:
        low, high = self.spread
        verdict = "no goal"
        if self.goal is not None:
            verdict = f"{'meets' if self.met else 'MISSES'} the goal of {self.goal:.2f}"
        return (
            f"{self.name}: {self.ratio:.3f} × {self.baseline} [{low:.3f} … {high:.3f}], {verdict}"
        )

    def as_dict(self) -> dict[str, Any]:
        rounded = {"ratio": round(self.ratio, 4), "spread": [round(s, 4) for s in self.spread]}
        return asdict(self) | rounded | {"machine": machine()}

    def write(self, folder: Path = RESULTS) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
        (folder / f"{self.name}.json").write_text(text + "\n")


def ratio_result(
    name: str,
    baseline: str,
    goal: float | None,
    ours: Sequence[float],
    theirs: Sequence[float],
    **details: Any,
) -> Result:
    """The ratio of medians of interleaved repetitions; spread is that of their pairs."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return Result(name, baseline, ratio, goal, (min(pairs), max(pairs)), details)


def machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that tells whose machine it is."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30, 1),
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
    }


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.machine()


def user_cpu_s() -> float:
    """User CPU of this process, all threads, and of its children that were waited for."""
    mine = resource.getrusage(resource.RUSAGE_SELF)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + children.ru_utime


def user_cpu_of(work: Callable[[], object]) -> float:
    """User CPU seconds that `work` takes."""
    before = user_cpu_s()
    work()
    return user_cpu_s() - before


# A whole tree of processes ------------------------------------------------------------------------


def run_program(name: str, source: Path, *arguments: str) -> Any:
    """Run one of `benchmarks.programs` in a fresh process; returns the JSON that it prints."""
    return _answer(name, source, arguments, subprocess.run)


def program_cost(name: str, source: Path, count: int) -> dict[str, Any]:
    """As `run_program`, with what it took of CPU, everything that it started included.

    A cgroup counts exactly. Where we may not make one, the larger of two lower bounds is taken: the
    rusage of all descendants that were waited for, and /proc looked at every 50 ms. Ray's raylet
    ignores SIGCHLD, so the kernel forgets the times of its workers and rusage alone is too little.
    """
    meter = _ProcMeter() if _own_cgroup() is None else _CgroupMeter()
    started = time.perf_counter()
    try:
        answer = _answer(name, source, (), meter.run)
        wall_s = time.perf_counter() - started
        cpu_s = meter.cpu_s()
    finally:
        meter.close()
    if answer["clips"] != count:
        raise RuntimeError(f"{name}: {answer['clips']} clips came out of {count}")
    cost = {"cpu_s": round(cpu_s, 2), "cpu_s_per_clip": round(cpu_s / count, 5)}
    return dict(answer) | cost | {"wall_s": round(wall_s, 2), "meter": meter.name}


def _answer(
    name: str,
    source: Path,
    arguments: Sequence[str],
    run: Callable[..., "subprocess.CompletedProcess[str]"],
) -> Any:
    command = [sys.executable, "-m", "benchmarks.programs", name, str(source)]
    command += ["--workers", str(WORKERS), *arguments]
    done = run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} exited {done.returncode}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])


def _own_cgroup() -> Path | None:
    """This process's cgroup (v2) if we may make one below it."""
    with suppress(OSError, StopIteration):
        mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
        root = next(Path(mount[1]) for mount in mounts if mount[2] == "cgroup2")
        entries = Path("/proc/self/cgroup").read_text().splitlines()
        own = next(entry[3:] for entry in entries if entry.startswith("0::"))
        folder = root / own.lstrip("/")
        if os.access(folder, os.W_OK) and os.access(folder / "cgroup.procs", os.W_OK):
            return folder
    return None


class _CgroupMeter:
    """Counts CPU in a cgroup of its own; nothing that is started in it can leave."""

    name = "cgroup"

    def __init__(self) -> None:
        parent = _own_cgroup()
        assert parent is not None
        self._folder = parent / f"benchmark-{os.getpid()}-{time.monotonic_ns()}"
        self._folder.mkdir()

    def run(self, command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        def enter() -> None:
            (self._folder / "cgroup.procs").write_text("0")

        return subprocess.run(command, preexec_fn=enter, **options)

    def cpu_s(self) -> float:
        self._wait_until_empty()
        lines = (self._folder / "cpu.stat").read_text().splitlines()
        return int(dict(line.split() for line in lines)["usage_usec"]) / 1e6

    def _wait_until_empty(self) -> None:
        """Daemons may take a moment to go; what stays for ever is a leak, and is ended."""
        deadline = time.monotonic() + 20
        while (self._folder / "cgroup.procs").read_text().strip():
            if time.monotonic() > deadline:
                (self._folder / "cgroup.kill").write_text("1")
            time.sleep(_SAMPLE_S)

    def close(self) -> None:
        with suppress(OSError):
            self._folder.rmdir()


class _ProcMeter:
    """Counts CPU by looking at the tree of processes; orphans come to us as their subreaper."""

    name = "rusage and /proc every 50 ms"

    def __init__(self) -> None:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._tick_s = 1 / os.sysconf("SC_CLK_TCK")
        self._seen: dict[int, float] = {}
        self._stop = threading.Event()
        self._reaped_before_s = _children_cpu_s()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def run(self, command: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
        self._watcher.start()
        return subprocess.run(command, **options)

    def cpu_s(self) -> float:
        self._reap_orphans()
        self.close()
        return max(sum(self._seen.values()), _children_cpu_s() - self._reaped_before_s)

    def _reap_orphans(self) -> None:
        deadline = time.monotonic() + 20
        with suppress(ChildProcessError):
            while time.monotonic() < deadline:
                if os.waitpid(-1, os.WNOHANG) == (0, 0):
                    time.sleep(_SAMPLE_S)

    def _watch(self) -> None:
        while not self._stop.wait(_SAMPLE_S):
            parents: dict[int, int] = {}
            cpu: dict[int, float] = {}
            for folder in Path("/proc").glob("[0-9]*"):
                with suppress(OSError, IndexError):
                    fields = (folder / "stat").read_text().rpartition(")")[2].split()
                    pid = int(folder.name)
                    parents[pid] = int(fields[1])
                    cpu[pid] = (int(fields[11]) + int(fields[12])) * self._tick_s
            self._seen |= {pid: s for pid, s in cpu.items() if _descends(pid, parents)}

    def close(self) -> None:
        self._stop.set()


def _children_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _descends(pid: int, parents: dict[int, int]) -> bool:
    """Whether this process is an ancestor of `pid`."""
    while pid in parents:
        pid = parents[pid]
        if pid == os.getpid():
            return True
    return False


def peak_rss_mib() -> float:
    """The most memory that this process has held so far.

    VmHWM and not ru_maxrss: the kernel hands the latter down from the process that forked us.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("the kernel does not tell VmHWM")

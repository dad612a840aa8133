"""What work on a cluster loses when a node dies or comes, a link is cut, the head is restarted.

Each accident happens to a dataset build and to a served model, and in `nodes_learning` to a
training run and to a sweep. Whatever happens, what comes out must be what comes out undisturbed.
What is measured is how long nothing new gets done: for jobs the longest time without progress from
the accident to the end, for the server the longest that any request has to wait for its answer.
"""

import json
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import netns
from benchmarks.harness import Result
from benchmarks.material import TINY, clip_folder
from benchmarks.node_jobs import Job, Outcome, build_job
from benchmarks.node_server import answers
from benchmarks.ray_nodes import Cluster, cluster, wait_until
from benchmarks.served import untrained_apotheon
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.settings import ServeSettings

_CUT_S = 30.0
_GOAL_S = 120.0
_HANGS_AFTER_S = 240.0
_FIRST_PROGRESS_S = 600.0
_MOST_STARTS = 4
_LOOK_EVERY_S = 0.25
_ASKED_BEFORE = 30

Accident = Callable[[Cluster, list[int]], None]
"""Happens to a cluster with these workers."""


@dataclass(frozen=True)
class Course:
    """How a job went.

    `stalled_s` is the longest time without progress, from the accident on where there was one, and
    `starts` how often its command was given: a job whose driver is lost goes on when it is again.
    """

    stalled_s: float
    whole_s: float
    starts: int


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """One result for each kind of work: its worst accident, with all of them in the details."""
    yield from measured((partial(job_result, build_job), _served_result), quick=quick)


def measured(
    kinds: Sequence[Callable[[Cluster, dict[str, Accident], bool], Result]], *, quick: bool
) -> Iterator[Result]:
    """What accidents do to these kinds of work, each on a cluster of its own."""
    if not netns.available():
        print("nodes: skipped, it needs root and `ip`, for network namespaces", file=sys.stderr)
        return
    accidents: dict[str, Accident] = {
        "node_added": node_added,
        "node_killed": node_killed,
        "link_cut": partial(link_cut, seconds=2.0 if quick else _CUT_S),
        "head_restarted": head_restarted,
    }
    redis = shutil.which("redis-server") is not None
    if not redis:
        print("nodes: no redis-server on the PATH, so the head is not restarted", file=sys.stderr)
        accidents.pop("head_restarted")
    for measure in kinds:
        with cluster(redis=redis) as nodes:
            yield measure(nodes, accidents, quick)


def job_result(
    make: Callable[..., Job], nodes: Cluster, accidents: dict[str, Accident], quick: bool
) -> Result:
    """The same job again and again, each time with another accident, and once with none."""
    courses: dict[str, Course] = {}
    outcomes: dict[str, Outcome] = {}
    for name in (
        "node_added",
        "undisturbed",
        *(name for name in accidents if name != "node_added"),
    ):
        folder = nodes.folder / name
        folder.mkdir()
        job = make(folder, quick=quick)
        workers = nodes.have_workers(1 if name == "node_added" else 2)
        happens = partial(accidents[name], nodes, workers) if name in accidents else None
        courses[name] = follow(nodes, job, happens)
        outcomes[name] = job.outcome()
        print(f"  {job.name}, {name}: {courses[name]}", file=sys.stderr, flush=True)
    undisturbed = outcomes.pop("undisturbed")
    for name, outcome in outcomes.items():
        if not outcome.is_of(undisturbed):
            raise RuntimeError(f"{job.name}, {name}: something else came out than undisturbed")
    stalls = [courses[name].stalled_s / _GOAL_S for name in accidents]
    return Result(
        f"nodes-{job.name}", f"{_GOAL_S:g} s without progress, in the worst accident",
        max(stalls), 1.0, (min(stalls), max(stalls)),
        {"link_was_cut_s": _CUT_S, **{name: asdict(course) for name, course in courses.items()}},
    )  # fmt: skip


def _served_result(nodes: Cluster, accidents: dict[str, Accident], quick: bool) -> Result:
    """One server, to which one accident happens after the other."""
    services: dict[str, Service] = {}
    server = Server(nodes)
    for name, accident in accidents.items():
        happens = partial(accident, nodes, nodes.have_workers(2, cpus=2))
        services[name] = server.live_through(happens, 5.0 if quick else 60.0)
        print(f"  served, {name}: {services[name]}", file=sys.stderr, flush=True)
    waits = [service.longest_wait_s / _GOAL_S for service in services.values()]
    return Result(
        "nodes-served", f"{_GOAL_S:g} s for one answer, in the worst accident",
        max(waits), 1.0, (min(waits), max(waits)),
        {"link_was_cut_s": _CUT_S, **{name: asdict(found) for name, found in services.items()}},
    )  # fmt: skip


# Accidents ----------------------------------------------------------------------------------------


def node_killed(nodes: Cluster, workers: list[int]) -> None:
    nodes.network.kill(workers[1])


def node_added(nodes: Cluster, workers: list[int]) -> None:
    nodes.have_workers(len(workers) + 1)


def link_cut(nodes: Cluster, workers: list[int], seconds: float) -> None:
    nodes.network.cut(workers[1])
    time.sleep(seconds)
    nodes.network.mend(workers[1])


def head_restarted(nodes: Cluster, workers: list[int]) -> None:
    nodes.network.kill(nodes.head)
    nodes.network.boot(nodes.head)
    nodes.start_head()


# Jobs ---------------------------------------------------------------------------------------------


def follow(nodes: Cluster, job: Job, accident: Callable[[], None] | None = None) -> Course:
    """Run a job to its end; the accident happens when a fifth of it is done.

    Its command is given again where its driver ended with an error, or hangs, as an operator would.
    """
    began = time.monotonic()
    process, log = nodes.run(nodes.desk, job.command, job.name)
    starts, seen, changed, stalled_s = 1, 0, began, 0.0
    struck: Future[None] | None = None
    while process.poll() != 0:
        now, done = time.monotonic(), job.progress()
        if done > seen:
            stalled_s = max(stalled_s, now - changed) if seen else 0.0
            seen, changed = done, now
        if accident and struck is None and done >= job.total / 5:
            struck, stalled_s = in_thread(accident), 0.0
            changed = time.monotonic()
        hangs = now - changed > (_HANGS_AFTER_S if seen else _FIRST_PROGRESS_S)
        if process.poll() or hangs:
            if starts == _MOST_STARTS or struck is None:
                said = "\n  ".join(log.read_text(errors="replace").splitlines()[-15:])
                raise RuntimeError(f"{job.name} {'hangs' if hangs else 'ended'}\n  {said}")
            process.kill()
            process.wait()
            struck.result()
            process, log = nodes.run(nodes.desk, job.command, job.name)
            starts += 1
            if hangs:
                changed = time.monotonic()
                stalled_s = max(stalled_s, _HANGS_AFTER_S)
        time.sleep(_LOOK_EVERY_S)
    ended = time.monotonic()
    if accident:
        if struck is None:
            raise RuntimeError(f"{job.name} ended before the accident")
        struck.result()
    return Course(round(max(stalled_s, ended - changed), 1), round(ended - began, 1), starts)


# The server ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Service:
    """How a server did: every request was answered, and as before the accident.

    `usual_wait_s` is the median before the accident, `longest_wait_s` that of any request from then
    on, tries again included; `tries_again` counts those.
    """

    usual_wait_s: float
    longest_wait_s: float
    tries_again: int
    answers: int


class Server:
    """A server on a cluster, and what it says of each file as long as nothing has happened."""

    def __init__(self, nodes: Cluster) -> None:
        self._nodes = nodes
        self._said: dict[str, str] = {}
        nodes.have_workers(2, cpus=2)
        self._settings = _served(nodes)
        process, log = self._run("deploy")
        wait_until(lambda: "deployed" in log.read_text(), "a server", process, log)
        process.wait()

    def _run(self, program: str) -> "tuple[subprocess.Popen[bytes], Path]":
        file = self._nodes.folder / f"{program}.json"
        file.write_text(json.dumps(self._settings))
        command = [sys.executable, "-m", "benchmarks.node_server", program, str(file)]
        return self._nodes.run(self._nodes.desk, command, program)

    def live_through(self, accident: Callable[[], None], after_s: float) -> Service:
        """Clients ask before, during and for so many seconds after the accident."""
        stop = self._nodes.folder / f"stop-{time.monotonic_ns()}"
        workers = self._nodes.have_workers(2, cpus=2)
        addresses = [self._nodes.network.address(host) for host in workers]
        self._settings |= {"stop": str(stop), "nodes": addresses}
        asking, log = self._run("ask")
        wait_until(lambda: len(list(answers(log))) >= _ASKED_BEFORE, "answers", asking, log)
        began = time.monotonic()
        accident()
        with suppress(subprocess.TimeoutExpired):
            asking.wait(after_s)
        stop.touch()
        if asking.wait():
            raise RuntimeError("\n  ".join(log.read_text().splitlines()[-8:]))
        found = list(answers(log))
        for answer in found:
            said = self._said.setdefault(answer["file"], answer["caption"])
            if answer["caption"] != said:
                raise RuntimeError(f"another answer than before: {answer}, not {said!r}")
        before = [answer["waited_s"] for answer in found if answer["answered"] < began]
        after = [answer for answer in found if answer["answered"] >= began]
        return Service(
            round(statistics.median(before), 2),
            round(max(answer["waited_s"] for answer in after), 2),
            sum(answer["tries_again"] for answer in after),
            len(after),
        )


def _served(nodes: Cluster) -> dict[str, Any]:
    """What to serve, so that one node could do it alone, and what to ask."""
    model = untrained_apotheon(nodes.folder / "model")
    server = {
        "state": str(nodes.folder / "state"),
        "models": {"seer": {"reference": str(model), "num_cpus": 0.2, "min_replicas": 2}},
        "gateway_replicas": 2,
        "decoder_replicas": 2,
        "job_settings": {"fps": 2, "smart_sampling": False, "caption_backend": "none"},
    }
    database = Database(ServeSettings.from_values(**server).located().database)
    limits: dict[str, Any] = {"requests_per_minute": 10_000_000, "max_concurrent": 1000}
    _, key = KeyStore(database).create("benchmark", ["infer"], lifetime_s=None, **limits)
    return {
        "server": server,
        "key": key,
        "files": [str(file) for file in sorted(clip_folder("nodes-asked", 4, TINY).iterdir())],
    }


def in_thread(work: Callable[[], None]) -> "Future[None]":
    """What becomes of it."""
    outcome: Future[None] = Future()

    def do() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:  # noqa: BLE001 - raised again where the result is asked for
            outcome.set_exception(error)

    threading.Thread(target=do, daemon=True).start()
    return outcome

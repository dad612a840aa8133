"""What the training job adds to the training itself: Ray, data, metrics, checks, tracking.

The whole job, from a dataset on disk, against a bare loop over the same batches, ready in memory:
the same model and optimizer, ranks of one thread each. Both skip their first steps; neither writes
a checkpoint or validates in between. What is compared is time a step, so 1.05 are 0.95 of the bare
loop's steps a second.

Twice, since a rank trains on a device of its own while data actors and a dozen of Ray's daemons
take CPUs beside it, and a small machine has but two cores for both: with *one* rank, which leaves
them the other core, and with *two*, which share both cores with them and wait for one another
whenever one is held up. For those, the CPU that a rank's process takes for a step stands beside
its time: what the loop itself adds, wherever the others run.

The model is so large that a clip's training outweighs its decoding as it does elsewhere (`details`
tell both), and the clip cache is off, which would spare the decoding altogether.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.harness import ROOT, Result, ratio_result
from benchmarks.training_loops import bare
from benchmarks.training_material import FULL, QUICK, Size, job_config, make_material
from spark_ray.core.background import beside
from spark_ray.training.run import train

GOAL = 1 / 0.95
GOAL_WAIT = 0.05
ENGINES = {"ddp": "a bare PyTorch DDP loop", "zero2": "a bare DeepSpeed ZeRO-2 loop"}
RANKS = {1: "one rank", 2: "two ranks on two cores"}
_SAMPLE_S = 0.5

_DATA_SHARE = "0.002"
"""Of Ray's memory, for batches ahead of the step: about 30 of them.

With the usual half, the data actors would make all batches of so short a run during its first
steps, which don't count, and rest in those that do.
"""

_Runs = list[dict[str, Any]]


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Job and bare loop in turn, each in a fresh process; medians over the repetitions."""
    size = QUICK if quick else FULL
    make_material(size)
    cases = [(engine, ranks) for ranks in RANKS for engine in ENGINES]
    jobs: dict[tuple[str, int], _Runs] = {case: [] for case in cases}
    loops: dict[tuple[str, int], _Runs] = {case: [] for case in cases}
    for _ in range(size.repetitions):
        for case in cases:
            loops[case].append(_program("bare", *case, quick))
            jobs[case].append(_program("job", *case, quick))
    for case in cases:
        yield from _results(*case, size, jobs[case], loops[case])
    waits = {
        f"{engine}-{ranks}": [run["data_wait"] for run in jobs[engine, ranks]]
        for engine, ranks in cases
    }
    every = [wait for found in waits.values() for wait in found]
    yield Result(
        "training-data-wait", "the whole time of a step", statistics.median(every), GOAL_WAIT,
        (min(every), max(every)), {"data_wait": waits},
    )  # fmt: skip


def _results(engine: str, ranks: int, size: Size, jobs: _Runs, loops: _Runs) -> Iterator[Result]:
    name, baseline = f"training-{engine}-{ranks}", ENGINES[engine]
    ours, theirs = ([run["step_s"] for run in runs] for runs in (jobs, loops))
    yield ratio_result(
        name, f"{baseline} over the same batches in memory, {RANKS[ranks]}", GOAL, ours, theirs,
        clips_a_step=size.batch * ranks,
        arithmetic="fp32",
        parameters=loops[0]["parameters"],
        making_a_clip_s=statistics.median(run["clip_s"] for run in loops),
        step_s={"job": ours, "bare": theirs},
        runs=jobs,
    )  # fmt: skip
    if ranks > 1:
        ours, theirs = ([run["rank_cpu_s"] for run in runs] for runs in (jobs, loops))
        yield ratio_result(
            f"{name}-cpu", f"CPU of a rank in {baseline}, {RANKS[ranks]}", GOAL, ours, theirs,
            rank_cpu_s={"job": ours, "bare": theirs},
        )  # fmt: skip


def _program(name: str, engine: str, ranks: int, quick: bool) -> dict[str, Any]:
    """What one of the programs below prints last, run in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.training", name, engine, str(ranks)]
    command += ["--quick"] * quick
    environment = {**os.environ, "RAY_DATA_OBJECT_STORE_MEMORY_LIMIT_FRACTION": _DATA_SHARE}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command[1:])} exited {done.returncode}\n{done.stderr}")
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def job(size: Size, engine: str, ranks: int) -> dict[str, Any]:
    """Steps of the whole job, by what its tracker was told and when."""
    from mlflow import MlflowClient

    with tempfile.TemporaryDirectory(prefix="spark-ray-benchmark-") as folder:
        config = job_config(size, engine, ranks, Path(folder))
        started = time.perf_counter()
        with _cpu_of("RayTrainWorker") as samples:
            train(config)
        wall_s = time.perf_counter() - started
        client = MlflowClient(config.tracking_uri)
        experiment = client.get_experiment_by_name(config.experiment)
        (tracked,) = client.search_runs([experiment.experiment_id])
        told = {
            name: sorted(client.get_metric_history(tracked.info.run_id, name), key=_step_of)
            for name in ("step_s", "data_wait")
        }
    steps, waits = ([m.value for m in told[name]][size.skipped :] for name in told)
    ends_s = [metric.timestamp / 1000 for metric in told["step_s"]][size.skipped - 1 :]
    waited_s = sum(step * wait for step, wait in zip(steps, waits, strict=True))
    return {
        "step_s": (ends_s[-1] - ends_s[0]) / len(steps),
        "rank_cpu_s": _cpu_between(samples, ends_s[0], ends_s[-1]) / ranks / len(steps),
        "inside_step_s": statistics.mean(steps),
        "all_steps_s": [round(metric.value, 3) for metric in told["step_s"]],
        "data_wait": waited_s / sum(steps),
        "steps": len(steps),
        "wall_s": wall_s,
    }


@contextmanager
def _cpu_of(title: str) -> Iterator[list[tuple[float, float]]]:
    """Times, and the CPU seconds of all processes with this title up to then."""
    samples: list[tuple[float, float]] = []

    def watch(over: threading.Event) -> None:
        while not over.wait(_SAMPLE_S):
            taken = 0.0
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    if title in " ".join(process.cmdline()):
                        taken += sum(process.cpu_times()[:2])
            samples.append((time.time(), taken))

    with beside(watch, "cpu"):
        yield samples


def _cpu_between(samples: Sequence[tuple[float, float]], start: float, end: float) -> float:
    times, taken = zip(*samples, strict=True)
    before, after = np.interp([start, end], times, taken)
    return float(after - before)


def _step_of(metric: Any) -> int:
    return int(metric.step)


def main() -> None:
    parser = argparse.ArgumentParser(description="One run of the job, or of a bare loop.")
    parser.add_argument("program", choices=["job", "bare"])
    parser.add_argument("engine", choices=list(ENGINES))
    parser.add_argument("ranks", type=int, choices=list(RANKS))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    size = QUICK if given.quick else FULL
    make_material(size)
    found = {"job": job, "bare": bare}[given.program](size, given.engine, given.ranks)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()

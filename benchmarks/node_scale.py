"""Whether twice the nodes do twice the clips: the dataset job on 1, 2 and 4 one-CPU nodes."""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import netns
from benchmarks.harness import Result
from benchmarks.material import TINY, clip_folder
from benchmarks.nodes import Build, Work, start
from benchmarks.ray_nodes import cluster

_SIZES = (1, 2, 4)


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Clips a second, each clip a wait: what four nodes would do on the rate of one, over theirs.

    Ray's start, the plan and publishing are left out: they cost the same on any number of nodes.
    """
    if not netns.available():
        print(
            "node-scale: needs root and iproute2, for hosts in network namespaces", file=sys.stderr
        )
        return
    count, wait_s = (32, 0.1) if quick else (128, 0.4)
    work = Work(clip_folder("node-scale", count, TINY), count, wait_s)
    rates: dict[int, float] = {}
    with cluster() as (_, nodes, folder):
        workers = [nodes.add_worker()]
        for size in _SIZES:
            while len(workers) < size:
                workers.append(nodes.add_worker())
            build = start(nodes, workers[0], work, folder / f"on-{size}")
            rates[size] = clips_per_s(commits(build, count), size)
            build.finish()
    over_linear = [rates[1] * size / rates[size] for size in _SIZES[1:]]
    yield Result(
        "node-scale", "linear, on 4 nodes (seconds a clip)", over_linear[-1], 1 / 0.95,
        (min(over_linear), max(over_linear)),
        {"clips_per_s": {str(size): round(rate, 3) for size, rate in rates.items()},
         "most_possible_per_node": round(1 / wait_s, 3), "clips": count},
    )  # fmt: skip


def commits(build: Build, count: int) -> list[tuple[float, int]]:
    """When parts were committed, and how many clips there were then."""
    seen: list[tuple[float, int]] = []
    while build.driver.poll() is None:
        clips = build.clips()
        if clips and (not seen or clips > seen[-1][1]):
            seen.append((time.monotonic(), clips))
        if clips >= count:
            return seen
        time.sleep(0.01)
    raise RuntimeError(f"the build ended with status {build.driver.returncode} at {seen[-1:]}")


def clips_per_s(seen: list[tuple[float, int]], nodes: int) -> float:
    """From the moment when every node had committed a part, to the last commit."""
    (began, first), (ended, last) = seen[nodes - 1], seen[-1]
    return (last - first) / (ended - began)

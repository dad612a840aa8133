"""Whether twice the nodes do twice the clips: the dataset job on 1, 2 and 4 one-CPU nodes."""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import netns
from benchmarks.harness import Result
from benchmarks.material import TINY, clip_folder
from benchmarks.nodes import Work, start
from benchmarks.ray_nodes import cluster

_SIZES = (1, 2, 4)


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Clips a second between the first part that is committed and the last, each clip a wait.

    Ray's start, the plan and publishing are left out: they cost the same on any number of nodes.
    """
    if not netns.available():
        print("node-scale: needs root and iproute2, for hosts in network namespaces",
              file=sys.stderr)  # fmt: skip
        return
    source = clip_folder("quick", 4, TINY) if quick else clip_folder("node-scale", 256, TINY)
    work = Work(source, 4 if quick else 256, 0.3 if quick else 0.4)
    rates: dict[int, float] = {}
    with cluster() as (_, nodes, folder):
        first = nodes.add_worker()
        for size in _SIZES:
            for _ in range(size - len(rates) if size < 4 else 2):
                if size > 1:
                    nodes.add_worker()
            build = start(nodes, first, work, folder / f"on-{size}")
            rates[size] = rate(build.version, work.clips) if quick else 0.0
            build.finish()
    few, most = _SIZES[0], _SIZES[-1]
    ideal = most / few * rates[few]
    yield Result("node-scale", "", ideal / rates[most], 1 / 0.95, (0, 0), {})


def rate(version: Path, clips: int) -> float:
    raise NotImplementedError

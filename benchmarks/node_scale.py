"""Whether twice the nodes do twice the clips: the dataset job on 1, 2 and 4 one-CPU nodes."""

import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks import netns
from benchmarks.harness import Result
from benchmarks.material import TINY, clip_folder
from benchmarks.ray_nodes import Cluster, cluster, wait_until
from benchmarks.waiting_build import notes_of

_SIZES = (1, 2, 4)
_BUILD_S = 600.0


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Clips a second, each clip a wait: what four nodes would do on the rate of one, over theirs.

    Counted from the moment when every node has done a clip, to the last one: Ray's start, the plan
    and publishing cost the same on any number of nodes.
    """
    if not netns.available():
        print("node-scale: skipped, it needs root and `ip`, for network namespaces",
              file=sys.stderr)  # fmt: skip
        return
    sizes = _SIZES[:2] if quick else _SIZES
    count, wait_s = (32, 0.05) if quick else (240, 0.5)
    videos = clip_folder("node-scale", count, TINY)
    rates: dict[int, float] = {}
    with cluster() as nodes:
        for size in sizes:
            nodes.have_workers(size)
            rates[size] = _rate(nodes, size, videos, wait_s)
    over_linear = [rates[1] * size / rates[size] for size in sizes[1:]]
    yield Result(
        "node-scale", f"linear, on {sizes[-1]} nodes (seconds a clip)", over_linear[-1], 1 / 0.95,
        (min(over_linear), max(over_linear)),
        {"clips_per_s": {str(size): round(rate, 3) for size, rate in rates.items()},
         "most_possible_per_node": 1 / wait_s, "clips": count},
    )  # fmt: skip


def _rate(nodes: Cluster, size: int, videos: Path, wait_s: float) -> float:
    """Clips a second of a build on all workers there are."""
    output = nodes.folder / f"on-{size}"
    command = [sys.executable, "-m", "benchmarks.waiting_build"]
    process, log = nodes.run(
        nodes.desk, [*command, str(videos), str(output), str(wait_s)], f"build-{size}"
    )
    clips = len(list(videos.iterdir()))
    wait_until(
        lambda: f"published {clips} clips" in log.read_text(),
        f"a build on {size} nodes", process, log, _BUILD_S,
    )  # fmt: skip
    return clips_per_s(notes_of(output), size)


def clips_per_s(notes: list[tuple[float, str]], nodes: int) -> float:
    """From the moment when each of so many nodes has done a clip, to the last clip.

    Args:
        notes: when each clip was done, and on which node, in order of time.
    """
    seen: set[str] = set()
    for number, (began, node) in enumerate(notes, 1):
        seen.add(node)
        if len(seen) == nodes:
            return (len(notes) - number) / (notes[-1][0] - began)
    raise RuntimeError(f"{len(seen)} of {nodes} nodes did anything")

"""Whether memory stays flat over 100,000 rows: the driver's, and Ray's object store.

A build without models decodes and commits in one task, so that all it keeps in the store is the
plan. Beside nothing at all any plan is many times as much: its size is told by the clip.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, ratio_result, run_program
from benchmarks.material import MOTE, clip_folder

_PLACE_BYTES = 64
"""Of a unit in the plan: two numbers of eight bytes, and its share of what a block takes."""


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Peak memory of a build of ten times as many clips, each as small as a clip can be."""
    sizes = (8, 16) if quick else (10_000, 100_000)
    small, large = (
        run_program("watched-build", clip_folder("motes", count, MOTE)) for count in sizes
    )
    yield ratio_result(
        "rows-driver-memory", f"the driver's peak memory at {sizes[0]:,} clips", 1.15,
        [large["driver_peak_mib"]], [small["driver_peak_mib"]], clips=sizes, runs=[small, large],
    )  # fmt: skip
    grown_mib = large["object_store_peak_mib"] - small["object_store_peak_mib"]
    yield ratio_result(
        "rows-object-store-memory",
        f"{_PLACE_BYTES} bytes of plan a clip (how the object store's peak grew from {sizes[0]:,} "
        f"to {sizes[1]:,})", 1.0,
        [grown_mib * 2**20 / (sizes[1] - sizes[0])], [_PLACE_BYTES], clips=sizes,
        runs=[small, large],
    )  # fmt: skip

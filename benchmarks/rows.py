"""Whether memory stays flat over 100,000 rows: the driver's, and Ray's object store."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, ratio_result, run_program
from benchmarks.material import MOTE, clip_folder


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Peak memory of a build of ten times as many clips, each as small as a clip can be."""
    sizes = (8, 16) if quick else (10_000, 100_000)
    small, large = (
        run_program("watched-build", clip_folder("motes", count, MOTE)) for count in sizes
    )
    for name, whose in (("driver", "driver"), ("object-store", "object store")):
        key = f"{name.replace('-', '_')}_peak_mib"
        yield ratio_result(
            f"rows-{name}-memory", f"the {whose}'s peak memory at {sizes[0]:,} clips", 1.15,
            [large[key]], [small[key]], clips=sizes, runs=[small, large],
        )  # fmt: skip

"""Whether a clip costs the same in a large dataset as in a small one, and the driver's memory."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, program_cost, ratio_result
from benchmarks.material import TINY, clip_folder


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """CPU seconds a clip and the driver's peak memory at ten times the size.

    What does not grow with the size (Ray's start, imports) makes clips of the small dataset dearer
    and would hide a cost that grows faster than the clips. So slopes are compared as well: what a
    further clip costs between the two, over the same a tenth as large.
    """
    sizes = (2, 4, 8) if quick else (100, 1_000, 10_000)
    costs = [program_cost("build", clip_folder("tiny", count, TINY), count) for count in sizes]
    few = sizes[1]
    _, small, large = costs
    early, late = (
        (costs[i + 1]["cpu_s"] - costs[i]["cpu_s"]) / (sizes[i + 1] - sizes[i]) for i in (0, 1)
    )
    yield ratio_result(
        "scale", f"CPU a clip at {few:,} clips", 1.05,
        [large["cpu_s_per_clip"]], [small["cpu_s_per_clip"]],
        clips=sizes, costs=costs,
    )  # fmt: skip
    yield ratio_result(
        "scale-further-clip", f"CPU of a further clip between {sizes[0]:,} and {few:,}", 1.05,
        [late], [early], clips=sizes, cpu_s=[round(early, 5), round(late, 5)],
    )  # fmt: skip
    yield ratio_result(
        "scale-driver-memory", f"the driver's peak memory at {few:,} clips", 1.15,
        [large["driver_peak_mib"]], [small["driver_peak_mib"]], clips=sizes,
    )  # fmt: skip

"""Whether a clip costs the same in a large dataset as in a small one, and the driver's memory."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, program_cost, ratio_result
from benchmarks.material import TINY, clip_folder


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """CPU seconds a clip and the driver's peak memory at ten times the size.

    The cost that does not grow with the size makes clips of the small dataset dearer, so the
    marginal costs are in the details as well.
    """
    few, many = (4, 8) if quick else (1_000, 10_000)
    small, large = (
        program_cost("build", clip_folder("tiny", count, TINY), count) for count in (few, many)
    )
    marginal = (large["cpu_s"] - small["cpu_s"]) / (many - few)
    yield ratio_result(
        "scale", f"CPU a clip at {few:,} clips", 1.05,
        [large["cpu_s_per_clip"]], [small["cpu_s_per_clip"]],
        clips=[few, many], small=small, large=large, marginal_cpu_s_per_clip=round(marginal, 5),
        wall_ratio=round(large["wall_s"] / many / (small["wall_s"] / few), 4),
    )  # fmt: skip
    yield ratio_result(
        "scale-driver-memory", f"the driver's peak memory at {few:,} clips", 1.5,
        [large["driver_peak_mib"]], [small["driver_peak_mib"]], clips=[few, many],
    )  # fmt: skip

"""Whether the memory of a decoding process depends on how long the file is."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Result, ratio_result, run_program
from benchmarks.material import long_video


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Peak memory of one fresh process that decodes a two-hour file, over a two-minute one."""
    short_s, long_s = (19.2, 38.4) if quick else (120.0, 7200.0)
    small, large = (run_program("long", long_video(seconds)) for seconds in (short_s, long_s))
    yield ratio_result(
        "memory", f"peak memory on a file of {short_s:g} s", 1.2,
        [large["peak_mib"]], [small["peak_mib"]],
        seconds=[short_s, long_s], short=small, long=large,
    )  # fmt: skip

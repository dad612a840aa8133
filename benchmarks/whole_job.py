"""What a clip costs with everything included: Ray's daemons, every worker, start and end."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import naive
from benchmarks.harness import WORKERS, Result, program_cost, ratio_result
from benchmarks.material import CLIP, TINY, clip_folder


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """CPU seconds a clip of the dataset job, over those of the naive script in a pool."""
    count = 4 if quick else 640
    source = clip_folder("quick", 4, TINY) if quick else clip_folder("clips", count, CLIP)
    job, script = (program_cost(program, source, count) for program in ("build", "naive"))
    yield ratio_result(
        "whole-job", f"{naive.baseline_name()} in a pool of {WORKERS}",
        0.40, [job["cpu_s_per_clip"]], [script["cpu_s_per_clip"]],
        clips=count, clip="720p H.264 + AAC, 25 fps, 5 s", job=job, naive=script,
    )  # fmt: skip

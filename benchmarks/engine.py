"""What Ray adds: wall time of the dataset job over a plain pool that decodes the same clips."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from benchmarks.harness import WORKERS, Result, ratio_result, run_program
from benchmarks.material import CLIP, TINY, clip_folder


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """`build_dataset` on a running Ray, as submitted jobs find it, and on one of its own.

    Each in a new process. The running Ray is one for all repetitions: its first job also starts the
    actors with which Ray Data keeps its books, as on any cluster.
    """
    count, repetitions = (4, 1) if quick else (200, 5)
    source = clip_folder("quick", 4, TINY) if quick else clip_folder("clips", count, CLIP)
    on_ray, with_ray_start, pooled = [], [], []
    with _running_ray() as address:
        for _ in range(repetitions):
            on_ray.append(run_program("build", source, "--address", address)["wall_s"])
            pooled.append(run_program("pool", source)["wall_s"])
            with_ray_start.append(run_program("build", source)["wall_s"])
    yield ratio_result(
        "engine", f"a multiprocessing pool of {WORKERS} that decodes and stores the same",
        1.15, on_ray, pooled,
        clips=count, clip="720p H.264 + AAC, 25 fps, 5 s",
        wall_s={"build": on_ray, "pool": pooled},
    )  # fmt: skip
    yield ratio_result(
        "engine-with-ray-start", f"the same pool of {WORKERS}",
        1.15, with_ray_start, pooled,
        clips=count, wall_s={"build": with_ray_start, "pool": pooled},
    )  # fmt: skip


@contextmanager
def _running_ray() -> Iterator[str]:
    """A local Ray with a CPU for each worker; its address."""
    ray.init(
        "local", num_cpus=WORKERS, log_to_driver=False, logging_level=logging.ERROR,
        include_dashboard=False,
    )  # fmt: skip
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()

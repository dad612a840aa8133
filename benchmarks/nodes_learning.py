"""What a training run and a sweep lose in the accidents that `nodes` makes happen."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from benchmarks.harness import Result
from benchmarks.node_jobs import sweep_job, training_job
from benchmarks.nodes import job_result, measured
from benchmarks.training_material import QUICK, make_material


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """One result for each: its worst accident, with all of them in the details."""
    dataset = make_material(QUICK) / "dataset"
    jobs = (partial(make, dataset=dataset) for make in (training_job, sweep_job))
    yield from measured([partial(job_result, job) for job in jobs], quick=quick)

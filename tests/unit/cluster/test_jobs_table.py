"""The table of `spark-ray jobs list`, on a terminal of the usual width."""

from io import StringIO
from types import SimpleNamespace
from typing import Any

from ray.job_submission import JobStatus
from rich.console import Console

from spark_ray.cluster.commands import _job_table
from spark_ray.cluster.submit import JOB_LABEL


def job(number: int, entrypoint: str, metadata: dict[str, str] | None) -> Any:
    return SimpleNamespace(
        submission_id=f"raysubmit_{number:016d}",
        entrypoint=entrypoint,
        metadata=metadata,
        status=JobStatus.SUCCEEDED,
        start_time=1_795_942_740_000 + number,
        end_time=1_795_942_740_000 + 75_246_000,
    )


def test_every_job_is_a_line_of_eighty_columns_with_its_id_whole() -> None:
    jobs = [
        job(2, "python -m spark_ray.cli train …", {JOB_LABEL: "train apotheon"}),
        job(1, "python -c 'print(\"of [/somebody] else, and of some length\")'", None),
    ]
    console = Console(width=80, record=True, file=StringIO())
    console.print(_job_table(jobs, JOB_LABEL))
    head, *lines = console.export_text().splitlines()
    assert head.split() == ["id", "state", "begun", "minutes", "job"]
    assert [line.split()[0] for line in lines] == [f"raysubmit_{n:016d}" for n in (1, 2)]
    assert all(line.split()[1] == "succeeded" for line in lines)
    assert lines[0].rstrip().endswith("…")
    assert lines[1].split()[4:] == ["1254.1", "train", "apotheon"]


def test_no_jobs_are_a_head_without_lines() -> None:
    assert [column.header for column in _job_table([], JOB_LABEL).columns][:1] == ["id"]

"""What a job's driver printed, of which nobody holds more than the end."""

from collections.abc import Iterator
from typing import cast

import ray
from ray.job_submission import JobSubmissionClient
from ray.util.state import get_log
from ray.util.state.exception import RayStateApiException

LOST_LOG = "the log could not be read any more when this attempt had ended\n"
_TAIL_LINES = 10_000
_TAIL_BYTES = 1 << 20
_NO_LOG = "A file is not found"  # as Ray says where a driver was lost before its first line


def jobs_client() -> JobSubmissionClient:
    return JobSubmissionClient(ray.get_runtime_context().gcs_address)


def read_log(client: JobSubmissionClient, submission: str) -> str:
    """The end of what a submission printed; the whole may be larger than memory.

    Raises:
        RayStateApiException, OSError: it can't be read right now.
    """
    node = client.get_job_info(submission).driver_node_id
    if node is None:
        return ""  # its driver never began
    lines = get_log(
        _cluster(),
        submission_id=submission,
        node_id=node,  # without it Ray refuses, although it could look it up
        tail=_TAIL_LINES,
        encoding=None,
    )
    end = b""
    try:
        for chunk in cast(Iterator[bytes], lines):
            end = (end + chunk)[-_TAIL_BYTES:]  # one line alone may be longer
    except RayStateApiException as error:
        if _NO_LOG not in str(error):
            raise
    return end.decode("utf-8", "replace")


def log_name(attempt: int) -> str:
    """Of the file among a job's own in which what an attempt printed is kept."""
    return f"log-{attempt}.txt"


def _cluster() -> str:
    return ray.get_runtime_context().gcs_address

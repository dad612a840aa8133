"""Which failures of a run are final, and the error of ours among the causes of Ray's.

Ray Train's controller loads this module too, so it must not need the model's.
"""

import errno
from typing import Any

from ray.train import UserCallback

from spark_ray.core.errors import SparkRayError, StorageError


class StoppedEarly(SparkRayError):
    """Whoever watches the run has ended it; its last checkpoint is sound."""


class FailForGood(UserCallback):
    """Ends the run at an error of ours: it would come again, unlike the loss of a worker."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            known = known_error(error)
            if known is not None:
                raise known


def known_error(error: BaseException | None) -> SparkRayError | None:
    """The error of ours among the causes of Ray's; a full disk, where Ray stores, is one too."""
    while error is not None:
        if isinstance(error, SparkRayError):
            return error
        if is_disk_full(error):
            return StorageError(
                f"a disk is full ({error}); free some space where output_dir and TMPDIR are, and "
                "run the same command again to resume from the last checkpoint"
            )
        hidden = getattr(error, "controller_failure", None) or getattr(error, "cause", None)
        error = hidden or error.__cause__
    return None


def is_disk_full(error: BaseException) -> bool:
    return isinstance(error, OSError) and error.errno == errno.ENOSPC

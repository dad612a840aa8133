"""Which failures of a run are final, and the error of ours among the causes of Ray's.

Ray Train's controller loads this module too, so it must not need the model's.
"""

from typing import Any

from ray.train import UserCallback

from spark_ray.core.errors import SparkRayError


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
    """The error of ours among the causes of Ray's."""
    while error is not None:
        if isinstance(error, SparkRayError):
            return error
        hidden = getattr(error, "controller_failure", None) or getattr(error, "cause", None)
        error = hidden or error.__cause__
    return None

"""Where rank 0 tells how training goes: the terminal shows it, MLflow keeps it.

An actor of its own, so that the loop never waits for a terminal or a tracking server.
"""

from collections.abc import Mapping
from typing import Any

from spark_ray.training.tracking import RunStatus, Tracker


class Board:
    """The last metrics of a run, for whoever asks, and the run's tracker."""

    tracker: Tracker

    def __init__(self) -> None:
        self.step = 0
        self.metrics: dict[str, float] = {}
        self.seen: dict[str, float] = {"clips": 0.0, "tokens": 0.0}
        self._logged: dict[str, int] = {}

    def start(
        self, tracking: Mapping[str, Any], settings: Mapping[str, Any], tags: Mapping[str, str]
    ) -> str | None:
        """Open the MLflow run; its id.

        Raises:
            ConfigError: MLflow can't use such an address, or not this experiment.
        """
        self.tracker = Tracker.start(**tracking)
        self.tracker.log_settings(settings, tags)
        return self.tracker.run_id

    def runs_in(self, environment: Mapping[str, str]) -> None:
        """What rank 0 found where it trains: the driver's node may have other GPUs, or none."""
        self.tracker.log_settings({}, environment)

    def stepped(self, step: int, metrics: dict[str, float]) -> None:
        self.step = step
        if self._log("step", step, metrics):
            self.seen["clips"] += metrics["samples_per_s"] * metrics["step_s"]
            self.seen["tokens"] += metrics["tokens_per_s"] * metrics["step_s"]

    def validated(self, step: int, losses: dict[str, float]) -> None:
        self._log("validation", step, losses)
        self.metrics["validated_step"] = step

    def _log(self, kind: str, step: int, metrics: dict[str, float]) -> bool:
        """Keep them, but not twice: after a loss of workers, steps are done again, to the bit."""
        self.metrics |= metrics
        is_new = step > self._logged.get(kind, -1)
        if is_new:
            self._logged[kind] = step
            self.tracker.log_step(step, metrics)
        return is_new

    def flush(self) -> bool:
        """Wait until MLflow has all that was logged, as long as the tracker allows."""
        return self.tracker.flush()

    def last(self) -> tuple[int, dict[str, float], dict[str, float]]:
        """The last step, its metrics, and what all steps have seen since the board was put up."""
        return self.step, self.metrics, self.seen

    def finish(self, status: RunStatus) -> None:
        self.tracker.finish(status)

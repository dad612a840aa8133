"""What Ray Tune tells of its trials, written down as it comes."""

import json
import time
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from spark_ray.core.errors import SparkRayError
from spark_ray.core.storage import Folder
from spark_ray.core.wording import counted
from spark_ray.models.registered import open_client
from spark_ray.training.search.cleaning import free_leaked_placement_groups
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import (
    RUNS,
    TUNE,
    Report,
    TrialRecord,
    TrialState,
    read_trial,
    read_trials,
    trial_file,
    write_trial,
)
from spark_ray.training.search.trial import FAILURES, MODEL_KEY, RUN_KEY, MetricNeverReported
from spark_ray.training.state import RUN
from spark_ray.training.tracking import RunStatus

_TUNES_OWN = frozenset(
    {
        "done",
        "iterations_since_restore",
        "pid",
        "time_since_restore",
        "time_this_iter_s",
        "time_total_s",
        "timestamp",
        "training_iteration",
    }
)
_MOST_CHARS = 400


class Recorder(Callback):
    """Keeps a record of every trial on storage; Ray Tune pickles it with the study."""

    def __init__(self, config: StudyConfig) -> None:
        self.config, self.folder = config, Folder(config.study_dir)
        self._began_s: dict[str, float] = {}
        self._looked = False

    def on_step_begin(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """
        Raises:
            SparkRayError: Ray Tune could not read its own state, and would begin the study anew.
        """
        if not self._looked and not trials:
            ended = [one for one in read_trials(self.folder) if one.state != "running"]
            if ended:
                raise SparkRayError(
                    f"{self.folder / TUNE}: Ray Tune can't read what it kept of "
                    f"{counted(len(ended), 'trial')} that ended; go on with the versions of Ray "
                    "and SparkRay that the study was begun with, or give another study_dir"
                )
        self._looked = True

    def on_trial_start(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        record = self._record(trial)
        if record.state != "stopped":
            record.state, record.reason = "running", None
        write_trial(self.folder, record)
        self.folder.remove(f"{FAILURES}/{trial.trial_id}.json")
        self._began_s[trial.trial_id] = time.monotonic() - record.seconds

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        record = self._record(trial)
        metrics = {
            name: float(value)
            for name, value in result.items()
            if isinstance(value, int | float) and name not in {*_TUNES_OWN, MODEL_KEY}
        }
        # The trial's own configuration may already be the one that it goes on with.
        changed = {k: v for k, v in result["config"].items() if record.params.get(k) != v}
        record.run = f"{RUNS}/{result[RUN_KEY]}"
        report = Report(
            step=int(result["step"]),
            run=record.run,
            params=changed,
            metrics=metrics,
            model=result.get(MODEL_KEY, False),
        )
        if report not in record.reports[-1:]:
            record.reports.append(report)
        record.seconds = self._seconds(record)
        write_trial(self.folder, record)

    def on_trial_complete(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        record = self._record(trial)
        if record.state == "stopped":
            self._end(record, "stopped", record.reason)
            self._close_tracked_run(record, "KILLED")
        else:
            self._end(record, "finished", None)

    def on_trial_error(
        self, iteration: int, trials: list[Trial], trial: Trial, **info: Any
    ) -> None:
        """
        Raises:
            MetricNeverReported: and no other trial has reported it so far.
        """
        record, (kind, reason) = self._record(trial), self._reason(trial)
        self._end(record, "failed", reason)
        self._close_tracked_run(record, "FAILED")
        told = any(one.reports for one in read_trials(self.folder))
        if kind == MetricNeverReported.__name__ and not told:
            raise MetricNeverReported(reason)
        free_leaked_placement_groups()

    def _end(self, record: TrialRecord, state: TrialState, reason: str | None) -> None:
        record.state, record.reason, record.seconds = state, reason, self._seconds(record)
        write_trial(self.folder, record)

    def _record(self, trial: Trial) -> TrialRecord:
        if self.folder.exists(trial_file(trial.trial_id)):
            return read_trial(self.folder, trial.trial_id)
        # Ray Tune counts what it draws by itself; Optuna's trials begin in the order of their draw.
        counted = trial.trial_id.rpartition("_")
        return TrialRecord(
            trial_id=trial.trial_id,
            number=int(counted[2]) if counted[1] else len(read_trials(self.folder)),
            params=dict(trial.config),
            run=f"{RUNS}/{trial.trial_id}",
        )

    def _seconds(self, record: TrialRecord) -> float:
        began_s = self._began_s.get(record.trial_id)
        return record.seconds if began_s is None else round(time.monotonic() - began_s, 1)

    def _reason(self, trial: Trial) -> tuple[str, str]:
        """Kind and sentence: the trial's own, or the end of what Ray says of an actor that died."""
        name = f"{FAILURES}/{trial.trial_id}.json"
        if self.folder.exists(name):
            found = json.loads(self.folder.read(name))
            return found["kind"], found["reason"]
        told = str(trial.get_error() or "its actor died").strip()
        return "", told.splitlines()[-1][-_MOST_CHARS:]

    def _close_tracked_run(self, record: TrialRecord, status: RunStatus) -> None:
        """A trial that was killed, or its driver, could not tell MLflow that it ended."""
        from mlflow.exceptions import MlflowException

        name = f"{record.run}/{RUN}"
        if not self.folder.exists(name):
            return
        run_id = json.loads(self.folder.read(name))["tracking_run"]
        assert self.config.tracking_uri is not None
        try:
            open_client(self.config.tracking_uri).set_terminated(run_id, status)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise

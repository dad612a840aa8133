"""What Ray Tune tells is on storage at once, and once."""

import json
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from ray.tune.experiment import Trial
from studies import study_config

from spark_ray.core.errors import SparkRayError
from spark_ray.core.storage import Folder
from spark_ray.training.search.recorder import Recorder
from spark_ray.training.search.records import TrialRecord, read_trial, read_trials, write_trial
from spark_ray.training.search.trial import (
    MODEL_KEY,
    RUN_KEY,
    MetricNeverReported,
    reason_kept,
)
from spark_ray.training.state import RUN
from spark_ray.training.tracking import Tracker

RATE = {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-1}}


class Told:
    """A recorder, and two trials that Ray Tune tells it of."""

    def __init__(self, folder: Path) -> None:
        self.folder = Folder(str(folder))
        self.recorder = Recorder(study_config(folder, space=RATE))
        self.trials = [
            Trial("run_trial", config={"learning_rate": rate}, trial_id=name, stub=True)
            for name, rate in (("ab_00000", 1e-3), ("ab_00001", 1e-2))
        ]

    def result(self, one: Trial, step: int, loss: float, **more: Any) -> None:
        result = {
            "step": step,
            "validation_loss": loss,
            "config": dict(one.config),
            RUN_KEY: one.trial_id,
            "pid": 7,
            **more,
        }
        self.recorder.on_trial_result(1, self.trials, one, result)

    def record(self, one: Trial) -> TrialRecord:
        return read_trial(self.folder, one.trial_id)


@pytest.fixture
def told(tmp_path: Path) -> Told:
    return Told(tmp_path / "study")


def test_trials_are_numbered_as_they_were_drawn(told: Told):
    first, second = told.trials
    for one in (second, first):
        told.recorder.on_trial_start(0, told.trials, one)
    assert [record.trial_id for record in read_trials(told.folder)] == ["ab_00000", "ab_00001"]
    assert {record.state for record in read_trials(told.folder)} == {"running"}


def test_what_is_reported_again_after_a_kill_is_kept_once(told: Told):
    first, _ = told.trials
    told.recorder.on_trial_start(0, told.trials, first)
    told.result(first, 2, 5.0, done=False, note="text")
    again = Recorder(told.recorder.config)
    again.on_trial_start(0, told.trials, first)
    told.recorder = again
    told.result(first, 2, 5.0)
    told.result(first, 4, 4.0)
    told.result(first, 4, 4.0, **{MODEL_KEY: True})
    record = told.record(first)
    assert record.reports.pop() == record.reports[-1].model_copy(update={"model": True})
    assert [(r.step, r.metrics) for r in record.reports] == [
        (2, {"step": 2.0, "validation_loss": 5.0}),
        (4, {"step": 4.0, "validation_loss": 4.0}),
    ]
    assert record.seconds >= 0


def test_parameters_that_changed_on_the_way_stand_by_the_report(told: Told):
    first, _ = told.trials
    told.recorder.on_trial_start(0, told.trials, first)
    told.result(first, 2, 5.0)
    first.set_config({"learning_rate": 5e-2})
    told.result(first, 4, 4.0, **{RUN_KEY: "ab_00000-12345678"})
    first.set_config({"learning_rate": 1e-1})  # the scheduler's next, before the report is kept
    told.result(first, 6, 3.0, config={"learning_rate": 5e-2})
    record = told.record(first)
    assert record.params == {"learning_rate": 1e-3}
    changed = {"learning_rate": 5e-2}
    assert [report.params for report in record.reports] == [{}, changed, changed]


def test_a_metric_that_is_never_reported_ends_the_study_after_its_first_trial(told: Told):
    first, second = told.trials
    for one in told.trials:
        told.recorder.on_trial_start(0, told.trials, one)
    with pytest.raises(MetricNeverReported), reason_kept(told.folder, first.trial_id):
        raise MetricNeverReported("metric: the trial ended and never reported 'bleu'")
    with pytest.raises(MetricNeverReported, match="never reported 'bleu'"):
        told.recorder.on_trial_error(1, told.trials, first)
    assert told.record(first).state == "failed"
    assert told.record(first).reason == "metric: the trial ended and never reported 'bleu'"
    assert told.record(second).state == "running"


def test_a_trial_that_was_asked_to_end_was_stopped_and_not_finished(told: Told):
    first, second = told.trials
    for one in told.trials:
        told.recorder.on_trial_start(0, told.trials, one)
    asked = told.record(first).model_copy(update={"state": "stopped", "reason": "others"})
    write_trial(told.folder, asked)
    for one in told.trials:
        told.recorder.on_trial_complete(2, told.trials, one)
    assert (told.record(first).state, told.record(first).reason) == ("stopped", "others")
    assert (told.record(second).state, told.record(second).reason) == ("finished", None)
    told.recorder.on_trial_start(3, told.trials, first)
    assert told.record(first).state == "stopped", "a resumed study does not begin it again"


def test_a_study_whose_state_ray_can_not_read_is_not_silently_done_again(told: Told):
    first, _ = told.trials
    told.recorder.on_step_begin(0, [])
    told.recorder.on_trial_start(0, told.trials, first)
    resumed = Recorder(told.recorder.config)
    resumed.on_step_begin(0, [])  # killed in its first second, so nothing is lost
    told.recorder.on_trial_complete(1, told.trials, first)
    told.recorder.on_step_begin(1, [])
    Recorder(told.recorder.config).on_step_begin(0, told.trials)
    with pytest.raises(SparkRayError, match="can't read what it kept of 1 trial that ended"):
        Recorder(told.recorder.config).on_step_begin(0, [])


def test_a_trial_that_died_is_a_failed_run_of_mlflow(
    told: Told, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Killed, it could not tell MLflow so by itself."""
    no_cluster = "spark_ray.training.search.recorder.free_leaked_placement_groups"
    monkeypatch.setattr(no_cluster, lambda: None)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    told.recorder.config = told.recorder.config.model_copy(update={"tracking_uri": uri})
    first, _ = told.trials
    tracker = Tracker.start(uri, "rates", first.trial_id)
    told.folder.write(
        f"runs/{first.trial_id}/{RUN}", json.dumps({"tracking_run": tracker.run_id}).encode()
    )
    told.recorder.on_trial_start(0, told.trials, first)
    told.recorder.on_trial_error(1, told.trials, first)
    assert MlflowClient(uri).get_run(tracker.run_id).info.status == "FAILED"
    assert told.record(first).reason == "its actor died"

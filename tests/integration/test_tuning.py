"""A study for real: trials on Ray Train, killed with its driver, resumed, one of them promoted."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import ray
from films import write_films
from mlflow import MlflowClient

from spark_ray.cli import main
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import Study, TrialRecord, read_trials
from spark_ray.training.search.study import tune_training

STEPS = 8
GOOD, USELESS, DEADLY = 1e-3, 1e-9, 1e30


@pytest.fixture(scope="module")
def study(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> "Resumed":
    """Three trials, one after the other; in the second, the driver is killed and begun again."""
    folder = tmp_path_factory.mktemp("tuning")
    write_films(folder / "films")
    values = settings(folder)
    file = folder / "study.yaml"
    file.write_text(json.dumps(values))
    log = (folder / "log").open("w")
    command = [sys.executable, "-m", "spark_ray.cli", "tune", str(file)]
    driver = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        killed = wait_for_second_trial(driver, folder)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    first = folder / "study" / killed[0].run / "run.json"
    before = first.stat().st_mtime_ns
    done = tune_training(StudyConfig.from_values(**values))
    return Resumed(done, killed, first.stat().st_mtime_ns == before)


class Resumed:
    def __init__(self, study: Study, killed: list[TrialRecord], first_untouched: bool) -> None:
        self.study, self.killed, self.first_untouched = study, killed, first_untouched


def settings(folder: Path) -> dict[str, Any]:
    return {
        "study_dir": str(folder / "study"),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "search": "grid",
        "scheduler": "asha",
        "grace_steps": 4,
        "reduction_factor": 2.0,
        "max_concurrent": 1,
        "metric": "loss",
        "space": {"learning_rate": {"type": "choice", "values": [GOOD, USELESS, DEADLY]}},
        "train": {
            "dataset": str(folder / "films"),
            "epochs": 2,
            "max_steps": STEPS,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "mixed_precision": "fp32",
            "engine": "zero2",
            "max_frames": 4,
            "checkpoint_every_steps": 2,
            "max_skipped_steps": 1,
            "curriculum": [
                {"name": "films", "epochs": 2, "modalities": ["text", "audio", "video"]}
            ],
        },
    }


def wait_for_second_trial(driver: "subprocess.Popen[bytes]", folder: Path) -> list[TrialRecord]:
    """Until the second one has told of a checkpoint; the records as they are then."""
    from spark_ray.core.storage import Folder

    deadline = time.monotonic() + 240
    while True:
        trials = read_trials(Folder(str(folder / "study")))
        if len(trials) > 1 and trials[1].reports:
            return trials
        assert driver.poll() is None, (folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, "the second trial came to nothing in time"
        time.sleep(0.1)


def test_after_a_kill_the_study_goes_on_where_it_was(study: Resumed):
    good, useless, _ = study.study.trials
    assert [trial.trial_id for trial in study.killed] == [good.trial_id, useless.trial_id]
    assert study.killed[0].state == "finished"
    assert study.first_untouched, "what was finished is not done again"
    assert good.reports == study.killed[0].reports
    steps = [report.step for report in useless.reports]
    assert steps == sorted(set(steps)), "what was reported is not reported again"


def test_the_scheduler_remembers_across_the_kill_and_spares_the_rest(study: Resumed):
    good, useless, _ = study.study.trials
    assert (good.state, good.steps) == ("finished", STEPS)
    assert useless.state == "stopped"
    assert useless.reason == "others were better at step 4"
    assert useless.steps < STEPS


def test_a_trial_that_dies_leaves_its_reason_and_the_others_go_on(study: Resumed):
    deadly = study.study.trials[2]
    assert deadly.state == "failed"
    assert "loss or gradient was not finite" in (deadly.reason or "")
    assert study.study.record.state == "finished"


def test_nothing_holds_the_cluster_after_the_study(study: Resumed):
    del study
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


def test_every_trial_is_a_run_within_that_of_the_study(study: Resumed):
    client = MlflowClient(study.study.record.config.tracking_uri)
    experiment = client.get_experiment_by_name("apotheon")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    parent = runs.pop("study")
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["best_loss"] == study.study.best_value(study.study.objectives[0])
    assert set(runs) == {trial.trial_id for trial in study.study.trials}
    for run in runs.values():
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    ends = [runs[trial.trial_id].info.status for trial in study.study.trials]
    assert ends == ["FINISHED", "KILLED", "FAILED"]


def test_the_same_command_again_has_nothing_to_do(study: Resumed):
    assert tune_training(study.study.record.config).trials == study.study.trials


def test_the_best_model_is_taken_home(study: Resumed, capsys: pytest.CaptureFixture[str]):
    assert main(["tune", "promote", study.study.folder.location, "--name", "tuned"]) == 0
    assert "models:/tuned@champion" in capsys.readouterr().out
    client = MlflowClient(study.study.record.config.tracking_uri)
    version = client.get_model_version_by_alias("tuned", "champion")
    assert version.tags["trial"] == study.study.trials[0].trial_id

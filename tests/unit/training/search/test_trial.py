"""A trial's own part: what it reports, what it says when that is nothing, whom it follows."""

import json
from pathlib import Path

import pytest
from studies import study_config

from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import Folder
from spark_ray.training.search.trial import (
    FAILURES,
    MODEL_KEY,
    MetricNeverReported,
    TrialSetup,
    _Branch,
    _Trial,
    reason_kept,
)
from spark_ray.training.worker import NonFiniteError

RATE = {"learning_rate": {"type": "float", "min": 1e-5, "max": 1e-3}}


def make(folder: Path, **values: object) -> _Trial:
    config = study_config(folder, **{"space": RATE, **values})
    setup = TrialSetup(config, {"CPU": 1.0}, tracking_run="parent")
    return _Trial("trial_00001", {"learning_rate": 1e-4}, setup)


def test_a_metric_that_there_is_not_is_told_with_those_that_there_are(tmp_path: Path):
    trial = make(tmp_path / "x", metric="bleu")
    found = trial._finite({"loss": 2, "stage": "films", "grad_norm": float("nan")})
    assert found == {"loss": 2.0}
    with pytest.raises(MetricNeverReported, match="'bleu'; choose one of: grad_norm, loss"):
        trial._check_reported(trial.finite)


def test_a_metric_that_was_never_a_number_is_this_trials_own_failure(tmp_path: Path):
    trial = make(tmp_path / "x", metric="validation_loss")
    trial._finite({"loss": 2.0, "validation_loss": float("inf")})
    with pytest.raises(NonFiniteError, match="validation_loss was no finite number"):
        trial._check_reported(trial.finite)
    trial._finite({"validation_loss": 3.0})
    trial._check_reported(trial.finite)


def test_what_the_model_is_worth_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    told: list[dict[str, object]] = []
    monkeypatch.setattr("ray.tune.report", told.append)
    trial = make(tmp_path / "x", metric="loss")
    trial._report("a", {"loss": 2.0, "step": 4})
    trial._report("a", {"loss": 3.0, "step": 4}, model=True)
    assert [(one["loss"], one[MODEL_KEY]) for one in told] == [(2.0, False), (3.0, True)]


def test_why_a_trial_failed_is_kept_in_one_sentence(tmp_path: Path):
    folder = Folder(str(tmp_path))

    def kept() -> dict[str, str]:
        found: dict[str, str] = json.loads((tmp_path / FAILURES / "a.json").read_text())
        return found

    hidden = RuntimeError("a task failed, and here is a long traceback")
    hidden.__cause__ = ConfigError("batch_size: too large")
    with pytest.raises(RuntimeError), reason_kept(folder, "a"):
        raise hidden
    assert kept() == {"reason": "batch_size: too large", "kind": "ConfigError"}
    with pytest.raises(KeyError), reason_kept(folder, "a"):
        raise KeyError("text")
    assert kept()["reason"] == "KeyError: 'text'"


@pytest.mark.parametrize(
    ("interval", "done", "total", "ends"),
    [(1, 0, 3, [1, 2, 3]), (2, 0, 5, [2, 4, 5]), (2, 4, 5, [5]), (3, 5, 5, []), (9, 0, 4, [4])],
)
def test_a_population_is_compared_after_each_interval_and_at_the_end(
    tmp_path: Path, interval: int, done: int, total: int, ends: list[int]
):
    trial = make(tmp_path / "x", scheduler="pbt", perturbation_epochs=interval)
    assert trial._ends(done, total) == ends


def test_a_trial_goes_on_in_its_run_until_it_takes_another_ones_weights(tmp_path: Path):
    trial = make(tmp_path / "x", scheduler="pbt")
    assert trial._place(None) == ("trial_00001", None)
    checkpoint = str(tmp_path / "x/runs/trial_00000/step-00000005-ranks-1")
    own = _Branch("trial_00001", "trial_00001-abc", checkpoint, 1, dict(trial.params))
    assert trial._place(own) == ("trial_00001-abc", None)
    other = _Branch("trial_00000", "trial_00000", checkpoint, 1, {"learning_rate": 1e-3})
    name, parent = trial._place(other)
    assert name.startswith("trial_00001-")
    assert parent is not None
    assert parent.path == checkpoint
    assert trial._place(other)[0] == name, "a trial that was killed finds its run again"
    changed = _Branch("trial_00001", "trial_00001", checkpoint, 1, {"learning_rate": 1e-3})
    assert trial._place(changed)[1] is not None, "its own weights, with other settings"


def test_what_others_may_go_on_from_is_kept(tmp_path: Path):
    plain = make(tmp_path / "x")._run_config("a")
    assert plain.output_dir == str(tmp_path / "x/runs/a")
    assert plain.keep_checkpoints < 5
    population = make(tmp_path / "x", scheduler="pbt")._run_config("a")
    assert population.keep_checkpoints == population.epochs + 1 == 5


def test_a_trials_run_is_nested_in_that_of_the_study(tmp_path: Path):
    context = make(tmp_path / "x")._context()
    assert context.tags["mlflow.parentRunId"] == "parent"
    assert context.tags["trial"] == "trial_00001"
    assert context.resources == {"CPU": 1.0}

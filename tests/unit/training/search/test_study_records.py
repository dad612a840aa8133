"""Studies are kept as plain files: loaded, ranked, listed, and shown in one line each."""

from pathlib import Path

import pytest
from studies import study_config, trial, write_study

from spark_ray.cli import main
from spark_ray.core.errors import ConfigError, DatasetError
from spark_ray.training.search.records import Report, Study, find_studies

TWO = {"metric": ["validation_loss", "step_s"], "search": "optuna"}


def test_a_study_is_read_back_as_it_was(tmp_path: Path):
    trials = [trial(1, 1e-2), trial(0, 1e-3), trial(2, state="failed")]
    written = write_study(tmp_path / "rates", trials)
    study = Study.load(str(tmp_path / "rates"))
    assert study.record == written.record
    assert study.trials == sorted(trials, key=lambda one: one.number)
    assert study.name == "rates"
    assert study.record.config == study_config(tmp_path / "rates")


def test_the_best_report_of_a_trial_counts(tmp_path: Path):
    one, other = trial(0, 1e-2), trial(1, 1e-3)
    other.reports.append(Report(step=30, metrics={"validation_loss": 9.0}))
    without = trial(2).model_copy(update={"reports": [Report(step=1, metrics={"loss": 0.1})]})
    low = write_study(tmp_path / "low", [one, other, without])
    assert [ranked.number for ranked in low.ranked()] == [1, 0]
    assert [listed.number for listed in low.listed()] == [1, 0, 2]
    high = write_study(tmp_path / "high", [one, other], mode="max")
    assert [ranked.number for ranked in high.ranked()] == [1, 0]
    assert high.best_value(high.objectives[0]) == 9.0


def test_a_trial_is_worth_what_the_model_is_that_it_left(tmp_path: Path):
    """A run keeps the model of the best validation, which may be another metric's than ours."""
    lucky, steady = trial(0, 1e-2), trial(1, 1e-2)
    for one, values in ((lucky, (0.1, 0.9)), (steady, (0.6, 0.5))):
        one.reports = [
            Report(step=step, metrics={"loss": value, "step_s": 5 - 4 * value})
            for step, value in zip((5, 10), values, strict=True)
        ]
        one.reports.append(one.reports[-1].model_copy(update={"model": True}))
    study = write_study(tmp_path / "x", [lucky, steady], metric="loss")
    assert [ranked.number for ranked in study.ranked()] == [1, 0]
    assert study.best_value(study.objectives[0]) == 0.5
    both = {**TWO, "metric": ["loss", "step_s"], "mode": ["min", "max"]}
    front = write_study(tmp_path / "y", [lucky, steady], **both).pareto_front()
    assert [one.number for one in front] == [1], "no weights had both a loss of 0.1 and 4.6 s"


def test_the_front_is_of_points_that_there_were(tmp_path: Path):
    died, other = trial(0, state="failed"), trial(1)
    died.reports = [
        Report(step=5, metrics={"validation_loss": 1.0, "step_s": 9.0}),
        Report(step=10, metrics={"validation_loss": 9.0, "step_s": 1.0}),
    ]
    other.reports = [Report(step=10, metrics={"validation_loss": 2.0, "step_s": 2.0})]
    study = write_study(tmp_path / "x", [died, other], **TWO)
    assert {one.number for one in study.pareto_front()} == {0, 1}


def test_what_weights_were_worth_that_were_given_up_does_not_count(tmp_path: Path):
    one = trial(0, 1e-2)
    gone = Report(step=20, run="runs/trial_00000-before", metrics={"validation_loss": 0.1})
    kept = Report(step=30, run=one.run, metrics={"validation_loss": 0.7})
    one.reports = [gone, kept]
    study = write_study(tmp_path / "x", [one])
    assert study.best_value(study.objectives[0]) == 0.7
    assert one.best(study.objectives[0]) == kept


def test_the_front_holds_what_no_other_trial_beats_in_everything(tmp_path: Path):
    trials = [trial(0, 1e-3), trial(1, 1e-2), trial(2, 1e-1), trial(3, 1e-2)]
    worse = trial(4, 1e-2)
    for report in worse.reports:
        report.metrics["step_s"] += 1
    partial = trial(5, 1e-1)
    for report in partial.reports:
        del report.metrics["step_s"]
    study = write_study(tmp_path / "front", [*trials, worse, partial], **TWO)
    assert {front.number for front in study.pareto_front()} == {0, 1, 2, 3}


def test_damaged_and_missing_studies_are_named(tmp_path: Path):
    with pytest.raises(ConfigError, match=r"nowhere: holds no study\.json"):
        Study.load(str(tmp_path / "nowhere"))
    write_study(tmp_path / "x", [trial(0)])
    (tmp_path / "x/trials/trial_00000.json").write_text('{"trial_id": "a"')
    with pytest.raises(DatasetError, match=r"trial_00000\.json: is damaged"):
        Study.load(str(tmp_path / "x"))


def test_studies_are_listed_with_what_they_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    write_study(tmp_path / "low", [trial(0, 1e-3), trial(1, 1e-1)])
    write_study(tmp_path / "nothing", [trial(0).model_copy(update={"reports": []})])
    (tmp_path / "holiday").mkdir()
    assert [study.name for study in find_studies(str(tmp_path))] == ["low", "nothing"]
    assert main(["tune", "list", str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "2 of 2" in lines[1]
    assert "1.5" in lines[1]
    assert "–" in lines[2]


def test_a_study_is_shown_with_why_trials_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    failed = trial(1, state="failed").model_copy(update={"reason": "a worker ran out of memory"})
    study = write_study(tmp_path / "x", [trial(0), failed], **TWO)
    study.record = study.record.model_copy(update={"state": "running"})
    study.save_record()
    assert main(["tune", "show", str(tmp_path / "x")]) == 0
    shown = capsys.readouterr().out
    assert "trial 1 failed: a worker ran out of memory" in shown
    assert "it is running, or was interrupted" in shown
    assert "Pareto front: trials 0" in shown


def test_a_trial_without_a_model_is_not_promoted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    stopped = [trial(0, state="stopped"), trial(1, state="failed")]
    folder = str(tmp_path / "x")
    write_study(tmp_path / "x", stopped)
    assert main(["tune", "promote", folder]) == 2
    assert main(["tune", "promote", folder, "--trial", "0"]) == 2
    assert main(["tune", "promote", folder, "--trial", "7"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "no trial has come to its end" in errors[0]
    assert "0 was stopped, so it left checkpoints and no model" in errors[1]
    assert "7 is unknown; there are 0, 1" in errors[2]

"""A study's report: one file with its own script, and pictures that say what the trials say."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from studies import trial, write_study

from spark_ray.cli import main
from spark_ray.training.search.charts import history, importances, learning_curves, pareto
from spark_ray.training.search.report import render, write_report

RATES = [1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]


def many(**changes: Any) -> list[Any]:
    return [trial(number, rate).model_copy(update=changes) for number, rate in enumerate(RATES * 2)]


def test_what_decides_the_loss_is_what_mattered(tmp_path: Path):
    shares = importances(write_study(tmp_path / "x", many()))
    assert max(shares, key=lambda name: shares[name]) == "learning_rate"
    assert shares["learning_rate"] > 0.8
    assert sum(shares.values()) == pytest.approx(1)


def test_too_few_trials_say_nothing_of_importance(tmp_path: Path):
    assert importances(write_study(tmp_path / "few", [trial(0), trial(1, 1e-2)])) == {}
    assert importances(write_study(tmp_path / "same", [trial(n) for n in range(6)])) == {}
    assert importances(write_study(tmp_path / "none", many(reports=[]))) == {}


def test_the_history_counts_the_steps_of_all_trials(tmp_path: Path):
    study = write_study(tmp_path / "x", [trial(0, 1e-2), trial(1, 1e-1), trial(2, 1e-3)])
    dots, best = history([study]).data
    assert list(dots.x) == list(best.x) == [20, 40, 60]
    assert list(best.y) == pytest.approx([2.5, 2.5, 1.5])
    study = write_study(tmp_path / "y", [trial(0, 1e-2), trial(1, 1e-1, state="stopped")])
    assert [drawn.name for drawn in history([study]).data] == ["finished", "stopped", "best so far"]


def test_every_trial_has_its_curve_and_the_front_its_own_colour(tmp_path: Path):
    study = write_study(
        tmp_path / "x", many(), metric=["validation_loss", "step_s"], search="optuna"
    )
    curves = learning_curves(study).data
    assert len(curves) == len(RATES) * 2
    assert list(curves[0].x) == [5, 10, 20]
    figure = pareto(study)
    assert figure is not None
    others, front = figure.data
    assert len(front.x) == len(study.pareto_front()) > 0
    assert len(front.x) + len(others.x) == len(study.trials)


def test_the_file_needs_nothing_from_elsewhere_and_runs_no_text(tmp_path: Path):
    spoilt = trial(3, state="failed").model_copy(update={"reason": "</script><b>oh</b>"})
    study = write_study(tmp_path / "x", [*many()[:3], spoilt])
    page = render([study])
    assert "<b>oh</b>" not in page
    assert "default-src 'none'" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=", page)
    data = re.search(r'id="figures">(.*?)</script>', page)
    assert data is not None
    figures = json.loads(data[1])
    assert {"history", "curves-0", "parallel-0"} <= set(figures)
    for name in figures:
        assert f'id="{name}"' in page


def test_parameters_are_those_that_a_trial_was_best_with(tmp_path: Path):
    one = trial(0, 2e-5)
    one.reports[-1].params = {"learning_rate": 7e-3}
    page = render([write_study(tmp_path / "x", [one, trial(1)])])
    assert "<td>0.007</td>" in page
    assert "learning_rate = 0.007" in page
    assert "2e-05" not in page


def test_studies_are_compared_in_one_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in ("one", "other"):
        write_study(tmp_path / name, many())
    target = tmp_path / "both.html"
    folders = [str(tmp_path / name) for name in ("one", "other")]
    assert main(["tune", "report", *folders, "--to", str(target)]) == 0
    page = target.read_text()
    assert "one: best" in page
    assert "other: best" in page
    assert str(target) in capsys.readouterr().out


def test_a_study_in_which_nothing_was_measured_has_a_report(tmp_path: Path):
    study = write_study(tmp_path / "x", many(reports=[], state="failed"))
    assert Path(write_report([study])).read_text().count("failed") > len(RATES)

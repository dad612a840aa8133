"""A study for real: trials on Ray Train, killed with its driver, resumed, one of them promoted."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import light_trials
import pytest
import ray
from films import write_films
from mlflow import MlflowClient
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from spark_ray.cli import main
from spark_ray.core.storage import Folder
from spark_ray.training.search.algorithms import SCHEDULER, param_space, searcher
from spark_ray.training.search.cleaning import free_leaked_placement_groups
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import RUNS, TUNE, Study, TrialRecord, read_trials
from spark_ray.training.search.study import tune_training

ROOT = Path(__file__).parents[2]
STEPS = 4
# Of the fixture: five starts of Ray Train one after the other, on whatever machine.
pytestmark = pytest.mark.timeout(1200)

GOOD, USELESS, DEADLY = 1e-3, 1e-9, 1e30
# Seeds with which Optuna, and Ray Tune for a population, draw the rates in that order.
GOOD_USELESS_DEADLY, USELESS_THEN_GOOD = 28, 8
RATES = {"learning_rate": {"type": "choice", "values": [GOOD, USELESS, DEADLY]}}
LIGHT: dict[str, Any] = {
    "num_samples": 2,
    "max_concurrent": None,
    "brackets": 2,
    "grace_steps": 1,
    "space": {"learning_rate": {"type": "float", "min": 1e-4, "max": 1e-3}},
}
"""Two trials beside each other."""


@pytest.fixture(scope="module")
def study(cluster: str, tmp_path_factory: pytest.TempPathFactory) -> "Resumed":
    """Two trials, one after the other; in the second, the driver is killed and begun again."""
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
        "search": "optuna",
        "search_seed": GOOD_USELESS_DEADLY,
        "num_samples": 2,
        "scheduler": "asha",
        "grace_steps": 2,
        "reduction_factor": 2.0,
        "max_concurrent": 1,
        "metric": "loss",
        "space": RATES,
        "train": {
            "dataset": str(folder / "films"),
            "epochs": 2,
            "max_steps": STEPS,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "mixed_precision": "fp32",
            "warmup_ratio": 0.0,
            "engine": "ddp",
            "max_frames": 2,
            "checkpoint_every_steps": 1,
            "curriculum": [{"name": "pictures", "epochs": 2, "modalities": ["text", "image"]}],
        },
    }


def wait_for_second_trial(driver: "subprocess.Popen[bytes]", folder: Path) -> list[TrialRecord]:
    """Until the second one has told of a checkpoint; the records as they are then."""

    deadline = time.monotonic() + 600
    while True:
        trials = read_trials(Folder(str(folder / "study")))
        if len(trials) > 1 and trials[1].reports:
            return trials
        assert driver.poll() is None, (folder / "log").read_text()[-2000:]
        assert time.monotonic() < deadline, "the second trial came to nothing in time"
        time.sleep(0.1)


def another(study: Resumed, folder: Path, **changes: Any) -> Study:
    """A study on the same films, with some settings of its own."""
    values = study.study.record.config.model_dump(mode="json")
    train = values["train"] | changes.pop("train", {})
    values |= {"study_dir": str(folder), "experiment": folder.name, **changes, "train": train}
    return tune_training(StudyConfig.from_values(**values))


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what Ray Tune makes of losses, wherever they come from: training takes long."""
    monkeypatch.setattr("spark_ray.training.search.study.run_trial", light_trials.run_trial)


def test_after_a_kill_the_study_goes_on_where_it_was(study: Resumed):
    good, useless = study.study.trials
    assert [trial.trial_id for trial in study.killed] == [good.trial_id, useless.trial_id]
    assert study.killed[0].state == "finished"
    assert study.first_untouched, "what was finished is not done again"
    assert good.reports == study.killed[0].reports
    steps = [report.step for report in useless.reports]
    assert steps == sorted(set(steps)), "what was reported is not reported again"


def test_the_searcher_goes_on_as_if_nobody_had_killed_it(study: Resumed):
    """One that forgot would draw the first rate again; one that began a new study, know no loss."""
    config, trials = study.study.record.config, study.study.trials
    undisturbed = searcher(config, trials_at_once=2)
    undisturbed.set_search_properties(None, None, param_space(config))
    suggested = [undisturbed.suggest(trial.trial_id) for trial in trials]
    assert [trial.params for trial in trials] == suggested
    assert [params["learning_rate"] for params in suggested] == [GOOD, USELESS]

    kept = searcher(config, trials_at_once=1)
    kept.restore_from_dir(study.study.folder / TUNE)
    known = kept.searcher._ot_study.trials
    assert [trial.state.name for trial in known] == ["COMPLETE", "COMPLETE"]
    assert [trial.value for trial in known] == [
        trial.reports[-1].metrics["loss"] for trial in trials
    ]


def test_the_scheduler_remembers_across_the_kill_and_spares_the_rest(study: Resumed):
    good, useless = study.study.trials
    assert (good.state, good.steps) == ("finished", STEPS)
    assert useless.state == "stopped"
    assert useless.reason == "others were better at step 2"
    assert useless.steps < STEPS


def test_nothing_holds_the_cluster_after_the_study(study: Resumed):
    del study
    wait_until_all_is_free()


def wait_until_all_is_free() -> None:
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        assert time.monotonic() < deadline, ray.available_resources()
        time.sleep(0.2)


@ray.remote(num_cpus=0)
class Holder:
    """Takes a part of a CPU as a training run does, and dies with it."""

    def hold(self) -> bytes:
        group = placement_group([{"CPU": 0.01}])
        ray.get(group.ready())
        return bytes(group.id.binary())


def test_a_dead_actors_placement_group_is_freed_and_a_living_ones_is_not(cluster: str):
    dead, living = Holder.remote(), Holder.remote()
    taken = [ray.get(holder.hold.remote()) for holder in (dead, living)]
    groups = [PlacementGroup(ray.PlacementGroupID(name)) for name in taken]
    ray.kill(dead)
    deadline = time.monotonic() + 60
    while placement_group_table(groups[0])["state"] != "REMOVED":
        free_leaked_placement_groups()
        assert time.monotonic() < deadline, "the dead actor's CPU is still held"
        time.sleep(0.2)
    assert placement_group_table(groups[1])["state"] == "CREATED"
    remove_placement_group(groups[1])
    ray.kill(living)


def test_the_worst_of_a_population_goes_on_from_the_bests_checkpoint(
    study: Resumed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The two take turns, one interval each; what the better one is given to be taken over from is
    a checkpoint, without which Ray Tune would leave the other as it is."""
    run = light_trials.run_intervals
    monkeypatch.setattr("spark_ray.training.search.study.run_trial", run)
    done = another(
        study,
        tmp_path / "population",
        search="random",
        scheduler="pbt",
        num_samples=2,
        search_seed=USELESS_THEN_GOOD,
        quantile_fraction=0.5,
        space={"learning_rate": {"type": "float", "min": 1e-9, "max": 1e-3, "log": True}},
        train={"max_steps": None},
    )
    worst, best = done.trials
    rates = [trial.params["learning_rate"] for trial in (worst, best)]
    assert rates[0] < 1e-7 < 4e-4 < rates[1]
    assert [trial.state for trial in (worst, best)] == ["finished", "finished"]
    begun, own, taken_over = worst.reports[:3]
    assert begun.step < own.step == taken_over.step, "the interval was done again, better"
    changed = taken_over.params["learning_rate"]
    assert changed not in rates, "varied, not copied"
    assert own.metrics["loss"] == pytest.approx(light_trials.FRESH_LOSS, abs=1e-5)
    theirs, steps = best.reports[0], own.step - begun.step
    assert theirs.step == begun.step
    gone_on = theirs.metrics["loss"] - steps * changed
    assert taken_over.metrics["loss"] == pytest.approx(gone_on, abs=1e-9)
    assert worst.run.startswith(f"{RUNS}/{worst.trial_id}-"), "a run of its own, beside the first"


@pytest.mark.usefixtures("light")
def test_a_trial_that_dies_leaves_its_reason_and_the_others_go_on(study: Resumed, tmp_path: Path):
    wanted = {"scheduler": "none", "search": "grid", "space": RATES}
    done = another(study, tmp_path / "deadly", **LIGHT | wanted)
    states = {trial.params["learning_rate"]: trial.state for trial in done.trials}
    assert states == {GOOD: "finished", USELESS: "finished", DEADLY: "failed"}
    deadly = next(trial for trial in done.trials if trial.state == "failed")
    assert deadly.reason == "loss or gradient was not finite"
    assert done.record.state == "finished"


@pytest.mark.usefixtures("light")
def test_hyperband_judges_each_trial_within_its_bracket(study: Resumed, tmp_path: Path):
    """The second of two brackets has its first rung where the first has its second: at step 2."""
    changes = LIGHT | {"search": "random", "scheduler": "hyperband"}
    done = another(study, tmp_path / "brackets", **changes, train={"max_steps": 3})
    assert {trial.state for trial in done.trials} <= {"finished", "stopped"}
    known = json.loads(done.folder.read(SCHEDULER))
    assert [[rung for rung, _ in sorted(rungs)] for rungs in known["rungs"]] == [[1, 2], [2]]
    for trial in done.trials:
        told = {report.step: -report.metrics["loss"] for report in trial.reports}
        judged = [
            {rung: found[trial.trial_id] for rung, found in rungs if trial.trial_id in found}
            for rungs in known["rungs"]
        ]
        (within,) = filter(None, judged)  # one bracket alone
        assert within == {rung: told[rung] for rung in within}


@pytest.mark.usefixtures("light")
def test_optuna_weighs_several_metrics(study: Resumed, tmp_path: Path):
    wanted = {"metric": ["loss", "grad_norm"], "mode": ["min", "max"], "scheduler": "none"}
    done = another(study, tmp_path / "front", **LIGHT | wanted)
    assert [trial.state for trial in done.trials] == ["finished", "finished"]
    known = searcher(done.record.config, trials_at_once=1)
    known.restore_from_dir(done.folder / TUNE)
    optunas = known.searcher._ot_study
    assert [direction.name for direction in optunas.directions] == ["MINIMIZE", "MAXIMIZE"]
    last = [trial.reports[-1].metrics for trial in done.trials]
    assert sorted(trial.values for trial in optunas.trials) == sorted(
        [metrics["loss"], metrics["grad_norm"]] for metrics in last
    )
    front = done.pareto_front()
    for objective in done.objectives:
        assert done.best_value(objective) in [trial.value(objective) for trial in front]


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
    assert ends == ["FINISHED", "KILLED"]


def test_the_same_command_again_has_nothing_to_do(study: Resumed):
    assert tune_training(study.study.record.config).trials == study.study.trials


def test_the_commands_of_the_page_tell_of_it(study: Resumed, capsys: pytest.CaptureFixture[str]):
    """Those of docs/how-to/tune.md that read a study, to the letter but for where it is."""
    folder = Path(study.study.folder.location)
    places = {"studies": folder.parent, "studies/rates": folder}
    page = (ROOT / "docs" / "how-to" / "tune.md").read_text()
    asked = re.findall(r"^spark-ray tune (list|show|report) (\S+)", page, re.MULTILINE)
    assert [name for name, _ in asked] == ["list", "show", "report"]
    told = {}
    for name, place in asked:
        assert main(["tune", name, str(places[place])]) == 0
        told[name] = capsys.readouterr().out
    assert folder.name in told["list"]
    assert all(f" {trial.state} " in told["show"] for trial in study.study.trials)
    assert "<!doctype html>" in Path(told["report"].split()[-1]).read_text()


def test_the_best_model_is_taken_home(study: Resumed, capsys: pytest.CaptureFixture[str]):
    assert main(["tune", "promote", study.study.folder.location, "--name", "tuned"]) == 0
    assert "models:/tuned@champion" in capsys.readouterr().out
    client = MlflowClient(study.study.record.config.tracking_uri)
    version = client.get_model_version_by_alias("tuned", "champion")
    assert version.tags["trial"] == study.study.trials[0].trial_id
    assert main(["tune", "promote", study.study.folder.location, "--name", "tuned"]) == 0
    assert "models:/tuned@champion, in place of version 1" in capsys.readouterr().out

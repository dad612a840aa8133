"""What of Ray Tune is ours: who is asked to end, what is known after a kill, what changes."""

import json
import random
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from ray.train import Checkpoint
from ray.train._internal.session import _TrainingResult as TrainingResult
from ray.tune.experiment import Trial
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import SearchAlgorithm, Searcher
from ray.tune.search.sample import Categorical, Float, Integer
from ray.tune.search.search_generator import SearchGenerator
from studies import study_config, trial

from spark_ray.core.storage import Folder
from spark_ray.training.search.algorithms import (
    SCHEDULER,
    Halving,
    Population,
    domain,
    param_space,
    scheduler,
    searcher,
)
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import Report, read_trial, write_trial
from spark_ray.training.search.space import parse_space

CONTROLLER: Any = type("Controller", (), {"search_alg": None})()


def halving(folder: Path, **values: Any) -> tuple[StudyConfig, Halving]:
    config = study_config(folder, scheduler="asha", grace_steps=4, reduction_factor=2.0, **values)
    made = scheduler(config, steps=17)
    assert isinstance(made, Halving)
    return config, made


def begin(asha: Halving, config: StudyConfig, *numbers: int) -> list[Trial]:
    trials = []
    for number in numbers:
        record = trial(number, state="running").model_copy(update={"reports": []})
        write_trial(Folder(config.study_dir), record)
        trials.append(Trial("run_trial", trial_id=record.trial_id, stub=True))
        asha.on_trial_add(CONTROLLER, trials[-1])
    return trials


def tell(asha: Halving, one: Trial, step: int, loss: float) -> str:
    return asha.on_trial_result(CONTROLLER, one, {"step": step, "validation_loss": loss})


def state_of(config: StudyConfig, one: Trial) -> tuple[str, str | None]:
    record = read_trial(Folder(config.study_dir), one.trial_id)
    return record.state, record.reason


def test_a_trial_that_is_worse_than_others_were_is_asked_to_end(tmp_path: Path):
    config, asha = halving(tmp_path / "x")
    good, bad = begin(asha, config, 0, 1)
    for step, loss in ((2, 9.0), (4, 2.0), (8, 1.5)):
        assert tell(asha, good, step, loss) == TrialScheduler.CONTINUE
    assert tell(asha, bad, 2, 9.9) == TrialScheduler.CONTINUE
    assert state_of(config, bad)[0] == "running", "before its grace is over none is judged"
    assert tell(asha, bad, 4, 3.0) == TrialScheduler.CONTINUE, "it ends by itself, not killed"
    assert state_of(config, bad) == ("stopped", "others were better at step 4")
    assert state_of(config, good)[0] == "running"


def test_a_high_metric_may_be_what_is_wanted(tmp_path: Path):
    config, asha = halving(tmp_path / "x", mode="max")
    good, bad = begin(asha, config, 0, 1)
    tell(asha, good, 4, 3.0)
    tell(asha, bad, 4, 2.0)
    assert state_of(config, bad)[0] == "stopped"


def test_at_its_last_step_a_trial_is_left_alone(tmp_path: Path):
    config, asha = halving(tmp_path / "x")
    good, late = begin(asha, config, 0, 1)
    tell(asha, good, 17, 1.0)
    tell(asha, late, 4, 0.5)
    tell(asha, late, 8, 0.5)
    tell(asha, late, 16, 0.5)
    tell(asha, late, 17, 5.0)
    assert state_of(config, late)[0] == "running"


def test_after_a_kill_the_scheduler_knows_what_it_knew(tmp_path: Path):
    config, asha = halving(tmp_path / "x")
    good, bad = begin(asha, config, 0, 1)
    tell(asha, good, 4, 2.0)

    _, again = halving(tmp_path / "x")
    again.on_trial_add(CONTROLLER, bad)
    tell(again, bad, 4, 3.0)
    assert state_of(config, bad)[0] == "stopped"
    (rung,) = json.loads((tmp_path / "x" / SCHEDULER).read_text())["rungs"][0][-1:]
    assert rung == [4, {good.trial_id: -2.0, bad.trial_id: -3.0}]


def test_a_trial_stays_in_its_bracket_after_a_kill(tmp_path: Path):
    config = study_config(tmp_path / "x", scheduler="hyperband", grace_steps=1)
    np.random.seed(0)  # Ray Tune draws brackets from the global generator
    first = scheduler(config, steps=65)
    assert isinstance(first, Halving)
    trials = begin(first, config, *range(12))
    for one in trials:
        tell(first, one, 1, 1.0)
    before = [first._brackets.index(first._trial_info[one.trial_id]) for one in trials]
    assert len(set(before)) > 1
    again = scheduler(config, steps=65)
    assert isinstance(again, Halving)
    for one in trials:
        again.on_trial_add(CONTROLLER, one)
    assert before == [again._brackets.index(again._trial_info[one.trial_id]) for one in trials]


def test_the_ranges_that_ray_draws_from_include_both_ends():
    space = parse_space(
        {
            "a": {"type": "int", "min": 1, "max": 2},
            "b": {"type": "int", "min": 1, "max": 2, "log": True},
            "c": {"type": "int", "min": 3, "max": 8, "step": 2},
            "d": {"type": "float", "min": 0.05, "max": 0.3, "step": 0.1},
            "f": {"type": "int", "min": 1, "max": 3, "step": 1},
            "e": {"type": "choice", "values": [[], ["text"], None, True, "x"]},
        }
    )
    drawn = {path: set(domain(one).sample(size=200)) for path, one in space.items()}
    assert drawn["a"] == drawn["b"] == {1, 2}
    assert drawn["c"] == {3, 5, 7}, "steps are counted from min on"
    assert {round(value, 9) for value in drawn["d"]} == {0.05, 0.15, 0.25}
    assert drawn["f"] == {1, 2, 3}
    assert all(domain(space[path]).sample() in drawn[path] for path in "cdf")
    assert drawn["e"] == {"[]", '["text"]', None, True, "x"}


def test_optuna_draws_the_same_steps(tmp_path: Path):
    space = {
        "learning_rate": {"type": "float", "min": 0.05, "max": 0.3, "step": 0.1},
        "batch_size": {"type": "int", "min": 3, "max": 8, "step": 2},
    }
    config = study_config(tmp_path, search="optuna", space=space)
    search = searcher(config, trials_at_once=40)
    search.set_search_properties(None, None, param_space(config))
    drawn = [search.suggest(str(number)) for number in range(40)]
    assert {point["batch_size"] for point in drawn} == {3, 5, 7}
    assert {round(point["learning_rate"], 9) for point in drawn} == {0.05, 0.15, 0.25}


def test_a_grid_is_every_point_once(tmp_path: Path):
    space = {"learning_rate": {"type": "choice", "values": [1e-3, 1e-4]}}
    grid = param_space(study_config(tmp_path, search="grid", space=space))
    assert grid == {"learning_rate": {"grid_search": [1e-3, 1e-4]}}
    drawn = param_space(study_config(tmp_path))
    assert [type(one) for one in drawn.values()] == [Float, Float, Categorical]
    assert not isinstance(drawn["learning_rate"], Integer)


@pytest.mark.parametrize("search", ["random", "optuna"])
def test_a_resumed_search_keeps_to_the_room_that_there_is_now(tmp_path: Path, search: str):
    """As many trials as find room may be fewer than at first, or more."""
    config = study_config(tmp_path / "x", search=search)
    tmp_path.joinpath("kept").mkdir()

    def begin(trials_at_once: int) -> SearchAlgorithm:
        found = searcher(config, trials_at_once)
        found.set_search_properties(None, None, param_space(config))
        if isinstance(found, Searcher):
            found = SearchGenerator(found)
        return found

    def limit(search: Any) -> int:
        return int(getattr(search, "searcher", search).max_concurrent)

    begin(1).save_to_dir(str(tmp_path / "kept"), session_str="first")
    again = begin(3)
    again.restore_from_dir(str(tmp_path / "kept"))
    assert limit(again) == 3


@pytest.fixture
def population(tmp_path: Path) -> Population:
    space = {
        "learning_rate": {"type": "float", "min": 1e-4, "max": 1e-3, "log": True},
        "max_grad_norm": {"type": "float", "min": 0.5, "max": 2.0},
    }
    made = scheduler(study_config(tmp_path / "x", scheduler="pbt", space=space), steps=40)
    assert isinstance(made, Population)
    return made


def test_parameters_that_are_taken_over_change_and_stay_in_their_ranges(population: Population):
    random.seed(0)
    best = Trial("run_trial", config={"learning_rate": 9.5e-4, "max_grad_norm": 0.5}, stub=True)
    worst = Trial("run_trial", config={"learning_rate": 1e-4, "max_grad_norm": 1.0}, stub=True)
    found = [population._get_new_config(worst, best)[0] for _ in range(50)]
    assert all(1e-4 <= params["learning_rate"] <= 1e-3 for params in found)
    assert all(0.5 <= params["max_grad_norm"] <= 2.0 for params in found)
    assert len({params["learning_rate"] for params in found}) > 2
    assert 1e-3 in {params["learning_rate"] for params in found}, "9.5e-4 x 1.2 was cut off"


def test_after_a_kill_the_population_has_its_scores(population: Population):
    folder = population._folder
    record = trial(3, state="running")
    record.reports = [Report(step=9, metrics={"validation_loss": 2.5, "epochs": 2.0})]
    write_trial(folder, record)
    known = Trial("run_trial", config=record.params, trial_id=record.trial_id, stub=True)
    fresh = Trial("run_trial", config=record.params, trial_id="trial_00009", stub=True)
    for one in (known, fresh):
        population.on_trial_add(CONTROLLER, one)
    assert population._trial_state[known].last_score == -2.5
    assert population._trial_state[known].last_perturbation_time == 2
    assert population._trial_state[fresh].last_score is None


def test_after_a_kill_the_best_can_be_taken_over_before_it_reports_again(population: Population):
    """Ray Tune forgets whose checkpoint was whose, and would leave the worst as it is."""
    trials = []
    for number, loss in ((0, 1.0), (1, 9.0)):
        record = trial(number, state="running")
        record.reports = [Report(step=9, metrics={"validation_loss": loss, "epochs": 1.0})]
        write_trial(population._folder, record)
        config = {"learning_rate": 5e-4, "max_grad_norm": 1.0}
        restored = Trial("run_trial", config=config, trial_id=record.trial_id, stub=True)
        result = TrainingResult(Checkpoint(f"/branches/{number}"), {"epochs": 1})
        restored.run_metadata.checkpoint_manager._latest_checkpoint_result = result
        trials.append(restored)
    best, worst = trials
    controller: Any = Mock(search_alg=None)
    controller.get_trials.return_value = trials
    for one in trials:
        population.on_trial_add(controller, one)
    population.on_trial_result(controller, worst, {"validation_loss": 8.0, "epochs": 2})
    assert worst.checkpoint is not None
    assert worst.checkpoint.path == "/branches/0"
    assert worst.config != best.config

"""What of Ray Tune a study uses: where trials are placed, and which of them go on.

Ray Tune saves its searchers and forgets its schedulers; those here keep what they know in a small
JSON file of the study, and read it when the study is resumed.
"""

import json
from typing import TYPE_CHECKING, Any, cast

from ray import tune
from ray.tune.experiment import Trial
from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    FIFOScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain, Float, Integer, Quantized

from spark_ray.core.errors import MissingDependency
from spark_ray.core.storage import Folder
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import (
    objectives_of,
    read_trial,
    read_trials,
    write_trial,
)
from spark_ray.training.search.space import (
    Choice,
    FloatRange,
    IntRange,
    Parameter,
    explorer,
    grid_values,
)

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController

SCHEDULER = "scheduler.json"
_GRACE_SHARE = 8


def domain(parameter: Parameter) -> Any:
    """The parameter as Ray Tune draws it. Its ranges of whole numbers leave the last one out."""
    if isinstance(parameter, Choice):
        return tune.choice(parameter.ends())
    if parameter.step:
        return _stepped(parameter)
    low, high = parameter.min, parameter.max
    if isinstance(parameter, FloatRange):
        return tune.loguniform(low, high) if parameter.log else tune.uniform(low, high)
    draw = tune.lograndint if parameter.log else tune.randint
    return draw(int(low), int(high) + 1)


class _Steps(Quantized):
    """Any of the steps of a range from its `min` on. Ray's own are multiples of the step."""

    def sample(
        self, domain: Any, config: Any = None, size: int = 1, random_state: Any = None
    ) -> Any:
        count = round((domain.upper - domain.lower) / self.q) + 1
        number = Integer(0, count).uniform()
        drawn = number.sample(size=size, random_state=random_state)
        if size == 1:
            return domain.cast(domain.lower + drawn * self.q)
        return [domain.cast(domain.lower + one * self.q) for one in drawn]


def _stepped(parameter: FloatRange | IntRange) -> Domain:
    assert parameter.step is not None
    low, high = cast(list[float], parameter.ends())
    steps: Domain = (
        Float(low, high).uniform()
        if isinstance(parameter, FloatRange)
        else Integer(int(low), int(high)).uniform()
    )
    steps.set_sampler(_Steps(steps.get_sampler(), parameter.step), allow_override=True)
    return steps


def param_space(config: StudyConfig) -> dict[str, Any]:
    if config.search == "grid":
        return {path: tune.grid_search(v) for path, v in grid_values(config.space).items()}
    return {path: domain(parameter) for path, parameter in config.space.items()}


def searcher(config: StudyConfig, trials_at_once: int) -> Any:
    """
    Raises:
        MissingDependency: Optuna is not installed.
    """
    if config.search == "optuna":
        try:
            import optuna
        except ImportError as error:
            raise MissingDependency("optuna", "tune", "search optuna") from error
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        several = len(config.metric) > 1
        search = OptunaSearch(
            metric=config.metric if several else config.metric[0],
            mode=list(config.mode) if several else config.mode[0],
            seed=config.search_seed,
        )
        return Limiter(search, max_concurrent=trials_at_once)
    # The whole population of pbt is begun, and takes turns.
    most = 0 if config.scheduler == "pbt" else trials_at_once
    return Variants(max_concurrent=most, random_state=config.search_seed)


class _RoomOfNow:
    """A searcher that, when it is restored, keeps to the room that there is now."""

    max_concurrent: int

    def set_state(self, state: dict[str, Any]) -> None:
        now = {"max_concurrent": self.max_concurrent}
        super().set_state({**state, **now})  # type: ignore[misc]


class Limiter(_RoomOfNow, ConcurrencyLimiter):
    """No more trials from Optuna than run, so that each is placed by all that is known."""


class Variants(_RoomOfNow, BasicVariantGenerator):
    """Random points, or those of a grid."""


def scheduler(config: StudyConfig, steps: int) -> TrialScheduler:
    """
    Args:
        steps: of the longest trial.
    """
    if config.scheduler == "none":
        return FIFOScheduler()
    objective = {"metric": config.metric[0], "mode": config.mode[0]}
    if config.scheduler == "pbt":
        return Population(config, **objective)
    # At its last step a trial has nothing left to be spared: what came so far leaves its model.
    longest = max(1, steps - 1)
    grace = min(config.grace_steps or max(1, steps // _GRACE_SHARE), longest)
    return Halving(
        config.study_dir,
        time_attr="step",
        max_t=longest,
        grace_period=grace,
        reduction_factor=config.reduction_factor,
        brackets=config.brackets if config.scheduler == "hyperband" else 1,
        stop_last_trials=False,
        **objective,
    )


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving (https://arxiv.org/abs/1810.05934) that asks trials to end.

    Ray Tune would kill a stopped trial, and its training would leave a placement group behind,
    whose CPUs nobody could use. Here the trial reads in its record that it shall end, and does.

    With several brackets this is HyperBand, without its rounds in which trials wait for others.
    """

    def __init__(self, study_dir: str, **options: Any) -> None:
        super().__init__(**options)
        self._folder = Folder(study_dir)
        self._read = False

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        if not self._read:
            self._restore()
        if trial.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, trial)

    def on_trial_result(
        self, tune_controller: "TuneController", trial: Trial, result: dict[str, Any]
    ) -> str:
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self._ask_to_end(trial.trial_id, int(result[self._time_attr]))
        self._save()
        return str(TrialScheduler.CONTINUE)

    def _ask_to_end(self, trial_id: str, step: int) -> None:
        trial = read_trial(self._folder, trial_id)
        if trial.state == "stopped":
            return
        trial.state = "stopped"
        trial.reason = f"others were better at step {step}"
        write_trial(self._folder, trial)

    def _save(self) -> None:
        numbers = {id(bracket): number for number, bracket in enumerate(self._brackets)}
        state = {
            "trials": {name: numbers[id(bracket)] for name, bracket in self._trial_info.items()},
            "rungs": [bracket._rungs for bracket in self._brackets],
        }
        self._folder.write(SCHEDULER, json.dumps(state).encode())

    def _restore(self) -> None:
        self._read = True
        if not self._folder.exists(SCHEDULER):
            return
        state = json.loads(self._folder.read(SCHEDULER))
        for bracket, rungs in zip(self._brackets, state["rungs"], strict=True):
            bracket._rungs = [(milestone, dict(found)) for milestone, found in rungs]
        self._trial_info = {
            name: self._brackets[number] for name, number in state["trials"].items()
        }


class Population(PopulationBasedTraining):
    """Population-based training (https://arxiv.org/abs/1711.09846), compared at whole epochs.

    Parameters stay in their ranges. When a study is resumed, scores are those that were reported,
    and what others may go on from are the checkpoints that were.
    """

    def __init__(self, config: StudyConfig, **options: Any) -> None:
        super().__init__(
            time_attr="epochs",
            perturbation_interval=config.perturbation_epochs,
            hyperparam_mutations={path: _mutation(p) for path, p in config.space.items()},
            quantile_fraction=config.quantile_fraction,
            custom_explore_fn=explorer(config.space),
            log_config=False,
            **options,
        )
        self._folder = Folder(config.study_dir)
        self._objective = objectives_of(config)[0]

    def on_trial_add(self, tune_controller: "TuneController", trial: Trial) -> None:
        super().on_trial_add(tune_controller, trial)
        known = {record.trial_id: record for record in read_trials(self._folder)}
        record = known.get(trial.trial_id)
        if record is None or not record.reports:
            return
        last = record.reports[-1]
        state = self._trial_state[trial]
        state.last_score = -self._objective.sign * last.metrics[self._objective.metric]
        state.last_train_time = state.last_perturbation_time = int(last.metrics["epochs"])
        state.last_checkpoint, state.last_result = trial.checkpoint, trial.last_result


def _mutation(parameter: Parameter) -> Any:
    return parameter.ends() if isinstance(parameter, Choice) else domain(parameter)

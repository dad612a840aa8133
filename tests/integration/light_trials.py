"""Trials that report to Ray Tune as real ones do, and train nothing."""

import math
import tempfile
from pathlib import Path
from typing import Any

from ray import tune

from spark_ray.core.storage import Folder
from spark_ray.training.cluster import RunContext
from spark_ray.training.config import TrainConfig
from spark_ray.training.run import TrainResult
from spark_ray.training.search import trial
from spark_ray.training.search.records import read_trial
from spark_ray.training.search.trial import MODEL_KEY, RUN_KEY, TrialSetup
from spark_ray.training.state import CHECKPOINT_PREFIX, RUN, TrainState
from spark_ray.training.worker import NonFiniteError

FRESH_LOSS = 10.0


def run_trial(config: dict[str, Any], setup: TrialSetup) -> None:
    """A report for each of the run's `max_steps`; how low the loss gets depends on the rate."""
    trial_id = tune.get_context().get_trial_id()
    assert trial_id is not None
    rate = config["learning_rate"]
    if rate > 1:
        with trial.reason_kept(setup.folder, trial_id):
            raise NonFiniteError("loss or gradient was not finite")
    for step in range(1, setup.config.train["max_steps"] + 1):
        metrics = {"loss": -math.log(rate) / step, "grad_norm": rate * 1e4}
        tune.report({**metrics, "step": step, RUN_KEY: trial_id, MODEL_KEY: False})
        if read_trial(setup.folder, trial_id).state == "stopped":
            return


def run_intervals(config: dict[str, Any], setup: TrialSetup) -> None:
    """A trial of a population as it is, but that its runs are calculated."""
    trial.train = calculate  # in the trial's own process
    trial.run_trial(config, setup)


def calculate(config: TrainConfig, context: RunContext) -> TrainResult:
    """A run whose loss goes down by its rate in every step, from wherever it begins."""
    output = Folder(config.output_dir)
    state = TrainState(world_size=1, metrics={"loss": FRESH_LOSS})
    if any(name.startswith(CHECKPOINT_PREFIX) for name in output.children()):
        _, state = TrainState.newest(output)
    elif context.parent is not None:
        with context.parent.as_directory() as folder:
            state = TrainState.load(Path(folder))
    assert config.max_steps is not None
    state.metrics["loss"] -= (config.max_steps - state.step) * config.learning_rate
    state.step = config.max_steps
    with tempfile.TemporaryDirectory() as folder:
        state.save(Path(folder))
        file = Path(folder) / "state.json"
        output.write(f"{CHECKPOINT_PREFIX}{state.step:08d}/{file.name}", file.read_bytes())
    output.write(RUN, b"{}")
    return TrainResult(output, output / "model", state.step, state.metrics, None)

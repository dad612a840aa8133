"""Which checkpoint is the best, and where it can go."""

import math
from pathlib import Path
from types import SimpleNamespace

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training.state import RUN, TrainState, require_reachable
from spark_ray.training.worker import Worker


def test_a_validated_checkpoint_is_better_than_any_other_and_the_newest_of_those() -> None:
    early = TrainState(world_size=1, step=150)
    later = TrainState(world_size=1, step=300)
    poor = TrainState(world_size=1, step=400, validation_loss=7.5)
    good = TrainState(world_size=1, step=500, validation_loss=0.1)
    broken = TrainState(world_size=1, step=600, validation_loss=math.nan)
    ranked = sorted((broken, early, poor, later, good), key=lambda state: state.score)
    assert ranked == [good, poor, broken, later, early]


def test_a_folder_of_the_drivers_node_alone_is_noticed_when_a_worker_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not at the first checkpoint, hours later."""
    monkeypatch.setattr("ray.get", lambda reference: reference)
    plan = SimpleNamespace(config=SimpleNamespace(output_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"output_dir: .* give one that all nodes share"):
        Worker(SimpleNamespace(plan=plan), tmp_path)
    (tmp_path / RUN).write_text("{}")
    require_reachable(str(tmp_path))

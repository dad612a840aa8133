"""Which checkpoint is the best, and where it can go."""

import math
import multiprocessing
import os
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training.state import RUN, TrainState, require_reachable, scratch_folder
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
    tmp_path: Path,
) -> None:
    """And not at the first checkpoint, hours later."""
    plan = SimpleNamespace(config=SimpleNamespace(output_dir=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"output_dir: .* give one that all nodes share"):
        Worker(SimpleNamespace(), plan, tmp_path)
    (tmp_path / RUN).write_text("{}")
    require_reachable(str(tmp_path))


def test_what_a_killed_worker_left_is_removed_by_the_runs_next_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by one of another Ray node, as the same command starts it after a kill of the first."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    killed = multiprocessing.get_context("fork").Process(target=_begin_and_die, args=["/runs/a"])
    killed.start()
    killed.join()
    (left,) = tmp_path.iterdir()
    with scratch_folder("/runs/b"):
        assert left.is_dir()
    with scratch_folder("/runs/a") as first, scratch_folder("/runs/a") as second:
        assert not left.exists()
        assert first.is_dir(), "it is of a worker that lives"
        assert second.is_dir()
    assert not any(tmp_path.iterdir())


def _begin_and_die(output_dir: str) -> None:
    with scratch_folder(output_dir) as folder:
        (folder / "checkpoint").mkdir()
        os._exit(0)

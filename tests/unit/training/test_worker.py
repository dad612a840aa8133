"""What a rank keeps on its own disk, and for how long: checkpoints on their way; what it tells."""

import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from spark_ray.training import worker as training
from spark_ray.training.engines import StepOutcome
from spark_ray.training.meter import StepRecord
from spark_ray.training.plan import Segment
from spark_ray.training.state import TrainState
from spark_ray.training.worker import NonFiniteError, Worker, train_worker

PLAN = SimpleNamespace(config=SimpleNamespace(output_dir="/runs/a"), segments_from=lambda _: ())


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    made = object.__new__(Worker)
    made.job, made.plan, made.scratch = SimpleNamespace(plan=None), PLAN, tmp_path
    made.rank, made.world_size, made.name = 0, 1, "a"
    made.state = TrainState(world_size=1)
    return made


def test_a_checkpoint_stands_still_for_the_one_before_it(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    """One at a time, or those that wait for slow storage fill the disk; operators see the time."""
    done: list[str] = []
    now_s = [0.0]

    def upload() -> None:
        done.append("uploaded")
        now_s[0] += 7.0

    stood_still: list[float] = []
    monkeypatch.setattr(training, "_await_upload", upload)
    monkeypatch.setattr(training, "time", SimpleNamespace(perf_counter=lambda: now_s[0]))
    monkeypatch.setattr(training, "save_model", lambda *_: None)
    monkeypatch.setattr(training, "report_checkpoint", lambda _, s: stood_still.append(s))
    monkeypatch.setattr("ray.get", lambda _: None)
    monkeypatch.setattr("ray.train.report", lambda *_, **__: done.append("reported"))
    worker.job = SimpleNamespace(
        model_config=None, board=SimpleNamespace(flush=SimpleNamespace(remote=lambda: None))
    )
    engine: Any = SimpleNamespace(
        module=None,
        state_bytes=lambda: 0,
        save=lambda _: done.append("written"),
        full_state=lambda keep: {},
    )
    worker._checkpoint(engine)
    assert done == ["uploaded", "written", "reported"]
    assert stood_still == [7.0]


def test_an_error_does_not_take_the_folder_from_under_an_upload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Or what Ray is told first is that the upload finds nothing, and it trains again."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ray.get", lambda value: value)
    uploaded: list[bool] = []

    class Failing:
        def __init__(self, _job: Any, _plan: Any, scratch: Path) -> None:
            self.checkpoint = scratch / "step-00000004"
            self.checkpoint.mkdir()
            monkeypatch.setattr(
                training, "_await_upload", lambda: uploaded.append(self.checkpoint.is_dir())
            )

        def run(self) -> None:
            raise NonFiniteError("step 5: loss or gradient was not finite")

    monkeypatch.setattr(training, "Worker", Failing)
    with pytest.raises(NonFiniteError):
        train_worker({"job": SimpleNamespace(plan=PLAN)})
    assert uploaded == [True]
    assert not any(tmp_path.iterdir())


def test_the_copy_of_a_checkpoint_goes_when_it_was_read(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """With what it was converted to it would take twice a checkpoint's room until the run's end."""
    copy = tmp_path / "checkpoint"
    copy.mkdir()
    worker.state.save(copy)
    read: list[bool] = []
    monkeypatch.setattr(worker, "_fetch_checkpoint", lambda: copy)
    monkeypatch.setattr(worker, "_tell_environment", dict)
    monkeypatch.setattr(worker, "_next_engine", lambda *_: read.append(copy.is_dir()))
    monkeypatch.setattr(training, "load_batches", lambda *_: iter(()))
    monkeypatch.setattr("ray.get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "n"))
    worker.plan = SimpleNamespace(**vars(PLAN), stage_before=lambda _: 0, stages=[None])
    worker.device = torch.device("cpu")
    worker.run()
    assert read == [True]
    assert not copy.exists()


def test_rank_0_tells_where_it_trains(worker: Worker):
    """The driver and the board are on another node, perhaps."""
    told: list[dict[str, str]] = []
    remote = SimpleNamespace(remote=told.append)
    worker.job = SimpleNamespace(board=SimpleNamespace(runs_in=remote))
    found = []
    for worker.rank in (0, 1):
        found.append(worker._tell_environment())
    assert told == found[:1]
    assert {"gpus", "torch"} <= told[0].keys()


def test_the_rates_of_parts_are_told_with_that_of_the_step(
    worker: Worker, monkeypatch: pytest.MonkeyPatch
):
    told: list[dict[str, float]] = []
    monkeypatch.setattr(training, "report_step", lambda *_: None)
    remote = SimpleNamespace(remote=lambda _step, metrics: told.append(metrics))
    worker.job = SimpleNamespace(board=SimpleNamespace(stepped=remote))
    worker.plan = SimpleNamespace(stages=[SimpleNamespace(part_rates={"vision": 0.1})])
    worker.device = torch.device("cpu")
    step = StepRecord({"loss": 1.0}, 2e-3, StepOutcome(True, 1.0), 1.0, 0.0, 4.0, 9.0, 0.0, None, 1)
    worker._tell(Segment(0, 1, 0, 0, validation=False), step)
    assert told[0]["learning_rate"] == 2e-3
    assert told[0]["learning_rate_vision"] == pytest.approx(2e-4)

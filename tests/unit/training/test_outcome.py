"""What is taken from a run's checkpoints when it is over."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from spark_ray.core.storage import Folder
from spark_ray.training import outcome
from spark_ray.training.outcome import leave_behind
from spark_ray.training.state import TrainState


def test_of_the_best_checkpoint_the_model_is_fetched_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The state of its optimizer may be larger than the disk of the driver's machine."""
    run, checkpoints = tmp_path / "run", []
    for step, loss in ((4, 0.5), (8, 0.7)):
        checkpoint = run / f"step-{step:08d}-ranks-1"
        (checkpoint / "model").mkdir(parents=True)
        TrainState(world_size=1, metrics={"validation_loss": loss}).save(checkpoint)
        (checkpoint / "optimizer.pt").write_text("moments")
        (checkpoint / "model" / "model.safetensors").write_text(f"weights of step {step}")
        # Of Ray's references all that counts is the name: `as_directory` fetches everything.
        checkpoints.append((SimpleNamespace(path=str(checkpoint)), {"score": loss}))
    monkeypatch.setattr(outcome, "write_model_card", lambda _: None)
    record = SimpleNamespace(write=lambda folder: (folder / "training.json").touch())
    monkeypatch.setattr(outcome, "_training_record", lambda *_: record)
    folder = tmp_path / "here"
    folder.mkdir()
    plan: Any = SimpleNamespace(config=SimpleNamespace(output_dir=str(run), register_as=None))
    result: Any = SimpleNamespace(best_checkpoints=checkpoints)
    index: Any = None
    metrics, registered = leave_behind(folder, plan, index, result, None)
    assert metrics == {"validation_loss": 0.5}
    assert registered is None
    model = Folder(str(run / "model"))
    assert model.names() == ["model.safetensors", "training.json"]
    assert model.read("model.safetensors") == b"weights of step 4"

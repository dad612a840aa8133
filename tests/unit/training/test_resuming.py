"""What a run says when it goes on, and the step that it says."""

import json
from pathlib import Path

import pytest

from spark_ray.core.storage import Folder
from spark_ray.training import run
from spark_ray.training.board import Board
from spark_ray.training.cluster import resumed_step
from spark_ray.training.config import TrainConfig


def checkpointed(folder: Path, *steps: int) -> None:
    """What Ray Train leaves in a run's folder: the record that it resumes by."""
    results = [
        {"checkpoint_dir_name": f"step-{step:08d}-ranks-1", "metrics": {"step": step, "score": 1.0}}
        for step in steps
    ]
    for result in results:
        (folder / str(result["checkpoint_dir_name"])).mkdir()
    record = {"checkpoint_results": results, "latest_checkpoint_result": results[-1]}
    (folder / "checkpoint_manager_snapshot.json").write_text(json.dumps(record))


def test_a_run_goes_on_from_the_checkpoint_that_ray_recorded(tmp_path: Path):
    assert resumed_step(Folder(str(tmp_path))) is None
    checkpointed(tmp_path, 20, 40)
    (tmp_path / "step-00000060-ranks-1").mkdir()  # its upload was cut off
    assert resumed_step(Folder(str(tmp_path))) == 40


@pytest.mark.parametrize(
    ("steps", "said"),
    [((), ", from its start: it had no checkpoint yet"), ((20, 40), ", from step 40")],
)
def test_resuming_says_from_where(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], steps: tuple[int, ...], said: str
):
    config = TrainConfig.from_values(dataset="x", output_dir=str(tmp_path))
    (tmp_path / "run.json").write_text(json.dumps({"settings": {}}))
    if steps:
        checkpointed(tmp_path, *steps)
    run._earlier_run(Folder(str(tmp_path)), config, {})
    assert capsys.readouterr().err == f"  resumes      the run in {tmp_path}{said}\n"


def test_steps_that_are_done_again_are_counted_once():
    class Tracker:
        def log_step(self, step: int, metrics: dict[str, float]) -> None: ...

    board = Board()
    board.tracker = Tracker()
    metrics = {"samples_per_s": 8.0, "tokens_per_s": 80.0, "step_s": 0.5}
    for step in (1, 2, 1, 2, 3):
        board.stepped(step, metrics)
    step, _, seen = board.last()
    assert (step, seen) == (3, {"clips": 12.0, "tokens": 120.0})

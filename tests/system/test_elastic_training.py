"""Training on a cluster that shrinks: the run goes on with the workers that are left."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import builds
import pytest
from clusters import Node

sys.path.append(str(Path(__file__).parents[1] / "unit" / "datasets"))
from fake_version import make_clip, write_version

STEPS = 100


def settings(folder: Path) -> dict[str, Any]:
    """Either node has room for one worker and its data actor, and no more."""
    return {
        "dataset": str(folder / "sets" / "films"),
        "output_dir": str(folder / "runs" / "elastic"),
        "epochs": 20,
        "max_steps": STEPS,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "mixed_precision": "fp32",
        "engine": "zero2",
        "num_workers": [1, 2],
        "cpus_per_worker": 1.5,
        "data_cpus": 0.5,
        "threads_per_worker": 1,
        "max_frames": 2,
        "checkpoint_every_steps": 5,
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "curriculum": [{"name": "pictures", "epochs": 20, "modalities": ["text", "image"]}],
    }


@pytest.mark.nightly
@pytest.mark.timeout(1200)  # each start of the workers imports torch and DeepSpeed anew
def test_a_run_goes_on_with_the_workers_that_are_left(
    head: dict[str, Any], second_node: Node, environment: dict[str, str], tmp_path: Path
) -> None:
    clips = [
        make_clip(number, source=f"/films/{number}.mp4", caption=f"number {number}", dropped=())
        for number in range(24)
    ]
    write_version(tmp_path / "sets" / "films", clips)
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(settings(tmp_path)))
    run = tmp_path / "runs" / "elastic"
    driver = subprocess.Popen(
        [sys.executable, "-m", "spark_ray.cli", "train", "apotheon", "--config", str(file)],
        env={
            **environment,
            "RAY_ADDRESS": head["address"],
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    builds.wait_until(
        lambda: any(run.glob("step-*/state.json")), "a checkpoint", driver=driver, seconds=400
    )
    assert second_node.works_on("RayTrainWorker"), "the second node was to train as well"
    second_node.kill()
    printed, _ = driver.communicate(timeout=600)

    assert driver.returncode == 0, printed
    record = json.loads((run / "model" / "training.json").read_text())
    assert record["steps"] == STEPS
    assert record["world_size"] == 1

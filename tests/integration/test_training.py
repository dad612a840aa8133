"""Training for real: two ranks of DeepSpeed on Ray Train, fed by Ray Data, killed and resumed."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import boto3
import psutil
import pytest
import torch
from builds import processes, wait_until
from films import write_films
from mlflow import MlflowClient
from mlflow.entities import Run
from ray.train import Checkpoint
from safetensors.torch import load_file
from scraping import scrape, total

from spark_ray.core.storage import Folder
from spark_ray.datasets.samples import load_index, read_clip
from spark_ray.models.apotheon import Apotheon
from spark_ray.models.training_record import TrainingRecord
from spark_ray.training.checks import prepare
from spark_ray.training.cluster import RunContext
from spark_ray.training.config import TrainConfig
from spark_ray.training.run import TrainResult, train
from spark_ray.training.state import TrainState

STEPS = 8
# Each start of Ray Train imports torch and DeepSpeed anew, in a dozen processes.
pytestmark = pytest.mark.timeout(2000)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets") / "films"
    write_films(root)
    return root


def settings(dataset: Path, output: Path) -> dict[str, object]:
    return {
        "dataset": str(dataset),
        "output_dir": str(output),
        "epochs": 2,
        "max_steps": STEPS,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "learning_rate": 1e-3,
        "mixed_precision": "fp32",
        "engine": "zero2",
        "num_workers": [2],
        "threads_per_worker": 1,
        "max_frames": 4,
        "checkpoint_every_steps": 1,
        "augment_mirror": 0.5,
        "tracking_uri": f"sqlite:///{output.parent}/mlflow.db",
        "curriculum": [
            {"name": "pictures", "epochs": 1, "modalities": ["text", "image"]},
            {
                "name": "films",
                "epochs": 1,
                "modalities": ["text", "audio", "video"],
                "part_rates": {"vision": 0.5},
            },
        ],
    }


@pytest.fixture(scope="module")
def undisturbed(
    cluster: str, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> TrainResult:
    output = tmp_path_factory.mktemp("runs") / "undisturbed"
    result = train(TrainConfig.from_values(**settings(dataset, output)))
    assert result.steps == STEPS
    return result


def test_a_run_leaves_a_model_that_anybody_can_load(undisturbed: TrainResult, dataset: Path):
    folder = Path(undisturbed.model)
    record = TrainingRecord.read(folder)
    assert record.dataset.location == str(dataset / "v1")
    assert record.dataset.decoding["fps"] == 1.0, "how its clips were sampled, for the server"
    assert record.steps == STEPS
    assert record.world_size == 2
    assert [stage["name"] for stage in record.curriculum] == ["pictures", "films"]
    assert record.environment["torch"] == torch.__version__
    assert "# " in (folder / "README.md").read_text()

    apotheon = Apotheon.load(str(folder), setting="model")
    row = load_index(str(dataset)).table.slice(1, 1).to_pylist()[0]
    found = read_clip(load_index(str(dataset)).version, row)
    clip = apotheon.prepare(found.frames, row["frame_times"], found.audio)
    assert len(apotheon.write([clip], "caption", max_new_tokens=5)) == 1


def test_every_step_is_logged_with_all_that_was_measured(undisturbed: TrainResult):
    history = histories(undisturbed.output, database_beside(undisturbed.output))
    assert [step for step, _ in history["loss"]] == list(range(1, STEPS + 1))
    for name in ("caption_loss", "learning_rate", "grad_norm", "data_wait", "samples_per_s"):
        assert len(history[name]) == STEPS
    assert {0.0, 1.0} == {value for _, value in history["stage"]}
    tags = tracked(undisturbed.output, database_beside(undisturbed.output)).data.tags
    assert tags["torch"] == torch.__version__, "as rank 0 has it"


def test_operators_see_the_steps(undisturbed: TrainResult):
    """What the ranks told their node's agent outlives them, but for the last seconds'."""
    run = Path(undisturbed.output.location).name

    def steps() -> float:
        return total(scrape(), "ray_spark_ray_train_steps_total", run=run)

    wait_until(lambda: steps() > 0, "steps that Prometheus can scrape")
    seen = scrape()
    assert total(seen, "ray_spark_ray_train_samples_total", run=run) >= 4 * steps() > 0
    assert total(seen, "ray_spark_ray_train_tokens_total", run=run) > 0
    assert total(seen, "ray_spark_ray_train_step_seconds_count", run=run) > 0


@pytest.mark.nightly
def test_a_trial_that_takes_another_over_begins_with_its_weights(
    undisturbed: TrainResult, dataset: Path, tmp_path: Path
):
    """At the end of a stage: the next one begins with them. Its losses are those of the same clips
    under the same weights, on one rank in the place of two."""
    values = settings(dataset, tmp_path / "branch") | {"num_workers": [1], "batch_size": 4}
    plan, _ = prepare(TrainConfig.from_values(**values), load_index(str(dataset)))
    boundary = plan.stage_steps[0].stop
    parent = f"step-{boundary:08d}-ranks-2"
    assert TrainState.read(undisturbed.output.sub(parent)).step == boundary < STEPS
    branch = train(
        TrainConfig.from_values(**values),
        RunContext(parent=Checkpoint(undisturbed.output / parent)),
    )
    taken = histories(branch.output, database_beside(branch.output))["loss"]
    expected = histories(undisturbed.output, database_beside(undisturbed.output))["loss"]
    assert taken == [(step, pytest.approx(loss, rel=1e-3)) for step, loss in expected[boundary:]]


def test_killed_workers_and_a_killed_driver_change_nothing(
    undisturbed: TrainResult,
    s3: str,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    """In a bucket: a rank dies after the first checkpoint, the driver in the second stage."""
    values = settings(dataset, tmp_path / "unused")
    values["output_dir"] = location = "s3://sets/runs/disturbed"
    file = tmp_path / "train.yaml"
    file.write_text(json.dumps(values))
    command = [sys.executable, "-m", "spark_ray.cli", "train", "apotheon", "--config", str(file)]
    log = tmp_path / "log"
    with log.open("w") as said:
        driver = subprocess.Popen(command, stderr=said, stdout=said, text=True)
    try:
        wait_for_checkpoint(driver, location, step=2)
        ranks()[-1].kill()
        wait_for_checkpoint(driver, location, step=6)
    except AssertionError as error:
        error.add_note(log.read_text())
        raise
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    result = train(TrainConfig.from_values(**values))
    assert f"the run in {location}, from step " in capsys.readouterr().err
    assert result.steps == STEPS
    model = tmp_path / "model"
    result.output.sub("model").download(model)
    assert TrainingRecord.read(model).steps == STEPS
    weights = load_file(Path(undisturbed.model) / "model.safetensors")
    resumed = load_file(model / "model.safetensors")
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    expected = histories(undisturbed.output, database_beside(undisturbed.output))["loss"]
    assert histories(result.output, str(values["tracking_uri"]))["loss"] == expected

    bucket = boto3.client("s3", endpoint_url=s3)
    before = bucket.list_objects_v2(Bucket="sets", Prefix="runs/disturbed/")["Contents"]
    assert train(TrainConfig.from_values(**values)) == result
    assert "nothing is left to do" in capsys.readouterr().err
    after = bucket.list_objects_v2(Bucket="sets", Prefix="runs/disturbed/")["Contents"]
    assert [o["LastModified"] for o in after] == [o["LastModified"] for o in before]


def wait_for_checkpoint(driver: subprocess.Popen[str], location: str, step: int) -> None:
    """Until both ranks have written one of this step or a later one.

    The bucket's server is in this process: what it tells here, it can't tell to the ranks.
    """
    run, wanted = Folder(location), f"step-{step:08d}"

    def is_there() -> bool:
        return any(name >= wanted and name.endswith("/rng-1.pt") for name in run.names())

    what = f"checkpoint of step {step}"
    wait_until(is_there, what, driver=driver, seconds=600, pause_s=1.0)


def ranks() -> list[psutil.Process]:
    """The processes that train, among those of this session's cluster."""
    found = processes(psutil.Process(), "RayTrainWorker")
    assert len(found) == 2, "two ranks should be training"
    return found


def database_beside(output: Folder) -> str:
    return f"sqlite:///{Path(output.location).parent}/mlflow.db"


def tracked(output: Folder, tracking_uri: str) -> Run:
    record = json.loads(output.read("run.json"))
    return MlflowClient(tracking_uri).get_run(record["tracking_run"])


def histories(output: Folder, tracking_uri: str) -> dict[str, list[tuple[int, float]]]:
    """Step and value of every metric, as MLflow has them."""
    client, run = MlflowClient(tracking_uri), tracked(output, tracking_uri)
    return {
        name: [(m.step, m.value) for m in client.get_metric_history(run.info.run_id, name)]
        for name in run.data.metrics
    }

"""A study's settings: contradictions are named before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training.search.config import StudyConfig

RATE = {"type": "float", "min": 1e-5, "max": 1e-3, "log": True}


def config(**values: Any) -> StudyConfig:
    given = {
        "study_dir": "studies/x",
        "train": {"dataset": "sets/x", "epochs": 4},
        "space": {"learning_rate": RATE},
    }
    return StudyConfig.from_values(**{**given, **values})


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"space": {}}, "space"),
        ({"space": {"learning_rate": {"type": "float", "min": 1}}}, "^space: learning_rate: max"),
        ({"metric": ["a", "b"], "mode": ["min"] * 3}, "mode: has 3 entries, and metric 2"),
        ({"metric": ["a", "a"], "search": "optuna"}, "names one twice"),
        ({"metric": ["a", "b"]}, "need search optuna and scheduler none"),
        ({"metric": ["a", "b"], "search": "optuna", "scheduler": "asha"}, "scheduler none"),
        ({"train": {"dataset": "x", "output_dir": "y"}}, "output_dir belongs to the study"),
        ({"train": {"epochs": 3}}, "dataset is required: give --dataset or --manifest-path"),
        ({"search": "grid"}, "needs points"),
        ({"tracking_uri": "foo://bar"}, "^tracking_uri: MLflow knows no foo://; give http://"),
        ({"scheduler": "pbt", "search": "optuna"}, "pbt changes parameters by itself"),
        ({"scheduler": "pbt", "num_samples": 1}, "population of 2"),
        (
            {"scheduler": "pbt", "space": {"batch_size": {"type": "int", "min": 1, "max": 4}}},
            "batch_size can't change",
        ),
        (
            {"scheduler": "pbt", "train": {"dataset": "x", "validate_every_epochs": 2}},
            "perturbation_epochs: 1 is no multiple of validate_every_epochs",
        ),
        ({"train": {"dataset": "x", "num_workers": [1, 2]}}, "a fixed number of workers"),
        (
            {"space": {"engine": {"type": "choice", "values": ["ddp", "zero9"]}}},
            "a trial with engine=zero9 can't be: engine",
        ),
        (
            {"space": {"batch_size": {"type": "float", "min": 1, "max": 9}}},
            "can't be: batch_size: .*integer",
        ),
        (
            {
                "train": {"dataset": "x", "offload": ["optimizer"]},
                "space": {"engine": {"type": "choice", "values": ["zero2", "ddp"]}},
            },
            "engine=ddp can't be: offload",
        ),
        (
            {"space": {"curriculum.video.epochs": {"type": "int", "min": 1, "max": 3}}},
            "its stages have 3 epochs together, but epochs is 4",
        ),
    ],
)
def test_what_can_not_be_searched_is_named(values: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        config(**values)


def test_a_point_of_the_space_is_a_training_run():
    study = config(
        space={"learning_rate": RATE, "curriculum.video.learning_rate_scale": RATE},
        experiment="rates",
        tracking_uri="sqlite:///x.db",
    )
    params = {"learning_rate": 2e-4, "curriculum.video.learning_rate_scale": 1e-4}
    run = study.trial_config(params, "studies/x/runs/one")
    assert (run.learning_rate, run.output_dir) == (2e-4, "studies/x/runs/one")
    assert (run.experiment, run.tracking_uri) == ("rates", "sqlite:///x.db")
    scales = {stage.name: stage.learning_rate_scale for stage in run.stages}
    assert scales == {"text and image": 1.0, "audio": 1.0, "video": 1e-4}


def test_one_mode_is_that_of_every_metric():
    study = config(metric=["loss", "step_s"], search="optuna")
    assert study.mode == ["min", "min"]


def test_paths_are_absolute_for_every_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = config().located()
    assert study.study_dir == str(tmp_path / "studies/x")
    assert study.train["dataset"] == str(tmp_path / "sets/x")
    assert study.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    sets = {"type": "choice", "values": ["sets/a", "s3://sets/b"]}
    chosen = config(train={"epochs": 4}, space={"dataset": sets}).located()
    assert chosen.space["dataset"].ends() == [str(tmp_path / "sets/a"), "s3://sets/b"]


def test_where_and_how_fast_it_runs_is_no_part_of_what_is_searched():
    one = config(max_concurrent=3, retry_failed=True).content_settings()
    assert one == config(ray_address="auto", study_dir="elsewhere").content_settings()
    assert one != config(num_samples=3).content_settings()


def test_the_example_is_a_study():
    example = Path(__file__).parents[4] / "jobs" / "tune_apotheon.yaml"
    study = StudyConfig.from_command_line(["--config", str(example)], "spark-ray tune")
    assert study.scheduler == "asha"

"""The training job's settings: the curriculum's shape, and mistakes that end in one sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from spark_ray.core.anatomy import TASKS
from spark_ray.core.errors import ConfigError
from spark_ray.training.config import TrainConfig, check_resumable
from spark_ray.training.curriculum import Stage, default_curriculum
from spark_ray.training.deepspeed_engine import deepspeed_config
from spark_ray.training.schedule import rate_at


def config(**values: Any) -> TrainConfig:
    return TrainConfig.from_values(**{"dataset": "sets/x", "output_dir": "runs/x", **values})


@pytest.mark.parametrize(
    ("epochs", "lengths"), [(10, [2, 3, 5]), (4, [1, 1, 2]), (2, [1, 1]), (1, [1])]
)
def test_the_default_curriculum_divides_the_epochs(epochs: int, lengths: list[int]):
    stages = default_curriculum(epochs, TASKS)
    assert [stage.epochs for stage in stages] == lengths
    assert stages[-1].modalities == ["text", "audio", "video"]


def test_without_captions_to_learn_there_is_sound_from_the_start():
    stages = default_curriculum(10, ["transcript"])
    assert [(stage.name, stage.epochs) for stage in stages] == [("audio", 5), ("video", 5)]


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"dataset": None}, "^dataset is required: give --dataset or --manifest-path, or set one"),
        ({"manifest_path": "m.jsonl"}, "^manifest_path: m.jsonl comes beside dataset sets/x; give"),
        ({"tracking_uri": "foo://u:p@bar"}, "^tracking_uri: MLflow knows no foo://; give http://"),
        ({"register_as": "our/model"}, "^register_as: 'our/model' can't be a model's name; use"),
        ({"epochs": 3, "curriculum": [Stage(name="a", epochs=2, modalities=["audio"])]}, "epochs"),
        (
            {
                "epochs": 1,
                "tasks": ["transcript"],
                "curriculum": [Stage(name="p", epochs=1, modalities=["text", "image"])],
            },
            "'p' shows text, image, but the run learns transcript alone",
        ),
        ({"num_workers": [4, 2]}, "num_workers"),
        ({"frozen": ["legs"]}, "choose one of: audio, contrastive, fusion"),
        ({"lora": ["fusion"]}, "choose one of: audio, text, vision"),
        ({"engine": "ddp", "offload": ["optimizer"]}, "not ddp"),
        ({"engine": "zero2", "offload": ["parameters"]}, "zero3"),
        ({"init_from": "a", "text_checkpoint": "b"}, "leave the part checkpoints out"),
        ({"mixed_precision": "int8"}, "bf16"),
    ],
)
def test_settings_that_contradict_each_other_are_named(values: dict[str, Any], sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        config(**values)


@pytest.mark.parametrize("modalities", [["text"], ["image", "video"], ["smell"]])
def test_a_stage_shows_something_and_not_twice(modalities: list[str]):
    with pytest.raises(ValueError):
        Stage(name="x", epochs=1, modalities=modalities)


def test_a_run_is_resumed_under_its_own_settings_alone():
    def settings(**values: Any) -> dict[str, Any]:
        made = config(**values)
        return {**made.content_settings(), "global_batch": made.global_batch}

    recorded = settings(learning_rate=1e-4)
    for same in ({"max_failures": 9, "data_workers": 2}, {"num_workers": [2], "batch_size": 2}):
        check_resumable("runs/x", settings(learning_rate=1e-4, **same), recorded)
    with pytest.raises(ConfigError, match=r"learning_rate: runs/x holds a run with 0\.0001"):
        check_resumable("runs/x", settings(learning_rate=2e-4), recorded)
    with pytest.raises(ConfigError, match="it was 4 in runs/x and is 8 now"):
        check_resumable("runs/x", settings(learning_rate=1e-4, num_workers=[2]), recorded)
    with pytest.raises(ConfigError, match="validate_every_epochs"):
        check_resumable("runs/x", settings(learning_rate=1e-4, validate_every_epochs=2), recorded)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_shipped_deepspeed_configurations_say_nothing_that_we_decide(stage: int):
    found = deepspeed_config(stage, None, [])
    assert found["zero_optimization"]["stage"] == stage
    assert not {"train_batch_size", "bf16", "fp16", "optimizer", "scheduler"} & set(found)


def test_a_file_may_change_deepspeed_but_not_what_we_decide(tmp_path: Path):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": {"overlap_comm": True}}))
    merged = deepspeed_config(2, str(file), ["optimizer"])["zero_optimization"]
    assert merged["overlap_comm"]
    assert merged["contiguous_gradients"]
    assert merged["offload_optimizer"]["device"] == "cpu"
    file.write_text(json.dumps({"train_batch_size": 7}))
    with pytest.raises(ConfigError, match="batch_size decides"):
        deepspeed_config(2, str(file), [])
    for content in ([1], {"zero_optimization": 3}):
        file.write_text(json.dumps(content))
        with pytest.raises(ConfigError, match="must be a JSON object"):
            deepspeed_config(2, str(file), [])
    file.write_text(json.dumps({"zero_optimization": {"overlap_com": True}}))
    with pytest.raises(ConfigError, match=r"'overlap_com' is unknown; .*overlap_comm"):
        deepspeed_config(2, str(file), [])
    file.write_text(json.dumps({"zero_optimization": {"stage": 3}}))
    with pytest.raises(ConfigError, match="engine is zero2"):
        deepspeed_config(2, str(file), [])
    file.write_text(json.dumps({"torch_autocast": {"enabled": True}}))
    with pytest.raises(ConfigError, match="mixed_precision decides"):
        deepspeed_config(2, str(file), [])


@pytest.mark.parametrize(
    ("zero", "sentence"),
    [
        ({"reduce_bucket_size": "large"}, r"zero_optimization\.reduce_bucket_size of .* integer"),
        ({"offload_optimizer": {"device": "tape"}}, r"\.offload_optimizer\.device of .*'nvme'"),
    ],
)
def test_a_value_that_deepspeed_would_refuse_is_said_before_workers_start(
    tmp_path: Path, zero: dict[str, Any], sentence: str
):
    file = tmp_path / "ds.json"
    file.write_text(json.dumps({"zero_optimization": zero}))
    with pytest.raises(ConfigError, match=sentence):
        deepspeed_config(2, str(file), [])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_rate_rises_and_falls_in_each_stage(schedule: Any):
    for stage in (range(40), range(40, 100)):
        rates = [rate_at(step, stage, 0.1, schedule) for step in stage]
        decay = [rate_at(step, stage, 0.0, schedule) for step in stage]
        warmup = len(stage) // 10
        assert rates[0] == pytest.approx(decay[0] / warmup)
        assert rates[warmup - 1 :] == decay[warmup - 1 :]
        assert decay[0] == 1.0
        assert decay == sorted(decay, reverse=True)
        assert decay[-1] == (1.0 if schedule == "constant" else pytest.approx(0, abs=0.03))


def test_a_mistake_in_the_curriculum_says_in_which_stage_and_field() -> None:
    stages = [
        {"name": "pictures", "epochs": 1, "modalities": ["image"]},
        {"name": "sound", "epochs": 0, "modalities": ["audio"]},
    ]
    with pytest.raises(ConfigError, match=r"^curriculum\[1\]\.epochs: "):
        TrainConfig.from_values(dataset="d", output_dir="o", epochs=1, curriculum=stages)


@pytest.mark.parametrize(
    "uri",
    ["http://mlflow:5000", "sqlite:////x/mlflow.db", "postgresql+psycopg://u@h/db", "databricks"],
)
def test_what_mlflow_can_reach_may_be_tracked_to(uri: str):
    assert config(tracking_uri=uri).tracking_uri == uri


def test_an_address_of_the_environment_is_checked_before_anything_is_planned(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "foo://bar")
    with pytest.raises(ConfigError, match=r"^MLFLOW_TRACKING_URI: MLflow knows no foo://"):
        config().located()

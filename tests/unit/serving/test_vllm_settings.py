"""Settings of models on vLLM, and what is said where it is not installed."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from spark_ray.core.errors import MissingDependency
from spark_ray.serving.app import build
from spark_ray.serving.settings import ModelSettings


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"num_gpus": 1.5}, "1.5 GPUs can't be had: give a part of one, or a whole number"),
        ({"reference": "models:/seer"}, "an engine holds one version"),
        ({"reference": None}, "backend vllm needs a reference"),
        ({"backend": "qwen2_vl", "cache_bytes": 1 << 26}, "no effect without backend vllm"),
    ],
)
def test_settings_that_mean_nothing_are_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ModelSettings.model_validate({"backend": "vllm", "reference": "some/model", **given})


@pytest.mark.skipif(importlib.util.find_spec("vllm") is not None, reason="vLLM is installed")
def test_without_vllm_the_extra_is_named(tmp_path: Path) -> None:
    models = {"seer": {"backend": "vllm", "reference": "some/model"}}
    with pytest.raises(MissingDependency, match=r"model 'seer' with backend vllm.*\[vllm\]"):
        build({"state": str(tmp_path), "models": models})

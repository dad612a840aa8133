"""What `ray.serve.llm` is told to do, from the settings of a model."""

from typing import Any

import pytest

from spark_ray.serving.settings import ModelSettings

pytest.importorskip("vllm", reason="vLLM is not installed here: run make test-vllm")
from spark_ray.serving.vllm import llm_config

OPTIONS = {"num_replicas": 1, "max_ongoing_requests": 16}


def settings(**given: Any) -> ModelSettings:
    return ModelSettings.model_validate({"backend": "vllm", "reference": "some/model", **given})


@pytest.mark.parametrize(
    ("gpus", "kind", "bundles", "parallel"),
    [
        (0, "cpu", [{"CPU": 1.5}], 1),
        (0.5, "gpu", [{"CPU": 1.5, "GPU": 0.5}], 1),
        (1, "gpu", [{"CPU": 1.5, "GPU": 1.0}], 1),
        (2, "gpu", [{"CPU": 1.5, "GPU": 1.0}] * 2, 2),
    ],
)
def test_a_model_takes_what_its_settings_set_aside(
    gpus: float, kind: str, bundles: list[dict[str, float]], parallel: int
) -> None:
    config = llm_config("seer", settings(num_gpus=gpus, num_cpus=1.5), OPTIONS)
    assert config.accelerator_config is not None
    assert config.accelerator_config.kind == kind
    assert config.placement_group_config == {"bundles": bundles, "strategy": "STRICT_PACK"}
    assert config.engine_kwargs["tensor_parallel_size"] == parallel
    share = config.engine_kwargs.get("gpu_memory_utilization")
    assert share == (0.45 if gpus == 0.5 else None)
    assert config.deployment_config["max_ongoing_requests"] == 16
    assert config.runtime_env is not None
    assert config.runtime_env["env_vars"]["VLLM_NO_USAGE_STATS"] == "1"


def test_an_engine_is_bounded_as_the_settings_say() -> None:
    given = settings(context_tokens=2048, cache_bytes=1 << 26, max_batch_size=32)
    engine = llm_config("seer", given, OPTIONS).engine_kwargs
    assert engine["max_model_len"] == 2048
    assert engine["kv_cache_memory_bytes"] == 1 << 26
    assert engine["max_num_seqs"] == 32

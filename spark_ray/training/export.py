"""The model as others load it."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.adaptation import merged_state
from spark_ray.training.plan import RunPlan


def save_model(
    folder: Path,
    weights: Mapping[str, Tensor],
    module: nn.Module,
    plan: RunPlan,
    config: ApotheonConfig,
) -> None:
    """Write a Hugging Face folder: adapters merged, in bf16 where it was trained in bf16.

    Args:
        weights: the whole state of `module`, in float32 on the CPU.
    """
    with torch.device("meta"):  # `weights` become its own, so that they are held once
        model = ApotheonModel(config)
    model.load_state_dict(merged_state(weights, module), assign=True)
    if plan.config.mixed_precision == "bf16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(folder)
    plan.processor.save_pretrained(folder)

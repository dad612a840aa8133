"""Our count of operations is that of PyTorch's own counter, whatever learns and is seen."""

from collections.abc import Mapping
from typing import Any

import apotheons
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from spark_ray.apotheon import ApotheonModel
from spark_ray.apotheon.adaptation import Lora, add_lora, set_trainable
from spark_ray.apotheon.flops import BatchShape, batch_flops, batch_shape, part_flops
from spark_ray.core.anatomy import PARTS, TASKS

MEDIA = {
    "frames": ("pixel_values", "frame_times", "frame_mask"),
    "audio": ("input_features", "audio_frames"),
}
ENCODERS = ("vision", "audio", "text")


def _counted(model: ApotheonModel, inputs: Mapping[str, torch.Tensor]) -> float:
    # The counter knows no fused attention of the CPU; the plain one is made of products.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**inputs).loss.backward()
    return counter.get_total_flops()


def _hidden_by_causal_masks(model: ApotheonModel, shape: BatchShape) -> float:
    """What plain attention computes and throws away, in Llama and in the fusion."""
    config, length = model.config, shape.text_tokens
    pairs = shape.texts * (length * length - length * (length + 1) / 2)
    text_passes = 3 if any(p.requires_grad for p in model.text.parameters()) else 1
    llama = text_passes * config.text_config.num_hidden_layers * config.text_config.hidden_size
    fusion = 3 * config.fusion_layers * config.fusion_hidden_size
    return 4 * pairs * (llama + fusion)


def _long_texts() -> dict[str, torch.Tensor]:
    """Many tokens, one picture, no sound: nearly all work is the text's."""
    tokens = torch.randint(3, 300, (2, 2, 120), generator=torch.Generator().manual_seed(0))
    small = {name: tensor[:2, :1] for name, tensor in apotheons.batch().items() if "frame" in name}
    small["pixel_values"] = apotheons.batch()["pixel_values"][:2, :1]
    small.pop("audio_frames")
    mask = torch.ones_like(tokens, dtype=torch.bool)
    return {**small, "input_ids": tokens, "labels": tokens, "text_mask": mask}


def _captions() -> dict[str, Any]:
    inputs: dict[str, Any] = _without("audio")
    for name in ("input_ids", "labels", "text_mask"):
        inputs[name] = inputs[name][:, :1]
    return {**inputs, "tasks": ("caption",)}


def _without(what: str) -> dict[str, torch.Tensor]:
    return {k: v for k, v in apotheons.batch().items() if k not in MEDIA[what]}


BATCHES = {
    "all": apotheons.batch,
    "frames": lambda: _without("audio"),
    "audio": lambda: _without("frames"),
    "texts": _long_texts,
    "captions": _captions,
}


@pytest.mark.parametrize(
    ("frozen", "adapted", "seen"),
    [
        *(((), ("text",), seen) for seen in BATCHES),
        ((), (), "all"),
        ((), ENCODERS, "all"),
        (("text",), (), "texts"),
        (ENCODERS, (), "all"),
        (ENCODERS, (), "captions"),
        (("fusion", "heads"), (), "frames"),
    ],
)
def test_count_agrees_with_that_of_pytorch(frozen, adapted, seen):
    model, inputs = apotheons.model().train(), BATCHES[seen]()
    add_lora(model, {part: Lora(rank=8) for part in adapted})
    shows = {"frames": "pixel_values" in inputs, "audio": "input_features" in inputs}
    set_trainable(model, frozen, **shows, tasks=inputs.get("tasks", TASKS))
    shape = batch_shape(model, inputs)

    ours = batch_flops(model, shape) + _hidden_by_causal_masks(model, shape)

    assert ours == pytest.approx(_counted(model, inputs), rel=0.005)


def test_parts_sum_up_to_the_whole_and_are_those_that_can_be_frozen():
    model = apotheons.model()
    shape = batch_shape(model, apotheons.batch())
    parts = part_flops(model, shape)

    assert sum(parts.values()) == batch_flops(model, shape)
    assert set(parts) == set(PARTS)

"""Which parts of an Apotheon learn: starting points, freezing, and low-rank adapters."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import CLIPVisionModel, LlamaModel, WhisperModel

from spark_ray.apotheon.modeling import ApotheonModel
from spark_ray.core.anatomy import LORA_TARGETS, PARTS, TASKS, VISION_STEM, Task
from spark_ray.core.errors import ModelError


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters of one encoder, whose own weights then stay as they are.

    `rank` is the inner width of the adapters, and their output is scaled by `alpha / rank`
    (LoRA, arXiv:2106.09685).
    """

    rank: int = 16
    alpha: int = 32


def part_of(name: str) -> str:
    """The part that a parameter of `ApotheonModel` belongs to, by its name."""
    module = name.partition(".")[0]
    return next(part for part, modules in PARTS.items() if module in modules)


def add_lora(model: ApotheonModel, adapters: Mapping[str, Lora]) -> None:
    """Put adapters into the linear layers of `vision`, `audio` or `text`, and freeze the rest.

    Raises:
        ValueError: another part was named.
    """
    for part, lora in adapters.items():
        if part not in LORA_TARGETS:
            known = ", ".join(LORA_TARGETS)
            raise ValueError(f"lora: {part!r} takes no adapters; choose one of: {known}")
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=list(LORA_TARGETS[part]),
        )
        encoder = getattr(model, part)
        encoder.requires_grad_(False)
        inject_adapter_in_model(config, encoder)


def merged_state(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """A state dict in which adapters are added to the weights that they adapt.

    It loads into a model without adapters, so that nobody needs peft to use it.
    """
    merged = {
        name.replace(".base_layer.", "."): value
        for name, value in state.items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            (adapter,) = module.lora_A
            scale = module.scaling[adapter]
            up, down = (state[f"{name}.lora_{side}.{adapter}.weight"] for side in "BA")
            weight = merged[f"{name}.weight"]
            merged[f"{name}.weight"] = weight + (scale * up.float() @ down.float()).to(weight)
    return merged


def set_trainable(
    model: ApotheonModel,
    frozen: Collection[str],
    *,
    frames: bool,
    audio: bool,
    tasks: Collection[Task] = TASKS,
) -> None:
    """Choose what learns: not what is `frozen` of `FREEZABLE`, nor what this stage has no use for.

    That is the encoders of what is not shown, and the heads of texts that are not among `tasks`.
    With adapters, only these learn in their encoder; without gradient or input, nothing does.
    """
    adapted = {name.partition(".")[0] for name, _ in model.named_parameters() if ".lora_" in name}
    unseen = set() if frames else {"vision", "vision_projection"}
    unseen |= set() if audio else {"audio", "audio_projection"}
    unseen |= set() if "caption" in tasks else {"caption_head"}
    unseen |= set() if "transcript" in tasks else {"transcription_head"}
    for name, parameter in model.named_parameters():
        module = name.partition(".")[0]
        base_of_adapter = module in adapted and ".lora_" not in name
        parameter.requires_grad_(
            not (
                base_of_adapter
                or module in unseen
                or part_of(name) in frozen
                or (VISION_STEM in frozen and name.startswith(_STEM))
                or name.startswith(_NEVER)
            )
        )


_STEM = "vision.embeddings.patch_embedding."
_NEVER = ("vision.post_layernorm", "audio.embed_positions")
"""CLIP's norm of a pooled output that is not used, and Whisper's fixed sines."""


def load_components(
    model: ApotheonModel,
    *,
    vision: str | None = None,
    audio: str | None = None,
    text: str | None = None,
) -> None:
    """Take encoders' weights from local folders of CLIP, Whisper or Llama checkpoints.

    Raises:
        ModelError: a checkpoint has other widths than the configuration.
    """
    if vision is not None:
        _take(model.vision, CLIPVisionModel.from_pretrained(vision, **_SAFE), "vision", vision)
    if audio is not None:
        whole = WhisperModel.from_pretrained(audio, **_SAFE)
        _take(model.audio, whole.get_encoder(), "audio", audio)
    if text is not None:
        _take(model.text, LlamaModel.from_pretrained(text, **_SAFE), "text", text)


_SAFE: dict[str, Any] = {
    "use_safetensors": True,
    "local_files_only": True,
    "dtype": torch.float32,
}


def _take(target: nn.Module, source: nn.Module, part: str, reference: str) -> None:
    found, needed = source.state_dict(), target.state_dict()
    for name, tensor in needed.items():
        if name not in found or found[name].shape != tensor.shape:
            shape = tuple(found[name].shape) if name in found else "nothing"
            raise ModelError(
                f"{part}_checkpoint: {reference} does not fit: {name} is {shape} there, but "
                f"{tuple(tensor.shape)} in the model; choose a checkpoint or a size that fits"
            )
    target.load_state_dict({name: found[name] for name in needed})

"""Loading `transformers` models so that a wrong checkpoint is an error and not a random network."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from spark_ray.core.errors import ConfigError, ModelError
from spark_ray.models.weights import Weights

_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model")


@dataclass(frozen=True)
class Placement:
    """Where a model computes, and in which arithmetic."""

    device: torch.device
    dtype: torch.dtype


def choose_placement(device: str, dtype: str, gpu_dtype: torch.dtype) -> Placement:
    """`auto` is the first GPU in `gpu_dtype`, or else the CPU in float32.

    A GPU older than Ampere only emulates bfloat16, slowly, and gets float16 instead.

    Raises:
        ConfigError: the device does not exist here.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} can't be used on this machine: {reason}") from error

    if dtype != "auto":
        return Placement(place, getattr(torch, dtype))
    if place.type != "cuda":
        return Placement(place, torch.float32)
    if gpu_dtype is torch.bfloat16 and not torch.cuda.is_bf16_supported(including_emulation=False):
        gpu_dtype = torch.float16
    return Placement(place, gpu_dtype)


def load_model(
    model_class: type[PreTrainedModel], weights: Weights, setting: str, placement: Placement
) -> Any:
    """The model in evaluation mode on its device, from safetensors and our own code alone.

    `transformers` only warns when a checkpoint is of another family or lacks weights, and fills the
    gaps at random; a dataset captioned by noise is worse than none, so here both are errors.

    Raises:
        ModelError: the folder holds another family, lacks weights, or can't be read.
    """
    _require_family(model_class, weights, setting)
    try:
        model, report = model_class.from_pretrained(
            weights.folder,
            dtype=placement.dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise _unloadable(weights, setting, error) from error
    _require_all(report["missing_keys"], model_class, weights, setting)
    return model.to(placement.device).eval()


def check_model(model_class: type[PreTrainedModel], weights: Weights, setting: str) -> Any:
    """The configuration of a model that `load_model` will take, as its files' headers tell.

    Raises:
        ModelError: the folder holds another family, lacks weights, or can't be read.
    """
    _require_family(model_class, weights, setting)
    shapes: dict[str, list[int]] = {}
    try:
        config = model_class.config_class.from_pretrained(weights.folder, local_files_only=True)
        with torch.device("meta"):
            needed = model_class(config).state_dict()
        for file in weights.files:
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    shapes[name] = tensors.get_slice(name).get_shape()
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise _unloadable(weights, setting, error) from error
    _require_all(needed.keys() - shapes.keys(), model_class, weights, setting)
    for name, tensor in needed.items():
        if shapes[name] != list(tensor.shape):
            raise ModelError(
                f"{setting}: in {weights.name}, {name} is of shape {shapes[name]}, but its "
                f"config.json says {list(tensor.shape)}; it is damaged"
            )
    return config


def load_processor(processor_class: Any, weights: Weights, setting: str) -> Any:
    """A tokenizer, image processor or both, from the model's folder.

    Raises:
        ModelError: its files are missing or damaged.
    """
    # `transformers` makes up a tokenizer that knows no words where there are no files for one.
    if not any((weights.folder / name).is_file() for name in _VOCABULARIES):
        raise ModelError(
            f"{setting}: {weights.name} holds no tokenizer (none of {', '.join(_VOCABULARIES)})"
        )
    try:
        return processor_class.from_pretrained(weights.folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"{setting}: the {processor_class.__name__} of {weights.name} can't be loaded: {reason}"
        ) from error


def _unloadable(weights: Weights, setting: str, error: Exception) -> ModelError:
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return ModelError(f"{setting}: {weights.name} can't be loaded: {reason}")


def _require_family(model_class: type[PreTrainedModel], weights: Weights, setting: str) -> None:
    needed = model_class.config_class.model_type
    found = json.loads((weights.folder / "config.json").read_text()).get("model_type")
    if found != needed:
        raise ModelError(
            f"{setting}: {weights.name} holds a model of type {found!r}, but "
            f"{needed!r} is needed; choose other weights, or the backend that fits"
        )


def _require_all(
    missing: Collection[str], model_class: type[PreTrainedModel], weights: Weights, setting: str
) -> None:
    if missing:
        family = model_class.config_class.model_type
        raise ModelError(
            f"{setting}: {weights.name} lacks {len(missing)} weights of a {family!r} model, "
            f"{min(missing)} among them; it is damaged or was made for another version"
        )

"""What a run starts from: tokenizer, processor, configuration, and the first weights."""

import json
from collections.abc import Iterator
from typing import Any

import torch
from transformers import AutoTokenizer, CLIPVisionConfig, LlamaConfig, WhisperConfig

from spark_ray.apotheon import ApotheonConfig, ApotheonModel, ApotheonProcessor
from spark_ray.apotheon.adaptation import Lora, add_lora, load_components, set_trainable
from spark_ray.apotheon.initialization import start_audio, start_vision
from spark_ray.apotheon.sizes import SIZES, processor_for, special_tokens
from spark_ray.apotheon.tokenization import train_tokenizer
from spark_ray.core.errors import ModelError
from spark_ray.datasets.samples import SampleIndex
from spark_ray.models.pretrained import Placement, check_model, load_model, load_processor
from spark_ray.models.registered import SCHEME as REGISTERED
from spark_ray.models.registered import pinned_reference
from spark_ray.models.weights import SAFETENSORS, Weights, resolve_weights
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage

_INSTEAD = "leave it out to start from random weights"
_CONFIGS = {"vision": CLIPVisionConfig, "audio": WhisperConfig, "text": LlamaConfig}
_WIDTHS = {
    "vision": ("hidden_size", "num_hidden_layers", "image_size", "patch_size"),
    "audio": ("d_model", "encoder_layers", "num_mel_bins", "max_source_positions"),
    "text": ("hidden_size", "num_hidden_layers", "vocab_size"),
}


def one_version(init_from: str | None) -> str | None:
    """With the version that an alias now stands for: it may move while workers or trials start.

    Raises:
        ModelError: the registry has no such model.
    """
    if init_from is None or not init_from.startswith(REGISTERED):
        return init_from
    return pinned_reference(init_from, "init_from")


def starting_point(
    config: TrainConfig, train: SampleIndex
) -> tuple[ApotheonConfig, ApotheonProcessor]:
    """The model's configuration and its processor, before any weight is made.

    Raises:
        ModelError: a checkpoint can't be found, is of another width than the size, or is no whole
            Apotheon where one is to go on.
    """
    if config.init_from is not None:
        weights = _resolve(config.init_from, "init_from")
        own_config = check_model(ApotheonModel, weights, "init_from")
        processor = load_processor(ApotheonProcessor, weights, "init_from")
        processor.max_frames = config.max_frames
        return own_config, processor
    if config.text_checkpoint is not None:
        folder = _resolve(config.text_checkpoint, "text_checkpoint").folder
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
    else:
        tokenizer = train_tokenizer(_texts(train), config.vocab_size)
    model_config = SIZES[config.size](tokenizer)
    for part in _WIDTHS:
        _check_widths(config, model_config, part)
        _take_own_config(config, model_config, part, tokenizer)
    return model_config, processor_for(model_config, tokenizer, config.max_frames)


def initial_model(config: TrainConfig, model_config: ApotheonConfig) -> ApotheonModel:
    """The model with its first weights: random ones follow from the seed alone."""
    torch.manual_seed(config.seed)
    if config.init_from is not None:
        weights = _resolve(config.init_from, "init_from")
        placement = Placement(torch.device("cpu"), torch.float32)
        own: ApotheonModel = load_model(ApotheonModel, weights, "init_from", placement)
        return own
    model = ApotheonModel(model_config)
    references = {part: getattr(config, f"{part}_checkpoint") for part in _WIDTHS}
    if config.vision_checkpoint is None:
        start_vision(model.vision)
    if config.audio_checkpoint is None:
        start_audio(model.audio)
    load_components(
        model,
        **{
            part: str(_resolve(reference, f"{part}_checkpoint").folder)
            for part, reference in references.items()
            if reference is not None
        },
    )
    return model


def choose_trainable(model: ApotheonModel, stage: Stage, config: TrainConfig) -> None:
    """What learns in a stage."""
    set_trainable(
        model,
        {*stage.frozen, *config.frozen},
        frames=stage.shows_frames,
        audio=stage.shows_audio,
        tasks=stage.tasks(config.tasks),
    )


def learns(model: ApotheonModel, stage: Stage, config: TrainConfig) -> bool:
    """Whether anything learns in a stage."""
    choose_trainable(model, stage, config)
    return any(parameter.requires_grad for parameter in model.parameters())


def add_adapters(model: ApotheonModel, config: TrainConfig) -> None:
    """Low-rank adapters, as the configuration wants them."""
    lora = Lora(rank=config.lora_rank, alpha=config.lora_alpha)
    add_lora(model, dict.fromkeys(config.lora, lora))


def _resolve(reference: str, setting: str) -> Weights:
    return resolve_weights(
        reference, setting=setting, revision=None, kind=SAFETENSORS, instead=_INSTEAD
    )


def _check_widths(config: TrainConfig, model_config: ApotheonConfig, part: str) -> None:
    """Compare `config.json` files, so that a misfit is known before any GPU is taken."""
    reference = getattr(config, f"{part}_checkpoint")
    if reference is None:
        return
    setting = f"{part}_checkpoint"
    folder = _resolve(reference, setting).folder
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    found = found.get("vision_config", found) if part == "vision" else found
    needed = getattr(model_config, f"{part}_config")
    for name in _WIDTHS[part]:
        if name in found and found[name] != getattr(needed, name):
            raise ModelError(
                f"{setting}: {reference} has {name} {found[name]}, but size {config.size} has "
                f"{getattr(needed, name)}; choose a checkpoint or a size that fits"
            )


def _take_own_config(
    config: TrainConfig, model_config: ApotheonConfig, part: str, tokenizer: Any
) -> None:
    """Weights mean nothing without their own heads, norms and rotations."""
    reference = getattr(config, f"{part}_checkpoint")
    if reference is not None:
        folder = _resolve(reference, f"{part}_checkpoint").folder
        own = _CONFIGS[part].from_pretrained(folder, local_files_only=True)
        if part == "text":
            own.update(special_tokens(tokenizer))
        setattr(model_config, f"{part}_config", own)


def _texts(train: SampleIndex) -> Iterator[str]:
    for column in ("caption", "transcript"):
        for text in train.table[column].to_pylist():
            if text:
                yield text

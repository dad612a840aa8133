"""The models whose MFU is measured, and random batches for them."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.modeling_layers import GradientCheckpointingLayer

from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.adaptation import Lora, add_lora, set_trainable
from spark_ray.apotheon.sizes import base, special_tokens, tiny
from spark_ray.core.anatomy import TASKS

FRAMES, _TEXT_TOKENS = 8, 128
_LLAMA3_VOCABULARY, _MEDIUM_VOCABULARY = 128_256, 32_000


class Vocabulary:
    """As much of a tokenizer as a model's size depends on."""

    pad_token_id, bos_token_id, eos_token_id = range(3)

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


def medium(tokenizer: Any) -> ApotheonConfig:
    """CLIP ViT-L/14, Whisper base, 16 layers of text at width 2048, and the fusion of `base`."""
    sized = base(tokenizer)
    text = LlamaConfig(
        hidden_size=2048,
        intermediate_size=8192,
        num_hidden_layers=16,
        num_attention_heads=16,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        **special_tokens(tokenizer),
    )
    return ApotheonConfig(
        vision_config=sized.vision_config, audio_config=sized.audio_config, text_config=text
    )


def toy(tokenizer: Any) -> ApotheonConfig:
    """`tiny` with one layer of everything: shows on a CPU that this program works."""
    config = tiny(tokenizer)
    config.vision_config = CLIPVisionConfig(
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=32,
        patch_size=16,
    )
    return config


@dataclass(frozen=True)
class Setting:
    """A model, what of it learns through adapters alone, and the words for the report."""

    name: str
    size: Callable[[Any], ApotheonConfig]
    vocabulary: int
    adapted: tuple[str, ...]
    learning: str


SETTINGS = {
    "base": Setting(
        "base",
        base,
        _LLAMA3_VOCABULARY,
        ("text",),
        "adapters of rank 16 in all linear layers of the frozen Llama; everything else whole",
    ),
    "medium": Setting("medium", medium, _MEDIUM_VOCABULARY, (), "all weights"),
}


def build(setting: Setting, given: argparse.Namespace) -> ApotheonModel:
    """The model on its device, made there: the 35 GB of `base` need not exist on the host."""
    torch.manual_seed(0)
    with torch.device(given.device):
        model = ApotheonModel(setting.size(Vocabulary(setting.vocabulary)))
    add_lora(model, {part: Lora() for part in setting.adapted})
    set_trainable(model, (), frames=True, audio=True)
    for part in setting.adapted:
        for parameter in getattr(model, part).parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.bfloat16()
    if given.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    return model


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of encoders and fusion: equal blocks share one compilation."""
    # Blocks of four kinds, at each size of batch, go through one function of transformers.
    torch._dynamo.config.recompile_limit = 128
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile(dynamic=False)


def random_batch(
    config: ApotheonConfig, clips: int, device: torch.device, *, sound: float = 1.0, seed: int = 0
) -> dict[str, Tensor]:
    """What `ApotheonModel.forward` takes, of noise; the share `sound` of each window is audio."""
    generator = torch.Generator(device).manual_seed(seed)
    size, mel_frames = config.vision_config.image_size, config.mel_frames
    here: dict[str, Any] = {"generator": generator, "device": device}
    tokens = torch.randint(3, config.vocab_size, (clips, len(TASKS), _TEXT_TOKENS), **here)
    return {
        "pixel_values": torch.randn(clips, FRAMES, 3, size, size, **here),
        "frame_times": torch.rand(clips, FRAMES, **here).cumsum(1),
        "frame_mask": torch.ones(clips, FRAMES, dtype=torch.bool, device=device),
        "input_features": torch.randn(
            clips, 1, config.audio_config.num_mel_bins, mel_frames, **here
        ),
        "audio_frames": torch.full((clips, 1), int(mel_frames * sound), device=device),
        "input_ids": tokens,
        "text_mask": torch.ones_like(tokens, dtype=torch.bool),
        "labels": tokens,
    }

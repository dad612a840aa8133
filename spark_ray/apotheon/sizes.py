"""Apotheon at its named sizes, and a table of where the parameters are.

A size is a function of the tokenizer, whose vocabulary decides the width of the heads.
"""

from collections.abc import Callable
from typing import Any

from torch import nn
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    WhisperConfig,
    WhisperFeatureExtractor,
)

from spark_ray.apotheon.configuration import ApotheonConfig
from spark_ray.apotheon.processing import ApotheonProcessor

# The usual 0.02 suits widths of a thousand; at 128 a signal fades with every layer.
_TINY_RANGE = 0.06


def tiny(tokenizer: Any) -> ApotheonConfig:
    """1.7 M parameters: learns the demo's closed world from nothing in minutes on two CPU cores.

    Pictures are 64x64, and a window of audio is 4 s at 50 mel frames a second.
    """
    return ApotheonConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=3,
            num_attention_heads=4,
            image_size=64,
            patch_size=16,
        ),
        audio_config=_whisper(
            size=128, layers=1, heads=4, window_s=4, mel_rate_hz=50, init_std=_TINY_RANGE
        ),
        text_config=LlamaConfig(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=1,
            num_attention_heads=4,
            max_position_embeddings=512,
            initializer_range=_TINY_RANGE,
            **special_tokens(tokenizer),
        ),
        fusion_hidden_size=128,
        fusion_layers=2,
        fusion_heads=4,
        fusion_mlp_size=256,
        contrastive_size=128,
        mel_rate_hz=50,
        initializer_range=_TINY_RANGE,
    )


def small(tokenizer: Any) -> ApotheonConfig:
    """0.2 B parameters: CLIP ViT-B/32, Whisper tiny, 12 layers of text; one small GPU trains it."""
    return ApotheonConfig(
        vision_config=CLIPVisionConfig(),
        audio_config=_whisper(size=384, layers=4, heads=6, window_s=30),
        text_config=LlamaConfig(
            hidden_size=768,
            intermediate_size=2048,
            num_hidden_layers=12,
            num_attention_heads=12,
            max_position_embeddings=2048,
            **special_tokens(tokenizer),
        ),
        fusion_hidden_size=768,
        fusion_layers=4,
        fusion_heads=12,
        fusion_mlp_size=3072,
        contrastive_size=512,
    )


def base(tokenizer: Any) -> ApotheonConfig:
    """CLIP ViT-L/14, Whisper base, Llama-3 8B, and a fusion of 6 layers at width 2048."""
    return ApotheonConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=1024,
            intermediate_size=4096,
            num_hidden_layers=24,
            num_attention_heads=16,
            image_size=224,
            patch_size=14,
        ),
        audio_config=_whisper(size=512, layers=6, heads=8, window_s=30),
        text_config=LlamaConfig(
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=32,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
            rms_norm_eps=1e-5,
            **special_tokens(tokenizer),
        ),
    )


SIZES: dict[str, Callable[[Any], ApotheonConfig]] = {"tiny": tiny, "small": small, "base": base}


def processor_for(config: ApotheonConfig, tokenizer: Any, max_frames: int) -> ApotheonProcessor:
    """The processor whose windows, pictures and tokens fit the configuration."""
    audio = config.audio_config
    extractor = WhisperFeatureExtractor(
        feature_size=audio.num_mel_bins,
        hop_length=16_000 // config.mel_rate_hz,
        chunk_length=config.mel_frames // config.mel_rate_hz,
    )
    return ApotheonProcessor(
        feature_extractor=extractor,
        tokenizer=tokenizer,
        image_size=config.vision_config.image_size,
        max_frames=max_frames,
        max_text_tokens=min(256, config.text_config.max_position_embeddings),
    )


def parameter_table(model: nn.Module) -> list[tuple[str, int, int]]:
    """Parts of a model with their parameters: name, all, and those that are trained."""
    rows = []
    for name, part in model.named_children():
        parameters = list(part.parameters())
        if parameters:
            trained = sum(p.numel() for p in parameters if p.requires_grad)
            rows.append((name, sum(p.numel() for p in parameters), trained))
    alone = list(model.parameters(recurse=False))
    if alone:
        trained = sum(p.numel() for p in alone if p.requires_grad)
        rows.append(("temperature", sum(p.numel() for p in alone), trained))
    return rows


def _whisper(
    size: int,
    layers: int,
    heads: int,
    window_s: int,
    mel_rate_hz: int = 100,
    init_std: float = 0.02,
) -> Any:
    return WhisperConfig(
        d_model=size,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * size,
        decoder_layers=0,
        num_mel_bins=80,
        max_source_positions=window_s * mel_rate_hz // 2,
        init_std=init_std,
    )


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """What the text model's configuration takes from its tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }

"""Floating-point operations of a batch, for MFU (model FLOPs utilisation, arXiv:2204.02311).

Counted are multiplications and additions of matrix products and attention in the forward pass, and
in the backward pass those for the weights that learn and for the states that lead to them. What
gradient checkpointing computes again is not counted.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from spark_ray.apotheon.modeling import ApotheonModel


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch as it is computed, padding included."""

    frames: int
    windows: int
    texts: int
    text_tokens: int
    media_tokens: int
    """In a clip."""
    clips: int


def batch_shape(model: ApotheonModel, inputs: dict[str, Any]) -> BatchShape:
    """Of the arguments of `ApotheonModel.forward`."""
    config = model.config
    clips, tasks, length = inputs["input_ids"].shape
    frames = int(inputs["frame_mask"].sum()) if "frame_mask" in inputs else 0
    windows = int((inputs["audio_frames"] > 0).sum()) if "audio_frames" in inputs else 0
    per_frame, per_window = config.tokens_per_frame, config.audio_config.max_source_positions
    media = 0
    if "frame_mask" in inputs:
        media += inputs["frame_mask"].shape[1] * per_frame
    if "audio_frames" in inputs:
        media += inputs["audio_frames"].shape[1] * per_window
    return BatchShape(frames, windows, clips * tasks, length, media, clips)


def batch_flops(model: ApotheonModel, shape: BatchShape) -> float:
    """Operations of a forward and a backward pass over a batch."""
    config = model.config
    vision, audio, text = config.vision_config, config.audio_config, config.text_config
    per_frame, per_window = config.tokens_per_frame, audio.max_source_positions
    texts = shape.texts * shape.text_tokens
    media = shape.clips * shape.media_tokens
    width = config.fusion_hidden_size

    total = 0.0
    learns_below = False  # a part's input needs a gradient where something before it learns
    for module, tokens, attention in (
        (model.vision, shape.frames * per_frame, _attention(vision, per_frame)),
        (model.audio, shape.windows * per_window, _whisper_attention(audio, per_window)),
        (model.text, texts, _attention(text, shape.text_tokens)),
    ):
        total += _passes(module, False) * tokens * (2 * _matrix_weights(module) + attention)
        learns_below |= _learns(module)
    for module, tokens in (
        (model.vision_projection, shape.frames * per_frame),
        (model.audio_projection, shape.windows * per_window),
        (model.text_projection, texts),
        (model.caption_head, texts / 2),
        (model.transcription_head, texts / 2),
    ):
        total += _passes(module, learns_below) * tokens * 2 * _matrix_weights(module)
    keys_and_values = 2 * width * width * config.fusion_layers
    fusion = _matrix_weights(model.fusion) - keys_and_values
    self_attention = 4 * width * shape.text_tokens / 2 * config.fusion_layers
    media_attention = 4 * width * shape.media_tokens * config.fusion_layers
    total += _passes(model.fusion, True) * (
        texts * (2 * fusion + self_attention + media_attention) + media * 2 * keys_and_values
    )
    return total


def _attention(config: Any, tokens: int) -> float:
    """Operations for one token's attention to `tokens` others, in all layers; causal in Llama."""
    seen = tokens / 2 if config.model_type == "llama" else tokens
    return 4.0 * config.hidden_size * seen * config.num_hidden_layers


def _whisper_attention(config: Any, tokens: int) -> float:
    return 4.0 * config.d_model * tokens * config.encoder_layers


def _matrix_weights(module: nn.Module) -> int:
    """Weights that multiply each token: matrices and convolutions, but no embedding tables."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return sum(p.numel() for p in module.parameters() if p.dim() > 1 and id(p) not in tables)


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _passes(module: nn.Module, input_needs_gradient: bool) -> float:
    """1 for the forward pass, 1 for gradients of states, 1 for those of all weights."""
    parameters = [p for p in module.parameters() if p.dim() > 1]
    weights = sum(p.numel() for p in parameters)
    learning = sum(p.numel() for p in parameters if p.requires_grad)
    if not learning:
        return 2.0 if input_needs_gradient else 1.0
    return 2.0 + learning / max(weights, 1)

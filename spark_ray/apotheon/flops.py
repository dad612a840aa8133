"""Floating-point operations of a batch, for MFU (model FLOPs utilisation, arXiv:2204.02311).

Counted are multiplications and additions of matrix products and attention in the forward pass, and
in the backward pass those for the weights that learn and for the states that lead to them. What
gradient checkpointing computes again is not counted, nor what a causal mask hides, which other
counts include: our MFU is the lower one.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from spark_ray.apotheon.layers import FusionBlock
from spark_ray.apotheon.modeling import ApotheonModel
from spark_ray.core.anatomy import TASKS, Task


@dataclass(frozen=True)
class BatchShape:
    """Sizes of a batch as it is computed, padding included."""

    frames: int
    windows: int
    clips: int
    media_tokens: int
    """In a clip."""
    tasks: Sequence[Task]
    text_tokens: int
    """In a text; every clip has one for each task."""

    @property
    def texts(self) -> int:
        return self.clips * len(self.tasks)


def batch_shape(model: ApotheonModel, inputs: dict[str, Any]) -> BatchShape:
    """Of the arguments of `ApotheonModel.forward`."""
    config = model.config
    clips, _, length = inputs["input_ids"].shape
    frames = int(inputs["frame_mask"].sum()) if "frame_mask" in inputs else 0
    windows = int((inputs["audio_frames"] > 0).sum()) if "audio_frames" in inputs else 0
    per_frame, per_window = config.tokens_per_frame, config.audio_config.max_source_positions
    media = 0
    if "frame_mask" in inputs:
        media += inputs["frame_mask"].shape[1] * per_frame
    if "audio_frames" in inputs:
        media += inputs["audio_frames"].shape[1] * per_window
    return BatchShape(frames, windows, clips, media, inputs.get("tasks", TASKS), length)


def batch_flops(model: ApotheonModel, shape: BatchShape) -> float:
    """Operations of a forward and a backward pass over a batch."""
    return sum(part_flops(model, shape).values())


def part_flops(model: ApotheonModel, shape: BatchShape) -> dict[str, float]:
    """The same for each of `core.anatomy.PARTS`, in the order of the forward pass."""
    return {
        "vision": _vision(model, shape),
        "audio": _audio(model, shape),
        "text": _text(model, shape),
        "projections": _projections(model, shape),
        "fusion": _fusion(model, shape),
        "heads": _heads(model, shape),
        "contrastive": _contrastive(model, shape),
    }


def _vision(model: ApotheonModel, shape: BatchShape) -> float:
    encoder, config = model.vision, model.config.vision_config
    tokens, stem = model.config.tokens_per_frame, encoder.embeddings
    attention = _attention(config.hidden_size, tokens, tokens, _learns(encoder))
    return shape.frames * (
        # The class token is no patch.
        _products(_matrices(stem), tokens - 1, gradient=False)
        + _layers(encoder.encoder.layers, tokens, _learns(stem))
        + config.num_hidden_layers * attention
    )


def _audio(model: ApotheonModel, shape: BatchShape) -> float:
    encoder, config = model.audio, model.config.audio_config
    tokens, stem_learns = config.max_source_positions, _learns(encoder.conv1)
    attention = _attention(config.d_model, tokens, tokens, _learns(encoder))
    return shape.windows * (
        # The second convolution halves the spectrogram's length.
        _products(_matrices(encoder.conv1), 2 * tokens, gradient=False)
        + _products(_matrices(encoder.conv2), tokens, stem_learns)
        + _layers(encoder.layers, tokens, stem_learns)
        + config.encoder_layers * attention
    )


def _text(model: ApotheonModel, shape: BatchShape) -> float:
    encoder, config = model.text, model.config.text_config
    tokens, width = shape.text_tokens, config.head_dim * config.num_attention_heads
    attention = _attention(width, tokens, (tokens + 1) / 2, _learns(encoder))
    return shape.texts * (
        _layers(encoder.layers, tokens, _learns(encoder.embed_tokens))
        + config.num_hidden_layers * attention
    )


def _layers(layers: Any, tokens: float, stem_learns: bool) -> float:
    """Products of an encoder's blocks. Below all that learns, no state needs a gradient: adapters
    begin with the projections of the first attention.
    """
    attention = layers[0].self_attn
    first = {
        parameter
        for module in (attention.q_proj, attention.k_proj, attention.v_proj)
        for name, parameter in module.named_parameters()
        if "lora_B" not in name
    }
    matrices = _matrices(layers)
    return _products((p for p in matrices if p in first), tokens, stem_learns) + _products(
        (p for p in matrices if p not in first), tokens, stem_learns or _learns(layers)
    )


def _projections(model: ApotheonModel, shape: BatchShape) -> float:
    config = model.config
    frames = shape.frames * config.tokens_per_frame
    windows = shape.windows * config.audio_config.max_source_positions
    total = 0.0
    for encoder, projection, tokens in (
        (model.vision, model.vision_projection, frames),
        (model.audio, model.audio_projection, windows),
    ):
        learns = _learns(encoder) or _learns(projection)  # which begins with a norm
        total += _products(_matrices(projection), tokens, learns)
    texts = shape.texts * shape.text_tokens
    return total + _products(_matrices(model.text_projection), texts, _learns(model.text))


def _fusion(model: ApotheonModel, shape: BatchShape) -> float:
    width, blocks = model.config.fusion_hidden_size, model.fusion
    media_learns = _media_learns(model)
    learns = media_learns or _text_learns(model) or _learns(blocks)
    reads_media = set()
    for block in blocks:
        assert isinstance(block, FusionBlock)
        attention = block.media_attention
        reads_media |= {*_matrices(attention.key), *_matrices(attention.value)}
    rest = [p for p in _matrices(blocks) if p not in reads_media]
    tokens, media = shape.text_tokens, shape.media_tokens
    seen = (tokens + 1) / 2 + media
    return (
        _products(reads_media, shape.clips * media, media_learns)
        + _products(rest, shape.texts * tokens, learns)
        + shape.texts * len(blocks) * _attention(width, tokens, seen, learns)
    )


def _heads(model: ApotheonModel, shape: BatchShape) -> float:
    learns = _media_learns(model) or _text_learns(model) or _learns(model.fusion)
    matrices = [matrix for task in shape.tasks for matrix in _matrices(model.head(task))]
    return _products(matrices, shape.clips * shape.text_tokens, learns)


def _contrastive(model: ApotheonModel, shape: BatchShape) -> float:
    """Without the comparison itself, whose cost is nothing beside that of the states compared."""
    return _products(
        _matrices(model.media_embedding), shape.clips, _media_learns(model)
    ) + _products(_matrices(model.text_embedding), shape.texts, _text_learns(model))


def _products(weights: Iterable[nn.Parameter], tokens: float, gradient: bool) -> float:
    """Of `tokens` vectors with matrices, each once; `gradient`: also that of the vectors."""
    total = 0.0
    for parameter in weights:
        passes = 1 + gradient + parameter.requires_grad
        total += 2.0 * passes * tokens * _shape(parameter).numel()
    return total


def _attention(width: int, tokens: float, seen: float, gradient: bool) -> float:
    """Of `tokens` that each attend to `seen` others: two products, and four in the backward."""
    return 4.0 * width * tokens * seen * (3 if gradient else 1)


def _matrices(module: nn.Module) -> list[nn.Parameter]:
    """What multiplies each token: matrices and convolutions, but no embedding tables."""
    tables = {id(m.weight) for m in module.modules() if isinstance(m, nn.Embedding)}
    return [p for p in module.parameters() if len(_shape(p)) > 1 and id(p) not in tables]


def _shape(parameter: nn.Parameter) -> Any:
    """The whole parameter's, of which ZeRO-3 shows each rank but an empty piece."""
    return getattr(parameter, "ds_shape", parameter.shape)


def _learns(module: nn.Module) -> bool:
    return any(p.requires_grad for p in module.parameters())


def _media_learns(model: ApotheonModel) -> bool:
    encoders = (model.vision, model.audio, model.vision_projection, model.audio_projection)
    return any(_learns(module) for module in encoders)


def _text_learns(model: ApotheonModel) -> bool:
    return any(_learns(m) for m in (model.text, model.text_projection, model.task_embedding))

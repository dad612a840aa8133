"""The parts of Apotheon that are its own: projections of media tokens, and the fusion's blocks.

Shape suffixes: B clips, T tasks, L text tokens, M media tokens, F frames, W windows of audio,
D fusion width, H heads, K width of a head.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from spark_ray.apotheon.configuration import ApotheonConfig

_SHORTEST_PERIOD_S, _LONGEST_PERIOD_S = 0.25, 4096.0


class TimeEmbedding(nn.Module):
    """Sines and cosines of a time in seconds, with periods from 0.25 s to 68 minutes."""

    def __init__(self, size: int) -> None:
        super().__init__()
        if size % 2:
            raise ValueError(f"a time embedding has an even width, not {size=}")
        self.size = size

    def forward(self, times_s: Tensor) -> Tensor:
        """`[...]` seconds to `[..., size]`, in float32."""
        steps = torch.arange(self.size // 2, device=times_s.device) / max(self.size // 2 - 1, 1)
        octaves = math.log(_LONGEST_PERIOD_S / _SHORTEST_PERIOD_S) * steps
        angles = times_s.float()[..., None] * (2 * math.pi / _SHORTEST_PERIOD_S) * (-octaves).exp()
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


class MediaProjection(nn.Module):
    """Brings the tokens of an encoder to the fusion's width, and tells them when they were.

    The time comes in before the non-linearity of a residual MLP, so that a token can say "was left
    at the start", which also survives the pooling of the contrastive head. What comes out is of
    unit size: from small tokens, attention and heads learn many times more slowly under Adam.
    """

    def __init__(self, encoder_size: int, fusion_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(encoder_size)
        self.project = nn.Linear(encoder_size, fusion_size, bias=False)
        self.up = nn.Linear(fusion_size, 2 * fusion_size)
        self.down = nn.Linear(2 * fusion_size, fusion_size)
        self.out_norm = nn.RMSNorm(fusion_size, eps=1e-6)

    def forward(self, tokens: Tensor, time_embedding: Tensor) -> Tensor:
        """`[N, tokens, encoder]` and `[N, fusion]` to `[N, tokens, fusion]`."""
        states = self.project(self.norm(tokens))
        timed = self.up(states + time_embedding.to(tokens.dtype)[:, None])
        return self.out_norm(states + self.down(F.gelu(timed)))


class Media(NamedTuple):
    """What a batch shows and sounds like: tokens `[B, M, D]`, and which of them are real `[B, M]`.

    `mask` is None where all of them are, which lets attention use its fastest kernel.
    """

    tokens: Tensor
    mask: Tensor | None


class Attention(nn.Module):
    """Multi-head attention through `scaled_dot_product_attention`."""

    def __init__(self, size: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(size, size, bias=False)
        self.key = nn.Linear(size, size, bias=False)
        self.value = nn.Linear(size, size, bias=False)
        self.out = nn.Linear(size, size, bias=False)

    def split(self, states: Tensor) -> Tensor:
        """`[N, S, D]` to `[N, H, S, K]`."""
        return states.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def keys_and_values(self, states: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(states)), self.split(self.value(states))

    def attend(
        self,
        states: Tensor,
        keys: Tensor,
        values: Tensor,
        mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:
        """`states` `[N, S, D]` ask; `mask` is broadcast to `[N, H, S, keys]`, True is seen."""
        found = F.scaled_dot_product_attention(
            self.split(self.query(states)), keys, values, attn_mask=mask, is_causal=causal
        )
        return self.out(found.transpose(1, 2).flatten(2))


class FusionBlock(GradientCheckpointingLayer):
    """Causal self-attention of the text, then its attention to the media, then an MLP.

    `self_index` and `media_index` are the block's places in the caches of its two attentions.
    """

    def __init__(self, config: ApotheonConfig, self_index: int, media_index: int) -> None:
        super().__init__()
        size = config.fusion_hidden_size
        self.self_index, self.media_index = self_index, media_index
        self.self_norm = nn.RMSNorm(size, eps=1e-6)
        self.self_attention = Attention(size, config.fusion_heads)
        self.media_norm = nn.RMSNorm(size, eps=1e-6)
        self.media_attention = Attention(size, config.fusion_heads)
        self.mlp_norm = nn.RMSNorm(size, eps=1e-6)
        self.mlp = nn.Sequential(
            nn.Linear(size, config.fusion_mlp_size, bias=False),
            nn.GELU(),
            nn.Linear(config.fusion_mlp_size, size, bias=False),
        )

    def forward(
        self,
        states_BTLD: Tensor,  # noqa: N803
        media: Media,
        self_cache: Cache | None = None,
        media_cache: Cache | None = None,
    ) -> Tensor:
        states = states_BTLD + self._attend_to_text(self.self_norm(states_BTLD), self_cache)
        states = states + self._attend_to_media(self.media_norm(states), media, media_cache)
        return states + self.mlp(self.mlp_norm(states))

    def _attend_to_text(self, states: Tensor, cache: Cache | None) -> Tensor:
        texts = states.flatten(0, 1)
        keys, values = self.self_attention.keys_and_values(texts)
        if cache is not None:
            keys, values = cache.update(keys, values, self.self_index)
        # One new token sees all that were before it; a whole text sees itself causally; several
        # new ones, as in assisted generation, see both. Texts are padded on the right, where no
        # real token looks.
        new, before = texts.shape[1], keys.shape[2] - texts.shape[1]
        if new == 1 or not before:
            found = self.self_attention.attend(texts, keys, values, causal=new > 1)
        else:
            seen = torch.ones(new, before + new, dtype=torch.bool, device=texts.device).tril(before)
            found = self.self_attention.attend(texts, keys, values, mask=seen)
        return found.view_as(states)

    def _attend_to_media(self, states: Tensor, media: Media, cache: Cache | None) -> Tensor:
        # The texts of a clip ask side by side, so its media's keys and values exist once.
        asking = states.flatten(1, 2)
        if cache is not None and cache.get_seq_length(self.media_index):
            layer = cache.layers[self.media_index]
            keys, values = layer.keys, layer.values
        else:
            keys, values = self.media_attention.keys_and_values(media.tokens)
            if cache is not None:
                keys, values = cache.update(keys, values, self.media_index)
        if media.mask is None:
            found = self.media_attention.attend(asking, keys, values)
        else:
            has_media = media.mask.any(dim=1)
            # A softmax over nothing is undefined: a clip without media sees all, and gets nothing.
            seen = (media.mask | ~has_media[:, None])[:, None, None]
            found = self.media_attention.attend(asking, keys, values, mask=seen)
            found = found * has_media[:, None, None]
        return found.view_as(states)

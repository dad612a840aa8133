"""Apotheon: a clip's frames and sound, and the text that a language model reads, fused.

CLIP sees the frames, Whisper's encoder hears the sound, Llama reads what was written so far; in the
fusion the causal text states attend to the tokens of both. Two heads write, a caption and a
transcript, and a third compares clips with texts.

Shape suffixes as in `layers`: B clips, T tasks, L text tokens, M media tokens, F frames, W windows
of audio, D fusion width.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from transformers import CLIPVisionModel, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.cache_utils import Cache, DynamicCache, EncoderDecoderCache
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.utils import ModelOutput

from spark_ray.apotheon.configuration import ApotheonConfig
from spark_ray.apotheon.layers import FusionBlock, Media, MediaProjection, TimeEmbedding
from spark_ray.apotheon.losses import contrastive_loss, text_keys, token_cross_entropy
from spark_ray.core.anatomy import TASKS, Task


@dataclass
class ApotheonOutput(ModelOutput):
    """What a forward pass found; losses are there when labels were given.

    `logits` is `[B, L, vocabulary]` of the one task that was asked for, in generation;
    `caption_logits` and `transcription_logits` are those of a whole batch. What belongs to a task
    that the batch has no texts of is None.
    """

    loss: Tensor | None = None
    caption_loss: Tensor | None = None
    transcription_loss: Tensor | None = None
    contrastive_loss: Tensor | None = None
    logits: Tensor | None = None
    caption_logits: Tensor | None = None
    transcription_logits: Tensor | None = None
    past_key_values: Cache | None = None


class ApotheonPreTrainedModel(PreTrainedModel):
    config_class = ApotheonConfig
    base_model_prefix = ""
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _no_split_modules: ClassVar = ["FusionBlock", "LlamaDecoderLayer", "CLIPEncoderLayer"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ApotheonModel):
            nn.init.constant_(module.log_scale, -math.log(self.config.contrastive_temperature))


class ApotheonModel(ApotheonPreTrainedModel, GenerationMixin):
    """Captions and transcribes clips, and embeds clips and texts into one space."""

    def __init__(self, config: ApotheonConfig) -> None:
        super().__init__(config)
        size = config.fusion_hidden_size
        self.vision = CLIPVisionModel(config.vision_config)
        self.audio = WhisperEncoder(config.audio_config)
        self.text = LlamaModel(config.text_config)

        self.time_embedding = TimeEmbedding(size)
        self.vision_projection = MediaProjection(config.vision_config.hidden_size, size)
        self.audio_projection = MediaProjection(config.audio_config.d_model, size)
        self.text_projection = nn.Linear(config.text_config.hidden_size, size, bias=False)
        self.task_embedding = nn.Embedding(len(TASKS), size)

        # Llama's layers come first in the cache of self-attention.
        first = config.text_config.num_hidden_layers
        self.fusion = nn.ModuleList(
            FusionBlock(config, first + index, index) for index in range(config.fusion_layers)
        )
        self.fusion_norm = nn.RMSNorm(size, eps=1e-6)
        self.caption_head = nn.Linear(size, config.vocab_size, bias=False)
        self.transcription_head = nn.Linear(size, config.vocab_size, bias=False)

        self.media_embedding = nn.Linear(size, config.contrastive_size, bias=False)
        self.text_embedding = nn.Linear(size, config.contrastive_size, bias=False)
        # One number in a vector: DeepSpeed can't broadcast scalars.
        self.log_scale = nn.Parameter(torch.full((1,), -math.log(config.contrastive_temperature)))
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.text.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.text.embed_tokens = value

    def forward(
        self,
        input_ids: Tensor,
        text_mask: Tensor | None = None,
        labels: Tensor | None = None,
        label_counts: Tensor | None = None,
        pixel_values: Tensor | None = None,
        frame_times: Tensor | None = None,
        frame_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_frames: Tensor | None = None,
        media_tokens: Tensor | None = None,
        media_mask: Tensor | None = None,
        tasks: Sequence[Task] = TASKS,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        **_: Any,
    ) -> ApotheonOutput:
        """Score texts, given the media of their clips; with `labels`, also the losses.

        Args:
            input_ids: `[B, T, L]` the texts of each clip, padded on the right; or `[B, L]`, one
                text of each, as `generate` calls it.
            text_mask: `[B, T, L]` True on real tokens; a text that a clip lacks is all False.
            labels: `[B, T, L]` token ids; -100 is not learned.
            label_counts: `[T]` what the sums of the tokens' losses are divided by; unset: how many
                tokens of the task are learned, in this batch of all ranks. Of accumulated batches
                each gets the mean of that over them all.
            pixel_values, frame_times, frame_mask, input_features, audio_frames: see `encode_media`.
            media_tokens, media_mask: the answer of `encode_media`, in place of these.
            tasks: what the T texts are: by default caption and transcript. Every rank must have the
                same ones, or the ranks would wait for each other's gradients for ever.
            past_key_values: keys and values of the tokens before, and of the media.

        Raises:
            ValueError: `tasks` are not as many as the texts of a clip.
        """
        texts_of_each = input_ids.shape[1] if input_ids.dim() == 3 else 1
        if len(tasks) != texts_of_each:
            raise ValueError(
                f"tasks must name the {texts_of_each} texts of each clip that input_ids hold, "
                f"but are {', '.join(tasks)}"
            )
        if media_tokens is None:
            media = self.encode_media(
                pixel_values, frame_times, frame_mask, input_features, audio_frames
            )
        else:
            media = Media(media_tokens, media_mask)
        self_cache, media_cache = None, None
        if past_key_values is not None:
            self_cache = past_key_values.self_attention_cache
            media_cache = past_key_values.cross_attention_cache

        if input_ids.dim() == 2:
            (task,) = tasks
            texts = self.encode_text(input_ids[:, None], self_cache)
            states = self._fuse(texts, media, tasks, self_cache, media_cache)
            logits = self.head(task)(states[:, 0])
            return ApotheonOutput(logits=logits, past_key_values=past_key_values)

        texts_BTLD = self.encode_text(input_ids)  # noqa: N806
        states_BTLD = self._fuse(texts_BTLD, media, tasks)  # noqa: N806
        logits_of = {
            task: self.head(task)(states_BTLD[:, number]) for number, task in enumerate(tasks)
        }
        output = ApotheonOutput(
            caption_logits=logits_of.get("caption"),
            transcription_logits=logits_of.get("transcript"),
        )
        if labels is not None:
            if text_mask is None:
                text_mask = torch.ones_like(input_ids, dtype=torch.bool)
            contrast = self._contrast(texts_BTLD, input_ids, text_mask, media)
            self._add_losses(output, logits_of, labels, label_counts, contrast)
        return output

    def encode_media(
        self,
        pixel_values: Tensor | None = None,
        frame_times: Tensor | None = None,
        frame_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_frames: Tensor | None = None,
    ) -> Media:
        """The tokens of a batch of clips. Either half may be missing, for a clip or for all.

        Args:
            pixel_values: `[B, F, 3, height, width]` normalised frames.
            frame_times: `[B, F]` seconds from the clip's start.
            frame_mask: `[B, F]` False where a clip has fewer frames; None where none has.
            input_features: `[B, W, mel bins, mel_frames]` consecutive windows of audio.
            audio_frames: `[B, W]` how many mel frames of each window are sound, 0 to mel_frames.

        Raises:
            ValueError: neither frames nor audio were given.
        """
        parts = []
        if pixel_values is not None:
            if frame_times is None:
                raise ValueError("frame_times belong to pixel_values, but were not given")
            parts.append(self._encode_frames(pixel_values, frame_times, frame_mask))
        if input_features is not None:
            if audio_frames is None:
                raise ValueError("audio_frames belong to input_features, but were not given")
            parts.append(self._encode_audio(input_features, audio_frames))
        if not parts:
            raise ValueError("a batch needs pixel_values or input_features; neither was given")
        tokens = torch.cat([tokens for tokens, _ in parts], dim=1)
        mask = torch.cat([mask for _, mask in parts], dim=1)
        return Media(tokens, None if bool(mask.all()) else mask)

    def _encode_frames(
        self, pixel_values: Tensor, times: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if mask is None:
            mask = torch.ones_like(times, dtype=torch.bool)
        chosen = _at_least_one(mask)
        tokens = self.vision(pixel_values[chosen].to(self.vision.dtype)).last_hidden_state
        tokens = self.vision_projection(tokens, self.time_embedding(times[chosen]))
        return _scatter(tokens, chosen), mask.repeat_interleave(tokens.shape[1], dim=1)

    def _encode_audio(self, features: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
        count, window = frames.shape[1], self.config.mel_frames
        chosen = _at_least_one(frames > 0)
        tokens = self.audio(features[chosen].to(self.audio.dtype)).last_hidden_state
        # Inside a window Whisper has positions of its own.
        places = torch.arange(count, device=frames.device).expand_as(frames)[chosen]
        starts_s = places * (window / self.config.mel_rate_hz)
        tokens = self.audio_projection(tokens, self.time_embedding(starts_s))
        heard = torch.arange(0, window, 2, device=frames.device) < frames[..., None]
        return _scatter(tokens, chosen), heard.flatten(1)

    def encode_text(self, input_ids: Tensor, cache: Cache | None = None) -> Tensor:
        """`[B, T, L]` token ids to states `[B, T, L, D]`, before they have seen any media."""
        hidden = self.text(
            input_ids.flatten(0, 1), past_key_values=cache, use_cache=cache is not None
        ).last_hidden_state
        return self.text_projection(hidden).unflatten(0, input_ids.shape[:2])

    def embed_texts(self, texts_BTLD: Tensor, mask: Tensor) -> Tensor:  # noqa: N803
        """Unit vectors `[B, T, E]` from the state of each text's last token."""
        last = (mask.long().sum(dim=-1) - 1).clamp(min=0)
        index = last[..., None, None].expand(*last.shape, 1, texts_BTLD.shape[-1])
        pooled = texts_BTLD.gather(2, index).squeeze(2)
        return _unit(self.text_embedding(pooled))

    def embed_media(self, media: Media) -> Tensor:
        """Unit vectors `[B, E]`; a clip without media is a zero vector."""
        tokens, mask = media
        if mask is None:
            pooled = tokens.mean(dim=1)
        else:
            # In float32: the sum of thousands of tokens is beyond half precision.
            pooled = (tokens * mask[..., None]).sum(dim=1, dtype=torch.float32)
            pooled = (pooled / mask.sum(dim=1, keepdim=True).clamp(min=1)).to(tokens.dtype)
        return _unit(self.media_embedding(pooled))

    def _fuse(
        self,
        texts_BTLD: Tensor,  # noqa: N803
        media: Media,
        tasks: Sequence[Task],
        self_cache: Cache | None = None,
        media_cache: Cache | None = None,
    ) -> Tensor:
        numbers = torch.tensor([TASKS.index(task) for task in tasks], device=texts_BTLD.device)
        states = texts_BTLD + self.task_embedding(numbers)[None, :, None]
        for block in self.fusion:
            states = block(states, media, self_cache=self_cache, media_cache=media_cache)
        return self.fusion_norm(states)

    def head(self, task: Task) -> nn.Module:
        """What writes the texts of a task."""
        return {"caption": self.caption_head, "transcript": self.transcription_head}[task]

    def _add_losses(
        self,
        output: ApotheonOutput,
        logits: Mapping[Task, Tensor],
        labels: Tensor,
        label_counts: Tensor | None,
        contrast: Tensor,
    ) -> None:
        config = self.config
        output.contrastive_loss = contrast
        output.loss = config.contrastive_weight * contrast
        for number, (task, logits_BLV) in enumerate(logits.items()):  # noqa: N806
            count = None if label_counts is None else label_counts[number]
            loss = token_cross_entropy(logits_BLV, labels[:, number], count)
            if task == "caption":
                output.caption_loss = loss
                output.loss = output.loss + config.caption_weight * loss
            else:
                output.transcription_loss = loss
                output.loss = output.loss + config.transcription_weight * loss

    def _contrast(
        self,
        texts_BTLD: Tensor,  # noqa: N803
        input_ids: Tensor,
        text_mask: Tensor,
        media: Media,
    ) -> Tensor:
        """The mean over the tasks of the loss between clips and their texts."""
        texts = self.embed_texts(texts_BTLD, text_mask)
        clips = self.embed_media(media)
        has_media = torch.ones_like(text_mask[:, 0, 0]) if media.mask is None else media.mask.any(1)
        keys = text_keys(input_ids, text_mask)
        by_task = [
            contrastive_loss(
                clips,
                texts[:, number],
                text_mask[:, number].any(dim=1) & has_media,
                keys[:, number],
                self.log_scale,
            )
            for number in range(texts.shape[1])
        ]
        return torch.stack(by_task).mean()

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        frame_times: Tensor | None = None,
        frame_mask: Tensor | None = None,
        input_features: Tensor | None = None,
        audio_frames: Tensor | None = None,
        task: Task = "caption",
        **options: Any,
    ) -> Any:
        """Write a caption or a transcript for each clip of a batch.

        Args:
            pixel_values, frame_times, frame_mask, input_features, audio_frames: see `encode_media`.
            task: which head writes.
            options: of `transformers`' `generate`: `num_beams`, `do_sample`, `streamer`, and so on.

        Returns:
            `[B, length]` token ids, the start token first.

        Raises:
            ValueError: the task is unknown.
        """
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, not {task!r}")
        media = self.encode_media(
            pixel_values, frame_times, frame_mask, input_features, audio_frames
        )
        start = torch.full(
            (media.tokens.shape[0], 1), self.config.bos_token_id, device=media.tokens.device
        )
        return super().generate(
            input_ids=start,
            media_tokens=media.tokens,
            media_mask=media.mask,
            tasks=(task,),
            past_key_values=EncoderDecoderCache(DynamicCache(), DynamicCache()),
            **options,
        )


def _unit(vectors: Tensor) -> Tensor:
    """Vectors of unit length; zeros stay zeros, which in half precision would divide by 0."""
    return F.normalize(vectors.float(), dim=-1).to(vectors.dtype)


def _at_least_one(mask: Tensor) -> Tensor:
    """The mask, or its first place where it is empty.

    Every rank must run every encoder, or the ranks would wait for each other's gradients for ever.
    What is chosen in excess is masked out of the attention.
    """
    if bool(mask.any()):
        return mask
    first = torch.zeros_like(mask)
    first[0, 0] = True
    return first


def _scatter(tokens: Tensor, chosen: Tensor) -> Tensor:
    """`[chosen, S, D]` to their places in `[B, all * S, D]`; zeros elsewhere."""
    if bool(chosen.all()):
        return tokens.view(chosen.shape[0], -1, tokens.shape[-1])
    spread = tokens.new_zeros(*chosen.shape, *tokens.shape[1:])
    spread[chosen] = tokens
    return spread.flatten(1, 2)

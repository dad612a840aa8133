"""Apotheon, trained here, as a captioner and a transcriber of the dataset job and of evaluation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch

from spark_ray.apotheon import ApotheonModel, ApotheonProcessor
from spark_ray.apotheon.processing import PreparedClip, even_choice
from spark_ray.core.anatomy import Task
from spark_ray.core.errors import ConfigError, CorruptMedia
from spark_ray.core.schema import Caption, Clip, ModelInfo, Segment, Transcript
from spark_ray.media.audio_codec import decode_audio
from spark_ray.models.captioning import CaptionOptions, captioners
from spark_ray.models.frame_captioner import batched
from spark_ray.models.pretrained import Placement, choose_placement, load_model, load_processor
from spark_ray.models.transcription import TranscriptionOptions, transcribers
from spark_ray.models.weights import SAFETENSORS, Weights, check_weights, resolve_weights

NO_MODEL = "train one with 'spark-ray train apotheon'"


@dataclass
class Apotheon:
    """A loaded model with its processor: clips in, texts and embeddings out."""

    model: ApotheonModel
    processor: ApotheonProcessor
    placement: Placement
    weights: Weights

    @classmethod
    def load(
        cls,
        reference: str,
        *,
        setting: str,
        revision: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ) -> "Apotheon":
        """From a folder, a registered model (`models:/apotheon@champion`) or a hub id.

        Raises:
            ModelError: it can't be found or read, or is no Apotheon.
        """
        weights = find_weights(reference, setting=setting, revision=revision)
        return cls.from_weights(weights, setting=setting, device=device, dtype=dtype)

    @classmethod
    def from_weights(
        cls, weights: Weights, *, setting: str, device: str = "auto", dtype: str = "auto"
    ) -> "Apotheon":
        """From files that were found.

        Raises:
            ModelError: they can't be read, or are no Apotheon.
        """
        placement = choose_placement(device, dtype, torch.bfloat16)
        model = load_model(ApotheonModel, weights, setting, placement)
        processor = load_processor(ApotheonProcessor, weights, setting)
        return cls(model, processor, placement, weights)

    def choose_frames(self, available: int) -> list[int]:
        """Which of a clip's frames the model looks at."""
        return even_choice(available, self.processor.max_frames)

    def prepare(
        self,
        frames: Sequence[bytes],
        frame_times: Sequence[float],
        audio: bytes | None,
        caption: str | None = None,
        transcript: str | None = None,
    ) -> PreparedClip:
        """A clip's compressed bytes as arrays.

        Raises:
            CorruptMedia: a frame or the audio can't be decoded.
        """
        return prepare_clip(self.processor, frames, frame_times, audio, caption, transcript)

    def write(
        self, clips: Sequence[PreparedClip], task: Task, max_new_tokens: int, num_beams: int = 1
    ) -> list[str]:
        """A caption or a transcript for each clip; without sampling, so always the same."""
        tokens = self.generate(clips, task, max_new_tokens=max_new_tokens, num_beams=num_beams)
        return self.processor.decode_texts(tokens)

    @torch.inference_mode()
    def generate(self, clips: Sequence[PreparedClip], task: Task, **options: Any) -> torch.Tensor:
        """Token ids `[clips, length]`, the start token first; `options` are of `generate`."""
        return self.model.generate(
            **self._media(clips), task=task, **{"do_sample": False, **options}
        )

    @torch.inference_mode()
    def embed_clips(self, clips: Sequence[PreparedClip]) -> np.ndarray:
        """Unit vectors `[clips, E]` float32, to be compared with those of `embed_texts`."""
        media = self.model.encode_media(**self._media(clips))
        return self.model.embed_media(media).float().cpu().numpy()

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Unit vectors `[texts, E]` float32."""
        batch = self.processor(captions=list(texts)).to(self.placement.device)
        ids, mask = batch["input_ids"][:, :1], batch["text_mask"][:, :1]
        states = self.model.encode_text(ids)
        return self.model.embed_texts(states, mask)[:, 0].float().cpu().numpy()

    def _media(self, clips: Sequence[PreparedClip]) -> dict[str, torch.Tensor]:
        batch = self.processor.collate(clips).to(self.placement.device)
        batch = self.processor.normalise(batch)
        names = ("pixel_values", "frame_times", "frame_mask", "input_features", "audio_frames")
        return {name: batch[name] for name in names if name in batch}


def find_weights(reference: str, *, setting: str, revision: str | None = None) -> Weights:
    """
    Raises:
        ModelError: they can't be found.
    """
    return resolve_weights(
        reference, setting=setting, revision=revision, kind=SAFETENSORS, instead=NO_MODEL
    )


def prepare_clip(
    processor: ApotheonProcessor,
    frames: Sequence[bytes],
    frame_times: Sequence[float],
    audio: bytes | None,
    caption: str | None = None,
    transcript: str | None = None,
) -> PreparedClip:
    """Decode JPEG frames and FLAC or WAV audio, and make them ready for the model.

    Raises:
        CorruptMedia: a frame or the audio can't be decoded.
    """
    chosen = even_choice(len(frames), processor.max_frames)  # the others need no decoding
    return processor.prepare(
        [decode_frame(frames[number]) for number in chosen],
        [frame_times[number] for number in chosen],
        decode_audio(audio) if audio else None,
        caption,
        transcript,
    )


def decode_frame(data: bytes) -> np.ndarray:
    """A JPEG as `[height, width, 3]` uint8 RGB."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise CorruptMedia("a frame of the clip is no readable JPEG")
    return image


class _Backend:
    uses_accelerator = True
    model: Apotheon

    def _write(
        self, clips: Sequence[Clip], task: Task, batch_size: int, max_new_tokens: int
    ) -> Iterator[tuple[Clip, str]]:
        for batch in batched(clips, batch_size):
            prepared = [self.model.prepare(c.frames, c.frame_times, c.audio) for c in batch]
            texts = self.model.write(prepared, task, max_new_tokens)
            yield from zip(batch, texts, strict=True)


@captioners.register("apotheon")
class ApotheonCaptioner(_Backend):
    """One caption for the whole clip, from its frames and its sound together."""

    def __init__(self, options: CaptionOptions) -> None:
        if options.caption_model is None:
            raise ConfigError(f"caption_backend=apotheon needs caption_model; {NO_MODEL}")
        if options.caption_prompt is not None:
            raise ConfigError("caption_prompt has no effect with caption_backend=apotheon")
        self.options = options

    def load(self) -> ModelInfo:
        options = self.options
        assert options.caption_model is not None
        self.model = Apotheon.load(
            options.caption_model,
            setting="caption_model",
            revision=options.caption_revision,
            device=options.caption_device,
            dtype=options.caption_dtype,
        )
        return self.model.weights.info()

    def check_weights(self) -> None:
        assert self.options.caption_model is not None
        check_weights(
            self.options.caption_model,
            setting="caption_model",
            revision=self.options.caption_revision,
            kind=SAFETENSORS,
            instead=NO_MODEL,
        )

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        seen = [clip for clip in clips if clip.frames]
        options = self.options
        written = self._write(
            seen, "caption", options.caption_batch_size, options.caption_max_new_tokens
        )
        return {clip.clip_id: Caption(text=text, all_captions=[text]) for clip, text in written}


@transcribers.register("apotheon")
class ApotheonTranscriber(_Backend):
    """One segment for the whole clip: Apotheon times neither sentences nor words."""

    _MAX_NEW_TOKENS = 256

    def __init__(self, options: TranscriptionOptions) -> None:
        # The default is a size of Whisper.
        if options.transcription_model == type(options).model_fields["transcription_model"].default:
            raise ConfigError(
                f"transcription_backend=apotheon needs transcription_model; {NO_MODEL}"
            )
        if options.word_timestamps:
            raise ConfigError("word_timestamps: transcription_backend=apotheon can't time words")
        self.options = options

    def load(self) -> ModelInfo:
        self.model = Apotheon.load(
            self.options.transcription_model,
            setting="transcription_model",
            device=self.options.transcription_device,
        )
        return self.model.weights.info()

    def check_weights(self) -> None:
        check_weights(
            self.options.transcription_model,
            setting="transcription_model",
            revision=None,
            kind=SAFETENSORS,
            instead=NO_MODEL,
        )

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        heard = [clip for clip in clips if clip.audio]
        written = self._write(
            heard, "transcript", self.options.transcription_batch_size, self._MAX_NEW_TOKENS
        )
        return {
            clip.clip_id: Transcript(
                text=text, segments=[Segment(start=0.0, end=clip.duration_s, text=text)]
            )
            for clip, text in written
            if text
        }

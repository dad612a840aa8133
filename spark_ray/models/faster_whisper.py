"""Whisper on CTranslate2, with silence cut out first: the transcriber for more than a few hours."""

import math
from collections.abc import Sequence
from typing import Any

import faster_whisper
from faster_whisper.utils import _MODELS

from spark_ray.core.errors import ModelError, unknown_choice
from spark_ray.core.schema import Clip, ModelInfo, Segment, Transcript, Word
from spark_ray.media.audio_codec import SAMPLE_RATE, decode_audio
from spark_ray.models.transcription import (
    TranscriptionOptions,
    language_of,
    transcribers,
    transcript_of,
)
from spark_ray.models.weights import CTRANSLATE2, WantedWeights, check_weights, resolve_weights

_WINDOW_S = 30

_INSTEAD = (
    "set transcription_model to a folder converted for CTranslate2, or transcription_backend to "
    "subtitles or none"
)


@transcribers.register("faster_whisper")
class FasterWhisperTranscriber:
    """Transcribes the spoken stretches of each clip, `transcription_batch_size` windows at a time.

    Decoding is a beam search of 5 without sampling, so it is the same every time.

    Cost: windows of one clip share a forward pass, windows of different clips do not; clips under
    30 s fill a GPU no better than one window at a time.
    """

    uses_accelerator = True

    def __init__(self, options: TranscriptionOptions) -> None:
        self.options = options

    def load(self) -> ModelInfo:
        """Load the model onto a GPU if there is one.

        Raises:
            ModelError: the weights can't be found, fetched or read.
            ConfigError: the model does not speak `transcription_language`.
        """
        name = self.options.transcription_model
        weights = resolve_weights(**self._wanted())
        # Without this file the library would fetch another model's tokenizer in silence.
        if not (weights.folder / "tokenizer.json").is_file():
            raise ModelError(
                f"transcription_model: {name} holds no tokenizer.json; convert it again with "
                "--copy_files tokenizer.json preprocessor_config.json"
            )
        device, _, index = self.options.transcription_device.partition(":")
        try:
            self.model = faster_whisper.WhisperModel(
                str(weights.folder),
                device=device,
                device_index=int(index or 0),
                # As it was converted; a CPU, which has no float16, takes that as float32.
                compute_type="default",
            )
        except (RuntimeError, ValueError) as error:
            raise ModelError(
                f"transcription_model: {name} can't be loaded on {device}: {error}"
            ) from error

        language, known = self.options.transcription_language, self.model.supported_languages
        if language is not None and language not in known:
            raise unknown_choice("transcription_language", language, known)
        return weights.info()

    def check_weights(self) -> None:
        check_weights(**self._wanted())

    def _wanted(self) -> WantedWeights:
        name = self.options.transcription_model
        return {
            "reference": _MODELS.get(name, name),
            "setting": "transcription_model",
            "revision": None,
            "kind": CTRANSLATE2,
            "instead": _INSTEAD,
        }

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        """Transcripts by clip id; a clip in which nothing is said is left out.

        Raises:
            CorruptMedia: a clip's audio bytes can't be decoded.
            ConfigError: a clip is said to be in a language that the model doesn't know.
        """
        known = self.model.supported_languages
        heard = {
            clip.clip_id: self._hear(clip.audio, language_of(clip, self.options, known))
            for clip in clips
            if clip.audio is not None
        }
        return {clip_id: transcript for clip_id, transcript in heard.items() if transcript}

    def _hear(self, audio: bytes, language: str | None) -> Transcript | None:
        samples = decode_audio(audio)
        duration_s = samples.size / SAMPLE_RATE
        # The pipeline carries state from window to window; a new one costs nothing and makes a
        # clip independent of a predecessor that failed halfway.
        pipeline = faster_whisper.BatchedInferencePipeline(self.model)
        segments, info = pipeline.transcribe(
            samples,
            language=language,
            batch_size=self.options.transcription_batch_size,
            word_timestamps=self.options.word_timestamps,
            without_timestamps=False,
            vad_filter=self.options.transcription_vad,
            clip_timestamps=None if self.options.transcription_vad else _windows(duration_s),
        )
        return transcript_of([_segment(segment) for segment in segments], info.language, duration_s)


def _windows(duration_s: float) -> list[dict[str, float]]:
    """Without the detection of speech, the pipeline must be told where to cut."""
    starts = range(0, math.ceil(duration_s), _WINDOW_S)
    return [{"start": start, "end": min(start + _WINDOW_S, duration_s)} for start in starts]


def _segment(segment: Any) -> Segment:
    words = [
        Word(start=word.start, end=word.end, text=word.word, probability=word.probability)
        for word in segment.words or []
    ]
    return Segment(start=segment.start, end=segment.end, text=segment.text, words=words)

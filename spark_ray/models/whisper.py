"""OpenAI's own Whisper: the reference transcriber, in PyTorch."""

import os
import pickle
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import URLError

import torch
import whisper
from filelock import FileLock
from whisper.tokenizer import LANGUAGES

from spark_ray.core.errors import ModelError, unknown_choice
from spark_ray.core.schema import Clip, ModelInfo, Segment, Transcript, Word
from spark_ray.core.storage import user_path
from spark_ray.media.audio_codec import SAMPLE_RATE, decode_audio
from spark_ray.models.pretrained import choose_placement
from spark_ray.models.transcription import (
    TranscriptionOptions,
    language_of,
    transcribers,
    transcript_of,
)
from spark_ray.models.weights import Weights, log, require_online

_DOWNLOAD_MB = {"tiny": 76, "base": 145, "small": 484, "medium": 1528, "turbo": 1618, "large": 3087}

_INSTEAD = "set transcription_model to a .pt file, or transcription_backend to subtitles or none"


@transcribers.register("whisper")
class WhisperTranscriber:
    """Transcribes each clip by itself, in windows of 30 s that each see the text before them.

    What Whisper is unsure of it tries again at rising temperatures. That is random, so each clip
    starts from the same seed: its transcript does not depend on the clips before it.

    Cost: one window at a time, so a GPU is mostly idle; `faster_whisper` is several times faster.
    """

    uses_accelerator = True

    def __init__(self, options: TranscriptionOptions) -> None:
        language = options.transcription_language
        if language is not None and language not in LANGUAGES:
            raise unknown_choice("transcription_language", language, LANGUAGES)
        self.options = options

    def load(self) -> ModelInfo:
        """Load the model onto a GPU if there is one.

        Raises:
            ModelError: the name is unknown, its download fails or is forbidden, or the file is no
                checkpoint of Whisper.
        """
        name = self.options.transcription_model
        placement = choose_placement(self.options.transcription_device, "auto", torch.float16)
        weights = _find(name)
        # A size is loaded by its name: only then does the library know which attention heads
        # follow the sound, and times words well.
        source = name if name in whisper.available_models() else str(weights.files[0])
        try:
            self.model = whisper.load_model(
                source, device=placement.device, download_root=str(weights.folder)
            )
        except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.PickleError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelError(
                f"transcription_model: {name} can't be loaded as a checkpoint of Whisper: {reason}"
            ) from error
        return weights.info()

    def check_weights(self) -> None:
        _require(self.options.transcription_model, _checkpoint(self.options.transcription_model))

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        """Transcripts by clip id; a clip in which nothing is said is left out.

        Raises:
            CorruptMedia: a clip's audio bytes can't be decoded.
            ConfigError: a clip is said to be in a language that the model doesn't know.
        """
        known = LANGUAGES if self.model.is_multilingual else {"en"}
        heard = {
            clip.clip_id: self._hear(clip.audio, language_of(clip, self.options, known))
            for clip in clips
            if clip.audio is not None
        }
        return {clip_id: transcript for clip_id, transcript in heard.items() if transcript}

    def _hear(self, audio: bytes, language: str | None) -> Transcript | None:
        samples = decode_audio(audio)
        gpus = [self.model.device] if self.model.device.type == "cuda" else []
        with torch.random.fork_rng(devices=gpus):
            torch.manual_seed(0)
            result = whisper.transcribe(
                self.model,
                samples,
                language=language,
                word_timestamps=self.options.word_timestamps,
                fp16=bool(gpus),
                verbose=None,
            )
        segments = [_segment(segment) for segment in result["segments"]]
        return transcript_of(segments, result["language"], samples.size / SAMPLE_RATE)


def _segment(segment: dict[str, Any]) -> Segment:
    words = [
        Word(
            start=word["start"], end=word["end"], text=word["word"], probability=word["probability"]
        )
        for word in segment.get("words", [])
    ]
    return Segment(start=segment["start"], end=segment["end"], text=segment["text"], words=words)


def _find(name: str) -> Weights:
    """The checkpoint on this machine, fetched if it is one of the library's sizes."""
    weights = _checkpoint(name)
    _require(name, weights)
    (file,) = weights.files
    if not file.exists():
        _download(name, whisper._MODELS[name], file)
    return weights


def _checkpoint(name: str) -> Weights:
    """Where the checkpoint is, or will be when it is fetched."""
    if name not in whisper.available_models():
        file = user_path(name)
        if not file.is_file():
            known = ", ".join(whisper.available_models())
            raise ModelError(
                f"transcription_model: {name} is neither a .pt file on this machine nor a size "
                f"of Whisper; the sizes are: {known}"
            )
        return Weights(name, file.parent, None, (file,))

    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "whisper"
    url: str = whisper._MODELS[name]
    return Weights(name, cache, None, (cache / url.rpartition("/")[2],))


def _require(name: str, weights: Weights) -> None:
    """Raises ModelError if the checkpoint is not here and may not be fetched."""
    if not weights.files[0].exists():
        require_online("transcription_model", f"Whisper {name}", _INSTEAD)


def _download(name: str, url: str, file: Path) -> None:
    size = next(mb for prefix, mb in _DOWNLOAD_MB.items() if prefix in name)
    log.warning(
        "transcription_model: downloading Whisper %s, about %d MB. To do without, %s.",
        name,
        size,
        _INSTEAD,
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        # The library writes straight to the final name, where another worker would take a half
        # for the whole.
        with FileLock(f"{file}.lock"), tempfile.TemporaryDirectory(dir=file.parent) as folder:
            if not file.exists():
                Path(whisper._download(url, folder, in_memory=False)).replace(file)
    except (URLError, OSError, RuntimeError) as error:
        raise ModelError(
            f"transcription_model: Whisper {name} can't be downloaded ({error}); check the "
            f"network, or {_INSTEAD}"
        ) from error

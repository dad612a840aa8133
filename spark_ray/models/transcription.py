"""Which transcriber hears the clips, and with what settings.

As with captions, importing this module costs nothing; a backend is imported when it is asked for.
"""

from collections.abc import Collection

from pydantic import BaseModel, Field

from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.schema import Clip, Segment, Transcript, Word
from spark_ray.media.languages import LanguageCode
from spark_ray.models.protocols import Transcriber
from spark_ray.models.registry import BackendModule, Registry

WHISPER_SIZES = frozenset(
    (
        "tiny", "tiny.en", "base", "base.en", "small", "small.en", "medium", "medium.en", "large",
        "large-v1", "large-v2", "large-v3", "large-v3-turbo", "turbo", "distil-small.en",
        "distil-medium.en", "distil-large-v2", "distil-large-v3", "distil-large-v3.5",
    )
)  # fmt: skip
"""Models that are named by their size, by either package; asking those would import torch."""


class TranscriptionOptions(BaseModel):
    """Who transcribes, and how."""

    transcription_backend: str = Field(
        "none",
        description="Who writes the transcripts: whisper, faster_whisper, apotheon (models), "
        "subtitles (embedded, or .srt and .vtt files beside the videos), or none.",
    )
    transcription_model: str = Field(
        "base",
        description="Size of the Whisper model (tiny, base, small, medium, large, turbo, …; .en "
        "for English only), or a path: a .pt file for whisper, a CTranslate2 folder or hub id for "
        "faster_whisper, and the folder or registered model for apotheon.",
    )
    transcription_language: LanguageCode | None = Field(
        None,
        description="ISO 639-1 code of what is spoken, and of the subtitles to read. Unset, "
        "Whisper guesses it from the first 30 s of each clip, and on a short clip often wrong.",
    )
    transcription_batch_size: int = Field(
        8,
        ge=1,
        description="30-second windows of a clip in one forward pass (faster_whisper alone).",
    )
    transcription_vad: bool = Field(
        True,
        description="Cut silence and music out before listening (faster_whisper alone); without it "
        "Whisper invents sentences where nobody speaks.",
    )
    word_timestamps: bool = Field(
        False, description="Also time every word; costs about a third more."
    )
    transcription_device: str = Field(
        "auto", description="Device of the transcription model: auto, cpu, cuda, cuda:1."
    )


transcribers: Registry[TranscriptionOptions, Transcriber] = Registry(
    "transcription_backend",
    {
        "apotheon": BackendModule("spark_ray.models.apotheon", "models"),
        "whisper": BackendModule("spark_ray.models.whisper", "whisper"),
        "faster_whisper": BackendModule("spark_ray.models.faster_whisper", "faster-whisper"),
        "subtitles": BackendModule("spark_ray.models.subtitles", "models"),
        "none": BackendModule("spark_ray.models.none", "models"),
    },
)


def is_named_by_size(options: TranscriptionOptions) -> bool:
    """Whether the model is a size of Whisper, also where a file or folder has that name."""
    by_size = options.transcription_backend != "apotheon"
    return by_size and options.transcription_model in WHISPER_SIZES


def build_transcriber(options: TranscriptionOptions) -> Transcriber:
    """The transcriber that the options name, checked, small, and without its weights.

    Raises:
        ConfigError: the backend or a setting is unknown, or two settings contradict each other.
        MissingDependency: the backend needs a package that is not installed.
    """
    backend = options.transcription_backend
    factory = transcribers.get(backend)
    if options.word_timestamps and backend in {"subtitles", "none"}:
        raise ConfigError(
            f"word_timestamps: transcription_backend={backend} can't time words; "
            "choose whisper or faster_whisper, or turn word_timestamps off"
        )

    # A job's whole configuration inherits these fields; only ours travel to the actors.
    own = {name: getattr(options, name) for name in TranscriptionOptions.model_fields}
    return factory(TranscriptionOptions.model_validate(own))


class SpokenClip(Clip):
    """A clip of which whoever asks says what language is spoken in it, by its ISO 639 code."""

    spoken_language: str


def language_of(clip: Clip, options: TranscriptionOptions, known: Collection[str]) -> str | None:
    """The language to listen for, where the clip or else the setting says it.

    Raises:
        ConfigError: the clip's is not among those that the model knows.
    """
    if not isinstance(clip, SpokenClip):
        return options.transcription_language
    if clip.spoken_language not in known:
        raise unknown_choice("language", clip.spoken_language, known)
    return clip.spoken_language


def transcript_of(
    segments: list[Segment], language: str | None, duration_s: float
) -> Transcript | None:
    """The segments as a transcript, or None if no word is said in them.

    Recognisers think in windows of 30 s and may end a word after the sound does: times are trimmed
    to `duration_s` and rounded to milliseconds, and what starts later is an invention and dropped.
    """
    said = []
    for segment in segments:
        text = segment.text.strip()
        if text and segment.start < duration_s:
            words = [
                word.model_copy(update={"text": word.text.strip(), **_trimmed(word, duration_s)})
                for word in segment.words
                if word.start < duration_s
            ]
            trimmed = _trimmed(segment, duration_s)
            said.append(segment.model_copy(update={"text": text, "words": words, **trimmed}))
    if not said:
        return None
    return Transcript(
        text=" ".join(segment.text for segment in said), language=language, segments=said
    )


def _trimmed(span: Segment | Word, duration_s: float) -> dict[str, float]:
    start = round(span.start, 3)
    return {"start": start, "end": max(start, round(min(span.end, duration_s), 3))}

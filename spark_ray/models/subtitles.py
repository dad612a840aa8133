"""Transcripts that somebody has already written: subtitles in the video or beside it."""

from collections.abc import Sequence

from spark_ray.core.schema import Clip, Segment, Transcript
from spark_ray.media.subtitles import cues_between
from spark_ray.models.sidecar_files import (
    LANGUAGE_TAG,
    is_named_subtitles,
    merge_rolling,
    read_cues,
    tag,
)
from spark_ray.models.transcription import TranscriptionOptions, transcribers

# Containers name languages with three letters (ISO 639-2), the rest of the house with two.
_TWO_LETTERS = {
    "ara": "ar", "bul": "bg", "ces": "cs", "chi": "zh", "cze": "cs", "dan": "da", "deu": "de",
    "dut": "nl", "ell": "el", "eng": "en", "est": "et", "fas": "fa", "fin": "fi", "fra": "fr",
    "fre": "fr", "ger": "de", "gre": "el", "heb": "he", "hin": "hi", "hrv": "hr", "hun": "hu",
    "ind": "id", "ita": "it", "jpn": "ja", "kor": "ko", "lav": "lv", "lit": "lt", "nld": "nl",
    "nor": "no", "per": "fa", "pol": "pl", "por": "pt", "ron": "ro", "rum": "ro", "rus": "ru",
    "slk": "sk", "slo": "sk", "slv": "sl", "spa": "es", "srp": "sr", "swe": "sv", "tha": "th",
    "tur": "tr", "ukr": "uk", "vie": "vi", "zho": "zh",
}  # fmt: skip


@transcribers.register("subtitles")
class SubtitleTranscriber:
    """Embedded subtitles first, which the decoder left in the clip, else a .srt or .vtt beside it.

    `transcription_language` picks among files like `film.de.srt`; a file without a language in its
    name suits every choice. A `film.caption.srt` says what is seen, and is left to the captions.
    Cost: one small read for each clip without embedded subtitles.
    """

    uses_accelerator = False

    def __init__(self, options: TranscriptionOptions) -> None:
        self.language = options.transcription_language

    def load(self) -> None:
        return None

    def transcribe(self, clips: Sequence[Clip]) -> dict[str, Transcript]:
        """Transcripts by clip id; a clip in whose span nothing is said is left out.

        Raises:
            StorageError: a subtitle file can't be read.
            SidecarError: it can't be understood.
        """
        transcripts: dict[str, Transcript] = {}
        for clip in clips:
            language, segments = self._embedded(clip) or self._beside(clip) or (None, [])
            if segments:
                text = " ".join(segment.text for segment in segments)
                transcripts[clip.clip_id] = Transcript(
                    text=text, language=language, segments=segments
                )
        return transcripts

    def _embedded(self, clip: Clip) -> tuple[str | None, list[Segment]] | None:
        language = _two_letters(clip.subtitle_language)
        if not clip.subtitles or not self._wanted(language):
            return None
        return language, merge_rolling(clip.subtitles)

    def _beside(self, clip: Clip) -> tuple[str | None, list[Segment]] | None:
        files = [(_language_in_name(uri), uri) for uri in clip.sidecars if is_named_subtitles(uri)]
        wanted = [(language, uri) for language, uri in files if self._wanted(language)]
        if not wanted:
            return None
        # A file in the language that was asked for beats one that does not say its language, and
        # where none was asked for, the plain name is the original.
        language, uri = min(
            wanted, key=lambda file: ((file[0] is None) == (self.language is not None), file[1])
        )
        end_s = float("inf") if clip.end_s is None else clip.end_s
        return language, cues_between(read_cues(uri), clip.start_s, end_s)

    def _wanted(self, language: str | None) -> bool:
        return self.language is None or language in {None, self.language}


def _language_in_name(uri: str) -> str | None:
    """`de` for film.de.srt and film.de-AT.srt; None for film.srt."""
    match = LANGUAGE_TAG.fullmatch(tag(uri))
    return _two_letters(match[1].lower()) if match else None


def _two_letters(code: str | None) -> str | None:
    return None if code in {None, "und"} else _TWO_LETTERS.get(code, code)

"""Transcripts that somebody has already written: subtitles in the video or beside it."""

from collections.abc import Sequence

from spark_ray.core.schema import Clip, Segment, Transcript
from spark_ray.media.languages import language_code
from spark_ray.media.subtitles import cues_between
from spark_ray.models.sidecar_files import (
    LANGUAGE_TAG,
    is_named_subtitles,
    merge_rolling,
    read_cues,
    tag,
)
from spark_ray.models.transcription import TranscriptionOptions, transcribers


@transcribers.register("subtitles")
class SubtitleTranscriber:
    """Embedded subtitles first, which the decoder left in the clip, else a .srt or .vtt beside it.

    `transcription_language` picks among those in the video, and among files like `film.de.srt`; a
    file without a language in its name suits every choice. A `film.caption.srt` says what is seen,
    and is left to the captions.
    Cost: one small read for each clip without embedded subtitles.
    """

    uses_accelerator = False

    def __init__(self, options: TranscriptionOptions) -> None:
        self.language = language_code(options.transcription_language)

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
        language = language_code(clip.subtitle_language)
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
    return language_code(match[1]) if match else None

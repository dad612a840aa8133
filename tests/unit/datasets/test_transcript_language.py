"""The language that a transcript is asked for in decides which subtitles of a video are read."""

from fractions import Fraction
from pathlib import Path

import pytest
from media_factory import pictures, tone
from planned import config

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import Clip, Segment
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.stages import DecodeStage
from spark_ray.media.encode import AudioTrack, SubtitleTrack, VideoTrack, write_tracks
from spark_ray.models.transcription import build_transcriber


@pytest.mark.parametrize(("language", "text"), [("de", "Guten Tag"), (None, "Good day")])
def test_a_transcript_comes_from_the_subtitles_in_its_language(
    tmp_path: Path, language: str | None, text: str
) -> None:
    said = {"eng": "Good day", "ger": "Guten Tag"}
    subtitles = [
        SubtitleTrack(cues=[Segment(start=0.1, end=0.9, text=text)], language=language)
        for language, text in said.items()
    ]
    sound = AudioTrack(pcm=tone(1.0), sample_rate=16_000, language="eng", codec="flac")
    video = VideoTrack(frames=pictures(25), rate=Fraction(25))
    write_tracks(tmp_path / "a.mkv", [video, sound, *subtitles])

    chosen = config(transcription_backend="subtitles", transcription_language=language)
    unit = Clip(clip_id="u", video_id="v", unit_id="u", source_path=str(tmp_path / "a.mkv"))
    (clip,) = DecodeStage(chosen, Folder(str(tmp_path / "v1")), "run", {}).process([unit])
    transcripts = build_transcriber(chosen).transcribe([clip])
    assert [transcript.text for transcript in transcripts.values()] == [text]


@pytest.mark.parametrize("field", ["transcription_language", "audio_language"])
def test_a_word_that_is_no_code_is_refused(field: str) -> None:
    with pytest.raises(ConfigError, match=rf"{field}: 'english' is no ISO 639 code"):
        BuildConfig.from_values(input=["clips"], output="datasets/set", **{field: "english"})

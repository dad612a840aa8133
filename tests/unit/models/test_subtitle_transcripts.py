from pathlib import Path

import pytest

from spark_ray.core.schema import Clip, Segment, Transcript
from spark_ray.models.sidecar_files import SidecarError, merge_rolling, read_cues
from spark_ray.models.transcription import TranscriptionOptions, build_transcriber

SRT = """1
00:00:00,500 --> 00:00:02,000
Good morning.

2
00:00:03,000 --> 00:00:05,000
How are you?
"""


def make_clip(start_s: float, end_s: float, **fields: object) -> Clip:
    return Clip.model_validate(
        {
            "clip_id": f"0a1b-{start_s}",
            "video_id": "0a1b",
            "unit_id": "unit",
            "source_path": "street.mp4",
            "start_s": start_s,
            "end_s": end_s,
            **fields,
        }
    )


def transcribe(clip: Clip, language: str | None = None) -> Transcript | None:
    transcriber = build_transcriber(
        TranscriptionOptions(transcription_backend="subtitles", transcription_language=language)
    )
    assert transcriber.load() is None
    return transcriber.transcribe([clip]).get(clip.clip_id)


def write(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def test_embedded_subtitles_come_first_and_are_already_the_clips(tmp_path: Path) -> None:
    segments = [Segment(start=0.2, end=1.0, text="Hello."), Segment(start=1.0, end=2, text="Bye.")]
    clip = make_clip(
        10,
        12,
        subtitles=segments,
        subtitle_language="ger",
        sidecars=[write(tmp_path / "a.srt", SRT)],
    )
    assert transcribe(clip) == Transcript(text="Hello. Bye.", language="de", segments=segments)


@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_a_file_beside_the_video_is_cut_to_the_clip(kind: str, tmp_path: Path) -> None:
    text = SRT if kind == "srt" else "WEBVTT\n\n" + SRT.replace(",", ".")
    sidecars = [write(tmp_path / f"street.en.{kind}", text)]
    whole = transcribe(make_clip(0, 6, sidecars=sidecars))
    assert whole is not None
    assert (whole.text, whole.language) == ("Good morning. How are you?", "en")

    later = transcribe(make_clip(4, 6, sidecars=sidecars))
    assert later is not None
    assert later.segments == [Segment(start=0.0, end=1.0, text="How are you?")]
    assert transcribe(make_clip(2, 3, sidecars=sidecars)) is None


def test_the_language_that_is_asked_for_is_read(tmp_path: Path) -> None:
    sidecars = [
        write(tmp_path / f"film{tag}.srt", f"1\n00:00:00,000 --> 00:00:01,000\n{text}\n")
        for tag, text in ((".de-AT", "Servus"), (".eng", "Hello"), ("", "Original"))
    ]
    clip = make_clip(0, 2, sidecars=sidecars)
    for language, expected in (("de", "Servus"), ("en", "Hello"), ("fr", "Original")):
        transcript = transcribe(clip, language)
        assert transcript is not None
        assert transcript.text == expected
    plain = transcribe(clip)
    assert plain is not None
    assert (plain.text, plain.language) == ("Original", None)

    spoken = [Segment(start=0, end=1, text="Bonjour")]
    embedded = clip.model_copy(update={"subtitles": spoken, "subtitle_language": "fra"})
    for language, expected in (("fr", "Bonjour"), ("fre", "Bonjour"), ("de", "Servus")):
        transcript = transcribe(embedded, language)
        assert transcript is not None
        assert transcript.text == expected


def test_nothing_said_is_left_out_and_nonsense_is_an_error(tmp_path: Path) -> None:
    assert transcribe(make_clip(0, 6)) is None
    assert transcribe(make_clip(0, 6, sidecars=[write(tmp_path / "empty.srt", "\n")])) is None
    with pytest.raises(SidecarError, match=r"bad\.srt holds no cue"):
        transcribe(make_clip(0, 6, sidecars=[write(tmp_path / "bad.srt", "prose")]))


def test_a_cue_that_ends_before_it_begins_was_said_all_the_same(tmp_path: Path) -> None:
    backwards = "1\n00:00:05,000 --> 00:00:04,000\nback\n"
    said = transcribe(make_clip(0, 6, sidecars=[write(tmp_path / "film.srt", backwards)]))
    assert said is not None
    assert [(cue.start, cue.end, cue.text) for cue in said.segments] == [(5.0, 5.0, "back")]


def test_a_caption_is_not_what_is_said(tmp_path: Path) -> None:
    caption = write(tmp_path / "film.caption.srt", SRT)
    assert transcribe(make_clip(0, 6, sidecars=[caption])) is None
    both = [caption, write(tmp_path / "film.srt", SRT.replace("Good morning", "Good night"))]
    said = transcribe(make_clip(0, 6, sidecars=both))
    assert said is not None
    assert said.text.startswith("Good night")


def test_rolling_lines_are_said_once(tmp_path: Path) -> None:
    # As YouTube writes it, lines of a single blank included.
    vtt = (
        "WEBVTT\nKind: captions\nLanguage: en\n\n"
        "00:00:00.000 --> 00:00:02.000 align:start position:0%\n"
        " \nso<00:00:00.400><c> this</c><00:00:00.800><c> is</c>\n\n"
        "00:00:02.000 --> 00:00:02.010 align:start position:0%\n"
        "so this is\n \n\n"
        "00:00:02.010 --> 00:00:04.000 align:start position:0%\n"
        "so this is\nhow<00:00:02.400><c> it</c><00:00:02.800><c> rolls</c>\n\n"
        "00:00:04.000 --> 00:00:04.010 align:start position:0%\n"
        "how it rolls\n \n"
    )
    cues = read_cues(write(tmp_path / "a.vtt", vtt))
    assert [(cue.start, cue.text) for cue in cues] == [(0.0, "so this is"), (2.01, "how it rolls")]


def test_what_is_said_again_after_a_pause_is_kept() -> None:
    said = [Segment(start=0, end=1, text="No."), Segment(start=2, end=3, text="No.")]
    assert merge_rolling(said) == said
    assert merge_rolling([said[0], Segment(start=1, end=2, text="No.\nNo.")])[1].text == "No."

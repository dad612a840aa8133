"""Which of a file's streams are used."""

import io
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media_factory import clip_of, pictures, tone

from spark_ray.core.errors import NotAVideo
from spark_ray.core.schema import Segment
from spark_ray.media.audio_codec import decode_audio
from spark_ray.media.decode import DecodeOptions, Span, decode_clips
from spark_ray.media.encode import AudioTrack, SubtitleTrack, VideoTrack, write_tracks
from spark_ray.media.source import MediaLimits, open_source, probe


@pytest.fixture(scope="module")
def many_streams(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small picture before a large one, German sound before English, and subtitles of both."""
    path = tmp_path_factory.mktemp("streams") / "a.mkv"
    rate = Fraction(25)
    cue = {"start": 0.1, "end": 0.9}
    write_tracks(
        path,
        [
            VideoTrack(frames=pictures(25, (64, 64)), rate=rate),
            VideoTrack(frames=pictures(25, (128, 96)), rate=rate),
            AudioTrack(pcm=tone(1.0, hertz=300), sample_rate=16_000, language="ger", codec="flac"),
            AudioTrack(pcm=tone(1.0, hertz=900), sample_rate=16_000, language="eng", codec="flac"),
            SubtitleTrack(cues=[Segment(text="Guten Tag", **cue)], language="ger"),
            SubtitleTrack(cues=[Segment(text="Good day", **cue)], language="eng"),
        ],
    )
    return path


def pitch(audio: bytes | None) -> float:
    assert audio is not None
    pcm = decode_audio(audio)
    return float(np.argmax(np.abs(np.fft.rfft(pcm))) * 16_000 / len(pcm))


@pytest.mark.parametrize(
    ("suffix", "first_is_default", "width"),
    [("mp4", False, 128), ("ts", False, 128), ("mkv", False, 128), ("mkv", True, 64)],
)
def test_the_default_picture_is_chosen_or_else_the_largest(
    tmp_path: Path, suffix: str, first_is_default: bool, width: int
) -> None:
    path = tmp_path / f"a.{suffix}"
    small = VideoTrack(frames=pictures(10, (64, 64)), rate=Fraction(25), default=first_is_default)
    large = VideoTrack(
        frames=pictures(10, (128, 96)), rate=Fraction(25), default=not first_is_default
    )
    write_tracks(path, [small, large])
    assert clip_of(path).info.width == width


@pytest.mark.parametrize(
    ("wanted", "hertz", "language", "text"),
    [(name, 900, "eng", "Good day") for name in ("eng", "en", "EN-us")]
    + [(name, 300, "ger", "Guten Tag") for name in ("ger", "deu", "de")],
)
def test_sound_and_subtitles_come_in_the_preferred_language(
    many_streams: Path, wanted: str, hertz: int, language: str, text: str
) -> None:
    clip = clip_of(many_streams, audio_language=wanted)
    assert pitch(clip.audio) == pytest.approx(hertz, abs=2)
    assert clip.info.audio_language == language
    assert [cue.text for cue in clip.subtitles] == [text]
    assert clip.subtitle_language == language


@pytest.mark.parametrize(
    ("wanted", "text"), [("de", "Guten Tag"), ("fr", "Good day"), (None, "Good day")]
)
def test_subtitles_may_be_in_another_language_than_the_sound(
    many_streams: Path, wanted: str | None, text: str
) -> None:
    options = DecodeOptions(audio_language="en")
    with many_streams.open("rb") as file:
        (clip,) = decode_clips(file, Span(), options, wanted)
    assert pitch(clip.audio) == pytest.approx(900, abs=2)
    assert [cue.text for cue in clip.subtitles] == [text]


def test_a_language_that_is_not_there_falls_back_to_the_usual_sound(many_streams: Path) -> None:
    clip = clip_of(many_streams, audio_language="fra")
    assert pitch(clip.audio) == pytest.approx(300, abs=2)
    assert [cue.text for cue in clip.subtitles] == ["Guten Tag"]


def test_the_sound_that_the_file_calls_default_is_the_usual_one(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    sounds = [
        AudioTrack(pcm=tone(1.0, hertz=h), sample_rate=16_000, default=h == 900, codec="flac")
        for h in (300, 900)
    ]
    write_tracks(path, [VideoTrack(frames=pictures(25), rate=Fraction(25)), *sounds])
    clip = clip_of(path)
    assert pitch(clip.audio) == pytest.approx(900, abs=2)
    assert clip.info.audio_language is None


def with_cover(path: Path, *, video: bool) -> Path:
    """A file with cover art, which FFmpeg reports as a video stream."""
    cover = cv2.imencode(".jpg", np.full((600, 600, 3), 200, np.uint8))[1].tobytes()
    with av.open(str(path), "w") as container:
        streams = []
        if video:
            picture = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            picture.width, picture.height = 96, 64
            streams.append(picture)
        sound = container.add_stream("aac", rate=16_000)
        sound.layout = "mono"
        art = container.add_stream("mjpeg", rate=1)
        art.width = art.height = 600
        art.pix_fmt = "yuvj420p"
        art.disposition = av.stream.Disposition.attached_pic
        for number, pixels in enumerate(pictures(25) if video else ()):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(streams[0].encode(frame))
        if video:
            container.mux(streams[0].encode(None))
        frame = av.AudioFrame.from_ndarray(tone(1.0)[np.newaxis], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(sound.encode(frame))
        container.mux(sound.encode(None))
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts, packet.is_keyframe = art, 0, 0, True
        container.mux(packet)
    return path


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    info = clip_of(with_cover(tmp_path / "a.mp4", video=True)).info
    assert (info.width, info.height, info.codec) == (96, 64, "h264")


def test_music_with_cover_art_is_no_video(tmp_path: Path) -> None:
    song = with_cover(tmp_path / "a.mp4", video=False)
    with (
        pytest.raises(NotAVideo, match="no video stream"),
        open_source(io.BytesIO(song.read_bytes()), MediaLimits()),
    ):
        pass


def test_the_source_says_what_it_is(many_streams: Path) -> None:
    info = clip_of(many_streams).info
    assert (info.codec, info.audio_codec, info.pixel_format) == ("h264", "flac", "yuv420p")
    assert info.fps == 25
    assert info.duration == pytest.approx(1.0, abs=0.05)
    assert (info.rotation, info.hdr, info.decode_errors) == (0, False, 0)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((s, c) for s in ("mp4", "mov", "mkv", "ts") for c in ("libx264", "libx265")),
        ("mp4", "libsvtav1"), ("mkv", "libsvtav1"), ("webm", "libvpx-vp9"), ("webm", "libvpx"),
        ("mp4", "mpeg4"), ("avi", "mpeg4"), ("avi", "mjpeg"), ("avi", "libx264"), ("mkv", "ffv1"),
        ("mov", "mjpeg"), ("mov", "prores_ks"), ("mkv", "mpeg2video"), ("ts", "mpeg2video"),
    ],
)  # fmt: skip
def test_the_headers_tell_what_a_plan_needs(tmp_path: Path, suffix: str, codec: str) -> None:
    path = tmp_path / f"a.{suffix}"
    samples = {"mjpeg": "yuvj420p", "prores_ks": "yuv422p10le"}.get(codec, "yuv420p")
    video = VideoTrack(
        frames=pictures(12, (96, 64)), rate=Fraction(25), codec=codec, pixel_format=samples
    )
    write_tracks(path, [video, AudioTrack(pcm=tone(0.5), sample_rate=48_000, language="eng")])
    with path.open("rb") as file, open_source(file, MediaLimits()) as source:
        known = source.info
    with path.open("rb") as file:
        told = probe(file, MediaLimits())
    assert (known.width, known.height) == (96, 64)
    assert told == known.model_copy(update={"pixel_format": told.pixel_format})

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import Segment
from spark_ray.media.encode import (
    HDR10,
    AudioTrack,
    SubtitleTrack,
    VideoTrack,
    write_tracks,
    write_video,
)

NTSC = Fraction(30_000, 1001)
SIZE = (128, 96)


def frames(count: int, size: tuple[int, int] = SIZE) -> Iterator[np.ndarray]:
    width, height = size
    for number in range(count):
        frame = np.full((height, width, 3), 40, np.uint8)
        frame[20:60, number : number + 30] = (220, 60, 40)
        yield frame


def tone(seconds: float, rate: int = 22_050) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return (9000 * np.sin(2 * np.pi * 440 * times)).astype(np.int16)


def decoded_times(path: Path, stream: int = 0) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time for frame in container.decode(video=stream)]


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", "mp4"),
        ("libx264", "mov"),
        ("libx264", "ts"),
        ("libx265", "mp4"),
        ("libx265", "mkv"),
        ("libvpx-vp9", "webm"),
        ("libsvtav1", "mkv"),
        ("mpeg4", "avi"),
    ],
)
def test_every_codec_keeps_count_size_time_and_sound_and_repeats_its_bytes(
    tmp_path: Path, codec: str, suffix: str
) -> None:
    path, again = tmp_path / f"a.{suffix}", tmp_path / f"b.{suffix}"
    for target in (path, again):
        write_video(target, frames(60), NTSC, codec=codec, audio=(tone(2.0), 22_050))
    assert path.read_bytes() == again.read_bytes()

    times = decoded_times(path)
    steps = np.diff(times)
    assert len(times) == 60
    assert steps == pytest.approx(np.full(59, 1 / NTSC), abs=0.0011)  # Matroska counts milliseconds
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.width, video.height) == SIZE
        assert container.duration / av.time_base == pytest.approx(2.002, abs=0.1)
        sound = [frame.to_ndarray() for frame in container.decode(audio)]
    samples = sum(block.shape[-1] for block in sound) / audio.rate
    assert samples == pytest.approx(2.0, abs=0.1)


def test_explicit_times_give_a_variable_rate(tmp_path: Path) -> None:
    pts = [0.0, 0.1, 0.15, 0.4, 0.5, 1.0, 1.3]
    for suffix in ("mp4", "mkv"):
        path = tmp_path / f"vfr.{suffix}"
        write_video(path, frames(7), Fraction(10), pts=pts)
        assert decoded_times(path) == pytest.approx(pts, abs=0.001)
        with av.open(str(path)) as container:
            assert container.duration / av.time_base == pytest.approx(1.4, abs=0.002)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libsvtav1"])
def test_hdr_is_ten_bits_with_its_colours_named(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "hdr.mp4"
    write_video(path, frames(5), Fraction(25), codec=codec, pixel_format="yuv420p10le", color=HDR10)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert frame.format.name == "yuv420p10le"
    assert frame.color_primaries == ColorPrimaries.BT2020
    assert frame.color_trc == ColorTrc.SMPTE2084
    assert frame.colorspace == Colorspace.BT2020


def test_rotation_aspect_and_keyframes_are_written(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    write_video(
        path,
        frames(20),
        Fraction(25),
        rotation=90,
        sample_aspect_ratio=Fraction(4, 3),
        gop=5,
        metadata={"title": "a title"},
    )
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        decoded = list(container.decode(stream))
        assert container.metadata["title"] == "a title"
    assert decoded[0].rotation == 90
    assert stream.sample_aspect_ratio == Fraction(4, 3)
    assert [n for n, frame in enumerate(decoded) if frame.key_frame] == [0, 5, 10, 15]


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv", "webm"])
def test_subtitles_come_back_with_their_times(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"told.{suffix}"
    cues = [
        Segment(start=0.2, end=0.8, text="well, then"),
        Segment(start=1.0, end=1.9, text="two\nlines"),
    ]
    codec = "libvpx-vp9" if suffix == "webm" else "libx264"
    write_video(path, frames(50), Fraction(25), codec=codec, subtitles=cues)
    with av.open(str(path)) as container:
        stream = container.streams.subtitles[0]
        read = [
            (float(packet.pts * packet.time_base), entry.dialogue.decode())
            for packet in container.demux(stream)
            if packet.size
            for entry in stream.decode(packet)
        ]
    assert [text for _, text in read] == ["well, then", "two\nlines"]
    assert [time for time, _ in read] == pytest.approx([0.2, 1.0], abs=0.001)


def test_several_tracks_keep_language_default_and_offset(tmp_path: Path) -> None:
    path = tmp_path / "many.mkv"
    stereo = np.stack([tone(1.0), tone(1.0)], axis=1)
    write_tracks(
        path,
        [
            VideoTrack(frames=frames(25), rate=Fraction(25)),
            VideoTrack(frames=frames(25, (64, 48)), rate=Fraction(25), default=True),
            AudioTrack(pcm=tone(1.0), sample_rate=22_050, codec="flac", language="eng"),
            AudioTrack(pcm=stereo, sample_rate=22_050, start_s=0.5, language="fra", default=True),
            SubtitleTrack(cues=[Segment(start=0, end=1, text="oui")], language="fra"),
        ],
    )
    with av.open(str(path)) as container:
        videos, audios = container.streams.video, container.streams.audio
        assert [stream.width for stream in videos] == [128, 64]
        assert [bool(s.disposition & Disposition.default) for s in videos] == [False, True]
        assert [stream.language for stream in audios] == ["eng", "fra"]
        assert [stream.channels for stream in audios] == [1, 2]
        assert container.streams.subtitles[0].language == "fra"
        late = next(container.decode(audio=1))
    assert late.time == pytest.approx(0.5, abs=0.02)


def test_what_cannot_be_written_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none to write into .*empty\.mp4"):
        write_video(tmp_path / "empty.mp4", [], Fraction(25))
    with pytest.raises(ConfigError, match=r"\.ogv: no usual codec for sound"):
        write_video(tmp_path / "x.ogv", frames(2), Fraction(25), audio=(tone(1.0), 22_050))
    with pytest.raises(ValueError, match="does not support"):
        write_video(tmp_path / "x.webm", frames(2), Fraction(25), codec="libx264")

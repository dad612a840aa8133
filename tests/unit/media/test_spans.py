"""Spans share a video out without loss or repeat, and clips keep within their bounds."""

import math
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import pytest
from media_factory import FORMATS, OPEN_GOP, MediaShelf, clip_of, clips_of, pictures, tone

from spark_ray.core.errors import MediaLimitExceeded
from spark_ray.core.schema import Segment
from spark_ray.media.decode import DecodedClip, Span
from spark_ray.media.encode import SubtitleTrack, VideoTrack, write_tracks, write_video


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> MediaShelf:
    return MediaShelf(tmp_path_factory.mktemp("formats"))


def frames_of(clips: list[DecodedClip]) -> list[tuple[float, bytes]]:
    """Every stored frame with its time in the video."""
    return [
        (round(clip.start_s + sample.time, 5), jpeg)
        for clip in clips
        for sample, jpeg in zip(clip.samples, clip.frames, strict=True)
    ]


@pytest.mark.parametrize("detection", [True, False], ids=["every frame", "sparse"])
@pytest.mark.parametrize("name", FORMATS)
def test_spans_hold_every_frame_once(shelf: MediaShelf, name: str, detection: bool) -> None:
    path = shelf[name]
    video = clip_of(path, fps=100.0, scene_detection=True)
    whole = frames_of([video])
    assert len(whole) == 50
    edges = [0.0, 0.5, 0.96, 1.4, 1.41, 1.84, None]
    for start, end in pairwise(edges):
        clips = clips_of(path, Span(start, end), fps=100.0, scene_detection=detection)
        if start >= video.end_s:
            assert clips == []
            continue
        there = [(t, jpeg) for t, jpeg in whole if start <= t < (end or math.inf)]
        if not there:  # the span lies between two frames, the first of which it shows
            there = [(start, [jpeg for t, jpeg in whole if t < start][-1])]
        assert frames_of(clips) == there


def test_a_clip_is_the_span_that_was_asked_for(shelf: MediaShelf) -> None:
    (clip,) = clips_of(shelf["h264 b-frames"], Span(0.5, 1.4))
    assert (clip.start_s, clip.end_s) == (0.5, 1.4)
    assert clip.samples[0].time == pytest.approx(0.02)  # the first frame at or after 0.5 s
    assert [s.end_time for s in clip.scenes] == []


def test_a_span_after_the_end_holds_no_clip(shelf: MediaShelf) -> None:
    assert clips_of(shelf["h264 b-frames"], Span(30.0, None)) == []


@pytest.mark.parametrize("split", ["fixed", "scenes"])
@pytest.mark.parametrize("detection", [True, False], ids=["every frame", "sparse"])
def test_no_clip_is_longer_than_the_setting_allows(
    tmp_path: Path, split: str, detection: bool
) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, pictures(100, cuts=(40,)), Fraction(25), options=OPEN_GOP)
    clips = clips_of(path, split=split, clip_max_s=0.8, fps=2.0, scene_detection=detection)
    tolerance = 0.0 if split == "scenes" else 0.5
    assert len(clips) >= 3
    assert clips[0].start_s == 0
    assert clips[-1].end_s == pytest.approx(4.0)
    for clip, following in pairwise(clips):
        assert clip.end_s == following.start_s
    for clip in clips:
        assert clip.frames
        assert clip.end_s - clip.start_s <= 0.8 + tolerance + 0.041
        assert all(0 <= s.time < clip.end_s - clip.start_s for s in clip.samples)


def live_video(path: Path, count: int) -> Path:
    """Matroska as it is written to a pipe: no duration, no index."""

    class Pipe:
        def __init__(self) -> None:
            self.data = bytearray()

        def write(self, data: bytes) -> int:
            self.data += data
            return len(data)

    pipe = Pipe()
    with av.open(pipe, "w", format="matroska") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height = 96, 64
        stream.codec_context.gop_size = 12
        for number, pixels in enumerate(pictures(count)):
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    path.write_bytes(pipe.data)
    return path


def test_a_video_of_unknown_duration_is_cut_at_the_limit(tmp_path: Path) -> None:
    path = live_video(tmp_path / "a.mkv", 100)
    whole = clips_of(path, clip_max_s=1.0, fps=0.5, scene_detection=True)
    sparse = clips_of(path, clip_max_s=1.0, fps=0.5, scene_detection=False)
    assert whole[0].info.duration == 0
    assert [c.start_s for c in whole] == pytest.approx([0, 1.52, 3.04], abs=0.05)
    assert [(c.start_s, c.end_s) for c in sparse] == [(c.start_s, c.end_s) for c in whole]
    assert frames_of(sparse) == frames_of(whole)


def test_without_splitting_a_video_of_unknown_duration_may_not_grow(tmp_path: Path) -> None:
    path = live_video(tmp_path / "a.mkv", 60)
    with pytest.raises(MediaLimitExceeded, match="clip_max_s=1"):
        clips_of(path, split="none", clip_max_s=1.0)


def test_subtitles_go_with_the_clips_that_they_overlap(tmp_path: Path) -> None:
    cues = [
        Segment(start=0.2, end=0.9, text="first"),
        Segment(start=0.9, end=1.7, text="over the edge"),
        Segment(start=1.8, end=2.0, text="last"),
    ]
    for suffix in ("mp4", "mkv"):
        path = tmp_path / f"a.{suffix}"
        tracks = [
            VideoTrack(frames=pictures(50), rate=Fraction(25), gop=12),
            SubtitleTrack(cues=cues, language="eng"),
        ]
        write_tracks(path, tracks)
        for detection in (True, False):
            first, second = (
                clips_of(path, span, scene_detection=detection)[0]
                for span in (Span(0, 1.2), Span(1.2, None))
            )
            assert [c.text for c in first.subtitles] == ["first", "over the edge"]
            assert [c.text for c in second.subtitles] == ["over the edge", "last"], suffix
            assert second.subtitles[0].start == 0
            assert second.subtitles[0].end == pytest.approx(0.5, abs=1e-3)
            assert second.subtitle_language == "eng"


def test_sound_and_picture_of_different_length_are_both_whole(tmp_path: Path) -> None:
    for suffix, codec in (("mkv", "libx264"), ("webm", "libvpx-vp9"), ("ts", "libx264")):
        path = tmp_path / f"a.{suffix}"
        write_video(path, pictures(25), Fraction(25), codec=codec, audio=(tone(3.0), 16_000))
        (clip,) = clips_of(path)
        assert clip.end_s == pytest.approx(1.0, abs=0.05)
        assert clip.audio is not None


def test_fast_decoding_keeps_the_grid_roughly_and_the_sound(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    write_video(path, pictures(50), Fraction(25), options=OPEN_GOP, audio=(tone(2.0), 16_000))
    (exact,) = clips_of(path, fps=2.0)
    (fast,) = clips_of(path, fps=2.0, decode="fast")
    assert fast.audio == exact.audio
    times = [s.time for s in exact.samples]
    assert [s.time for s in fast.samples] == pytest.approx(times, abs=0.17)

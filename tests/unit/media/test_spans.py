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
from spark_ray.media.audio_codec import decode_audio
from spark_ray.media.decode import DecodedClip, Span
from spark_ray.media.encode import (
    AudioTrack,
    SubtitleTrack,
    VideoTrack,
    write_tracks,
    write_video,
)


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


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_subtitle_that_began_long_before_a_clip_is_shown_in_it(
    tmp_path: Path, suffix: str
) -> None:
    cues = [
        Segment(start=0.3, end=0.8, text="over"),
        Segment(start=1.0, end=9.0, text="long"),
        Segment(start=9.1, end=9.9, text="last"),
    ]
    path = tmp_path / f"a.{suffix}"
    video = VideoTrack(frames=pictures(250), rate=Fraction(25), gop=12)
    write_tracks(path, [video, SubtitleTrack(cues=cues, language="eng")])
    for start, end, expected in (
        (6.5, 8.0, [(0.0, 1.5, "long")]),
        (8.0, None, [(0.0, 1.0, "long"), (1.1, 1.9, "last")]),
        (9.05, None, [(0.05, 0.85, "last")]),
    ):
        found = clip_of(path, Span(start, end)).subtitles
        assert [cue.text for cue in found] == [text for *_, text in expected]
        for cue, (begins, ends, _) in zip(found, expected, strict=True):
            assert (cue.start, cue.end) == pytest.approx((begins, ends), abs=1e-3)


def ten_frames(start_s: float = 0.0) -> list[float]:
    return [start_s + number / 25 for number in range(10)]


def slides(path: Path, times: list[float], seconds: float, rate: Fraction = Fraction(25)) -> Path:
    """Pictures at these times, the last for one tick of the rate, and a tone."""
    video = VideoTrack(frames=pictures(len(times)), rate=rate, pts=times)
    write_tracks(path, [video, AudioTrack(pcm=tone(seconds), sample_rate=16_000)])
    return path


@pytest.mark.parametrize("detection", [True, False], ids=["every frame", "sparse"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_a_span_without_a_frame_shows_the_one_before_and_keeps_its_sound(
    tmp_path: Path, suffix: str, detection: bool
) -> None:
    path = slides(tmp_path / f"a.{suffix}", [*ten_frames(), *ten_frames(9.0)], 9.5)
    settings = {"fps": 25.0, "scene_detection": detection}
    whole = frames_of(clips_of(path, fps=25.0))
    assert len(whole) == 20
    for start, end, shown in ((2, 4, 9), (4, 6, 9), (6.5, 9, 9), (0.25, 0.27, 6), (9, None, 10)):
        clip = clip_of(path, Span(start, end), **settings)
        assert clip.samples[0].time == 0
        assert clip.frames[0] == whole[shown][1]
        assert (clip.start_s, clip.end_s) == (start, end or pytest.approx(9.4, abs=0.01))
        seconds = len(decode_audio(clip.audio)) / 16_000
        assert seconds == pytest.approx((end or 9.5) - start, abs=0.07)  # AAC pads
    assert clips_of(path, Span(9.5, None), **settings) == []


def test_rare_pictures_are_all_there(tmp_path: Path) -> None:
    times = [0.0, 0.4, 0.8, 9.0]
    path = slides(tmp_path / "a.mkv", times, 12.0)  # FFmpeg takes the begin of the sound for theirs
    clip = clip_of(path, fps=5.0)
    assert [s.time for s in clip.samples] == pytest.approx(times)
    spans = [clip_of(path, Span(*span), fps=5.0) for span in ((0.5, 5.0), (5.0, 8.0), (8.0, None))]
    assert [c.frames for c in spans] == [clip.frames[2:3], clip.frames[2:3], clip.frames[3:]]


def test_the_last_picture_fills_spans_as_long_as_the_file_says(tmp_path: Path) -> None:
    path = slides(tmp_path / "a.mp4", ten_frames(), 8.0, rate=Fraction(1, 8))
    clips = [clip_of(path, Span(*span), fps=25.0) for span in ((0, 2), (2, 5), (5, None))]
    assert [(c.start_s, c.end_s) for c in clips] == [(0, 2), (2, 5), (5, pytest.approx(8.36))]
    assert clips[1].frames == clips[2].frames == clips[0].frames[-1:]
    assert clips_of(path, Span(8.5, None)) == []


def test_the_last_picture_stays_for_the_sound_where_the_file_says_nothing(tmp_path: Path) -> None:
    path = slides(tmp_path / "a.mkv", ten_frames(), 6.0)
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIO_"))  # FFmpeg's own tag
    clips = [clip_of(path, Span(*span), fps=25.0) for span in ((0, 2), (2, 4), (4, None))]
    assert clips[0].info.duration == pytest.approx(6.0, abs=0.05)
    assert clips[1].frames == clips[2].frames == clips[0].frames[-1:]
    lengths = [len(decode_audio(clip.audio)) / 16_000 for clip in clips[1:]]
    assert lengths == pytest.approx([2.0, 2.0], abs=0.05)
    assert clips_of(path, Span(6.5, None)) == []


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

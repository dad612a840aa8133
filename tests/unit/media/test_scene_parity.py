"""Cuts are PySceneDetect's own, and the scores behind them are its scores."""

from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from media_factory import NTSC, OPEN_GOP, clip_of, clips_of, pictures, uneven_times
from scenedetect import ContentDetector, SceneManager, StatsManager, open_video
from scenedetect.scene_manager import compute_downscale_factor

from spark_ray.media.decode import Span
from spark_ray.media.encode import write_video
from spark_ray.media.scenes import Downscaler, SceneDetector, SceneOptions, small_size

FLASHES = (20, 24, 27, 45, 47, 49, 80)


def theirs(path: Path, **settings: object) -> tuple[list[tuple[float, float]], list[float]]:
    """PySceneDetect's scenes in seconds, and its score of each frame."""
    manager = SceneManager(StatsManager())
    manager.add_detector(ContentDetector(**settings))
    video = open_video(str(path), backend="pyav")
    manager.detect_scenes(video)
    scenes = manager.get_scene_list(start_in_scene=True)
    metrics = manager.stats_manager._frame_metrics
    scores = [values["content_val"] for _, values in sorted(metrics.items())]
    return [(start.seconds, end.seconds) for start, end in scenes], scores


def our_scores(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        rate, base = Fraction(stream.guessed_rate), Fraction(stream.time_base)
        detector = SceneDetector(SceneOptions(), rate, base)
        scores = []
        for frame in container.decode(stream):
            detector.process(frame, frame.pts - stream.start_time)
            scores.append(detector._detector._frame_score or 0.0)
    return scores


def written(path: Path, size: tuple[int, int], count: int, **settings: object) -> Path:
    frames = pictures(count, size, cuts=FLASHES, seed=size[0])
    write_video(path, frames, settings.pop("rate", Fraction(25)), **settings)
    return path


def assert_same_scenes(path: Path) -> int:
    scenes, _ = theirs(path)
    ours = clip_of(path, scene_detection=True, resolution=(32, 32), fps=0.1).scenes
    assert [s.start_time for s in ours] == pytest.approx([s for s, _ in scenes], abs=2e-6)
    assert [s.end_time for s in ours[:-1]] == pytest.approx([e for _, e in scenes[:-1]], abs=2e-6)
    return len(scenes)


@pytest.mark.parametrize("size", [(64, 64), (320, 240), (162, 98), (96, 600), (854, 480)])
def test_scenes_are_pyscenedetects(tmp_path: Path, size: tuple[int, int]) -> None:
    assert assert_same_scenes(written(tmp_path / "a.mp4", size, 100)) >= 3


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        ("mp4", {"pts": uneven_times(100)}),
        ("mkv", {"pts": uneven_times(100, seed=3)}),
        ("mp4", {"rate": NTSC}),
        ("mkv", {"rate": NTSC}),
        ("ts", {"rate": NTSC}),
        ("avi", {"codec": "mpeg4"}),
        ("webm", {"codec": "libvpx-vp9"}),
    ],
)
def test_scenes_are_pyscenedetects_at_any_rate(tmp_path: Path, suffix: str, settings: dict) -> None:
    assert assert_same_scenes(written(tmp_path / f"a.{suffix}", (128, 96), 100, **settings)) >= 3


@pytest.mark.parametrize("seed", range(4))
def test_flashes_are_merged_as_pyscenedetect_merges_them(tmp_path: Path, seed: int) -> None:
    cuts = sorted(np.random.default_rng(seed).choice(110, 14, replace=False))
    write_video(tmp_path / "a.mp4", pictures(120, (64, 48), cuts=cuts, seed=seed), Fraction(25))
    assert assert_same_scenes(tmp_path / "a.mp4") >= 1


def test_threshold_and_shortest_scene_are_pyscenedetects(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", (96, 64), 100)
    for threshold, frames in ((5.0, 1), (40.0, 5), (15.0, 30)):
        scenes, _ = theirs(path, threshold=threshold, min_scene_len=frames)
        ours = clip_of(
            path, scene_detection=True, scene_threshold=threshold, min_scene_frames=frames
        ).scenes
        assert [s.start_time for s in ours] == pytest.approx([s for s, _ in scenes], abs=2e-6)


@pytest.mark.parametrize(
    ("size", "count"),
    [((64, 64), 60), ((300, 170), 60), ((1280, 720), 30), ((1920, 1080), 24), ((3840, 2160), 4)],
)
def test_every_frame_has_pyscenedetects_score(
    tmp_path: Path, size: tuple[int, int], count: int
) -> None:
    path = written(tmp_path / "a.mp4", size, count)
    _, scores = theirs(path)
    ours = our_scores(path)
    assert len(ours) == count
    # The original has no score for the first frame, or calls it 0.
    assert ours[-len(scores) :] == pytest.approx(scores, abs=1e-9)
    assert max(ours) > 0.1


def test_clips_of_scenes_begin_at_pyscenedetects_cuts(tmp_path: Path) -> None:
    path = written(tmp_path / "a.mp4", (128, 96), 100)
    scenes, _ = theirs(path)
    for detection in (True, False):
        clips = clips_of(path, split="scenes", fps=0.5, scene_detection=detection)
        assert [c.start_s for c in clips] == pytest.approx([s for s, _ in scenes], abs=2e-6)
        assert [c.end_s for c in clips] == [*(c.start_s for c in clips[1:]), pytest.approx(4.0)]
        assert all(clip.frames and clip.samples[0].time >= 0 for clip in clips)


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuvj420p", "yuv422p", "yuv444p", "nv12"])
@pytest.mark.parametrize(
    "size",
    [(1920, 1080), (3840, 2160), (1080, 1920), (1280, 720), (1366, 768), (258, 146), (98, 62)],
)
def test_a_shrunken_frame_is_opencvs_to_the_bit(size: tuple[int, int], pixel_format: str) -> None:
    width, height = size
    noise = np.random.default_rng(7).integers(0, 256, (height, width, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(noise, format="rgb24").reformat(format=pixel_format)
    factor = compute_downscale_factor(max(size))
    small = (max(1, round(width / factor)), max(1, round(height / factor)))
    expected = frame.to_ndarray(format="bgr24")
    if factor > 1:
        expected = cv2.resize(expected, small, interpolation=cv2.INTER_LINEAR)
    assert small == small_size(width, height)
    scaler = Downscaler(width, height)
    for _ in range(2):  # the second frame reuses buffers of the first
        np.testing.assert_array_equal(scaler(frame), expected)


def test_a_still_video_is_one_scene(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", [np.full((64, 64, 3), 99, np.uint8)] * 40, Fraction(25))
    (scene,) = clip_of(tmp_path / "a.mp4", scene_detection=True).scenes
    assert (scene.start_time, scene.end_time) == (0.0, pytest.approx(1.6))


def cuts_of_spans(path: Path, edges: list[float]) -> list[float]:
    """Cuts in seconds, each span decoded by itself; without those that a span begins with."""
    found: list[float] = []
    for start, end in pairwise([*edges, None]):
        clip = clip_of(path, Span(start, end), scene_detection=True, resolution=(32, 32), fps=0.1)
        found += [clip.start_s + scene.start_time for scene in clip.scenes[1:]]
    return found


def within(cuts: list[float], edges: list[float], frame_s: float = 0.04) -> list[float]:
    """Those of the whole file's cuts that no span begins with."""
    return [cut for cut in cuts if not any(0 <= cut - edge < frame_s for edge in edges)]


@pytest.mark.parametrize("gop", [12, 25, 250])
@pytest.mark.parametrize("seed", range(2))
def test_spans_have_the_cuts_of_the_whole(tmp_path: Path, seed: int, gop: int) -> None:
    cuts = np.cumsum(np.random.default_rng(seed).integers(16, 40, 14)).tolist()
    write_video(
        tmp_path / "a.mp4", pictures(400, (64, 48), cuts=cuts, seed=seed), Fraction(25), gop=gop
    )
    # One edge each lies just before, at and just behind a cut, where a cold detector is blind.
    edges = [0.0, cuts[2] / 25 - 0.2, cuts[5] / 25, cuts[8] / 25 + 0.04, cuts[11] / 25 - 0.5]
    theirs_inside = within([s for s, _ in theirs(tmp_path / "a.mp4")[0][1:]], edges)
    assert len(theirs_inside) >= 9
    assert cuts_of_spans(tmp_path / "a.mp4", edges) == pytest.approx(theirs_inside, abs=2e-6)


@pytest.mark.parametrize(
    ("suffix", "settings"),
    [
        ("mp4", {"pts": uneven_times(200), "gop": 12}),
        ("mkv", {"pts": uneven_times(200, seed=1), "gop": 12}),
        ("ts", {"rate": NTSC, "gop": 12}),
        ("mkv", {"rate": NTSC, "options": OPEN_GOP}),
        ("webm", {"codec": "libvpx-vp9", "gop": 12}),
    ],
)
def test_spans_have_the_cuts_of_the_whole_in_any_format(
    tmp_path: Path, suffix: str, settings: dict
) -> None:
    path = tmp_path / f"a.{suffix}"
    frames = pictures(200, (64, 48), cuts=(30, 62, 93, 131, 160), seed=3)
    write_video(path, frames, settings.pop("rate", Fraction(25)), **settings)
    whole = [s for s, _ in theirs(path)[0][1:]]
    edges = [0.0, whole[1] - 0.1, whole[3] - 0.3]
    assert len(whole) == 5
    assert cuts_of_spans(path, edges) == pytest.approx(within(whole, edges), abs=2e-6)


def test_a_cut_that_is_reported_after_the_end_of_its_span_is_not_lost(tmp_path: Path) -> None:
    # The second cut is merged, so the third is certain only after 15 quiet frames.
    path = tmp_path / "a.mp4"
    write_video(path, pictures(120, (64, 48), cuts=(30, 36, 52), seed=2), Fraction(25), gop=12)
    whole = [s for s, _ in theirs(path)[0][1:]]
    assert whole == pytest.approx([30 / 25, 52 / 25])
    assert cuts_of_spans(path, [0.0, 56 / 25]) == pytest.approx(whole, abs=2e-6)


@pytest.mark.parametrize("seed", range(3))
def test_spans_differ_from_the_whole_only_in_groups_of_quick_cuts(
    tmp_path: Path, seed: int
) -> None:
    path = tmp_path / "a.mp4"
    rng = np.random.default_rng(seed)
    begins = np.cumsum(rng.integers(40, 60, 7)).tolist()
    quick = [begin + n for begin in begins for n in rng.choice(9, rng.integers(1, 4))]
    write_video(path, pictures(420, (64, 48), cuts=quick, seed=seed), Fraction(25), gop=25)
    above = np.flatnonzero(np.array(our_scores(path)) >= 27.0)
    groups = np.split(above, np.flatnonzero(np.diff(above) >= 15) + 1)
    assert {len(group) for group in groups} > {1}
    # Each span but the first begins right behind a group, and knows nothing of the one before.
    edges = [0.0, *((group[-1] + 5) / 25 for group in groups[1:-1:2])]
    whole = [s for s, _ in theirs(path)[0][1:]]
    for cuts in (whole, cuts_of_spans(path, edges)):
        found = {round(cut * 25) for cut in cuts}
        assert found <= set(above.tolist())
        for group in groups:
            assert found & set(group.tolist())

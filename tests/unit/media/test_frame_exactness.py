"""Sampled frames are the frames of a plain decode, at their times, to the byte."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from media_factory import (
    FORMATS,
    MediaShelf,
    clip_of,
    jpeg,
    pictures,
    plain_choice,
    plain_decode,
    x264,
)

from spark_ray.media.encode import write_video

RATES = (0.5, 1.0, 3.0, 12.5, 100.0)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> MediaShelf:
    return MediaShelf(tmp_path_factory.mktemp("formats"))


@pytest.mark.parametrize("name", FORMATS)
def test_sampled_frames_are_those_of_a_plain_decode(shelf: MediaShelf, name: str) -> None:
    frames = plain_decode(shelf[name])
    pictures_as_jpeg = [jpeg(frame.bgr) for frame in frames]
    times = [frame.time for frame in frames]
    for fps in RATES:
        chosen = plain_choice(times, fps)
        clip = clip_of(shelf[name], fps=fps, scene_detection=True)
        assert [s.time for s in clip.samples] == pytest.approx([times[i] for i in chosen], abs=2e-6)
        assert clip.frames == [pictures_as_jpeg[i] for i in chosen]


@pytest.mark.parametrize("name", FORMATS)
def test_leaving_scenes_out_changes_no_byte_of_a_frame(shelf: MediaShelf, name: str) -> None:
    for fps in RATES:
        whole = clip_of(shelf[name], fps=fps, scene_detection=True)
        sparse = clip_of(shelf[name], fps=fps, scene_detection=False)
        assert [s.time for s in sparse.samples] == [s.time for s in whole.samples]
        assert sparse.frames == whole.frames
        assert (sparse.end_s, sparse.info) == (whole.end_s, whole.info)


@pytest.mark.parametrize("seed", range(12))
def test_any_group_of_pictures_gives_the_same_frames_sparsely(tmp_path: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keyint = int(rng.integers(2, 40))
    options = x264(
        keyint=keyint,
        min_keyint=int(rng.integers(1, max(2, keyint // 2 + 1))),
        bframes=int(rng.integers(0, 6)),
        b_pyramid=rng.choice(["none", "strict", "normal"]),
        b_adapt=int(rng.integers(0, 3)),
        open_gop=int(rng.integers(0, 2)),
        scenecut=int(rng.choice([0, 40])),
        ref=int(rng.integers(1, 5)),
        rc_lookahead=10,
    )
    path = tmp_path / f"video.{rng.choice(['mp4', 'mkv', 'ts'])}"
    cuts = tuple(rng.integers(1, 40, 3))
    write_video(path, pictures(40, (64, 64), cuts=cuts, seed=seed), Fraction(25), options=options)
    for fps in (0.7, 3.0, 11.0, 25.0):
        whole = clip_of(path, fps=fps, scene_detection=True)
        sparse = clip_of(path, fps=fps, scene_detection=False)
        assert [s.time for s in sparse.samples] == [s.time for s in whole.samples], options
        assert sparse.frames == whole.frames, options

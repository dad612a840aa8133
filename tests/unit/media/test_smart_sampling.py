"""Which frames are taken, which of them are kept, and what is written down about the others."""

from time import process_time

import cv2
import imagehash
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from media_factory import plain_choice
from PIL import Image

from spark_ray.media.sampling import (
    SamplingGrid,
    SamplingOptions,
    Thumbnail,
    average_hash,
    choose_frames,
    motion_score,
    thumbnail,
)


def grey(level: int) -> np.ndarray:
    return np.full((64, 64, 3), level, np.uint8)


def noise(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return cv2.resize(coarse, (64, 64), interpolation=cv2.INTER_NEAREST)


def decide(images: list[np.ndarray], **options: object) -> list[str | None]:
    times = [float(i) for i in range(len(images))]
    samples = choose_frames(times, [thumbnail(i) for i in images], SamplingOptions(**options))
    return [sample.dropped_by for sample in samples]


@given(
    steps=st.lists(st.integers(1, 500_000), min_size=1, max_size=80),
    fps=st.sampled_from([0.5, 1.0, 3.0, 12.5, 30_000 / 1001, 60.0, 1000.0]),
    start_s=st.sampled_from([0.0, 0.123, 33.333]),
)
@settings(max_examples=150, deadline=None)
def test_the_grid_takes_the_first_frame_at_or_after_each_target(
    steps: list[int], fps: float, start_s: float
) -> None:
    times = [float(t) for t in start_s + (np.cumsum(steps) - steps[0]) / 90_000]
    grid = SamplingGrid(fps, start_s)
    taken = []
    for index, time in enumerate(times):
        if grid.wants(time):
            grid.take(time)
            taken.append(index)
    assert taken == plain_choice(times, fps, start_s)


def test_a_target_takes_one_frame_though_rounding_put_it_just_before() -> None:
    grid = SamplingGrid(fps=12.5)
    times = [0.0, 0.0799995, 0.08, 0.12, 0.16]
    taken = []
    for time in times:
        if grid.wants(time):
            grid.take(time)
            taken.append(time)
    assert taken == [0.0, 0.0799995, 0.16]


def test_motion_is_the_share_of_the_picture_that_changed() -> None:
    base = grey(100)
    for share in (0.0, 0.25, 0.5, 1.0):
        changed = base.copy()
        changed[: round(64 * share)] = 140
        assert motion_score(thumbnail(changed), thumbnail(base)) == share


def test_a_change_below_what_noise_leaves_is_no_motion() -> None:
    assert motion_score(thumbnail(grey(108)), thumbnail(grey(100))) == 0.0
    assert motion_score(thumbnail(grey(109)), thumbnail(grey(100))) == 1.0


def test_the_first_frame_is_always_kept_and_has_no_scores() -> None:
    options = SamplingOptions(motion_threshold=1.0, hash_distance=64)
    first, second = choose_frames([0.0, 1.0], [thumbnail(grey(0))] * 2, options)
    assert (first.motion, first.hash_distance, first.dropped_by) == (None, None, None)
    assert (second.motion, second.hash_distance, second.dropped_by) == (0.0, 0, "motion")


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.floats(0, 1), st.integers(0, 64))
@settings(max_examples=60, deadline=None)
def test_no_clip_is_left_without_frames(seeds: list[int], threshold: float, bits: int) -> None:
    dropped = decide([noise(s) for s in seeds], motion_threshold=threshold, hash_distance=bits)
    assert dropped[0] is None


def test_the_rule_that_dropped_a_frame_is_named() -> None:
    a, b = noise(1), noise(2)
    assert decide([a, a, b, a]) == [None, "motion", None, "duplicate"]


def test_a_view_that_returns_is_kept_when_hashing_is_off() -> None:
    a, b = noise(1), noise(2)
    assert decide([a, b, a], perceptual_hashing=False) == [None, None, None]


def test_every_frame_is_kept_but_scored_when_smart_sampling_is_off() -> None:
    samples = choose_frames(
        [0.0, 1.0], [thumbnail(noise(1))] * 2, SamplingOptions(smart_sampling=False)
    )
    assert [s.dropped_by for s in samples] == [None, None]
    assert (samples[1].motion, samples[1].hash_distance) == (0.0, 0)


def random_thumbnails(count: int, seed: int) -> list[Thumbnail]:
    """Hashes that often lie near each other, and all of whose pictures differ."""
    rng = np.random.default_rng(seed)
    kinds = rng.integers(0, 2, (4, 64)).astype(bool)
    return [
        Thumbnail(
            np.full((32, 32), 10.0 * number, np.float32),
            kinds[rng.integers(4)] ^ (rng.random(64) < 0.1),
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("smart_sampling", [True, False])
def test_the_hash_distance_is_that_to_the_nearest_kept_frame(
    seed: int, smart_sampling: bool
) -> None:
    thumbnails = random_thumbnails(60, seed)
    options = SamplingOptions(smart_sampling=smart_sampling, hash_distance=8)
    samples = choose_frames([float(i) for i in range(60)], thumbnails, options)
    kept: list[np.ndarray] = []
    for thumb, sample in zip(thumbnails, samples, strict=True):
        distances = [int(np.count_nonzero(thumb.hash_bits != other)) for other in kept]
        assert sample.hash_distance == min(distances, default=None)
        if sample.dropped_by is None:
            kept.append(thumb.hash_bits)
    assert len(kept) < 60 or not smart_sampling


def test_an_hour_of_frames_is_compared_in_no_time() -> None:
    thumbnails = random_thumbnails(3600, 0)
    started = process_time()
    choose_frames(
        [float(i) for i in range(3600)], thumbnails, SamplingOptions(smart_sampling=False)
    )
    assert process_time() - started < 1.0, "one by one it takes four seconds"


def test_slow_drift_adds_up_against_the_last_kept_frame() -> None:
    brighter = [grey(100 + 3 * step) for step in range(7)]
    assert decide(brighter, perceptual_hashing=False) == [
        None, "motion", "motion", None, "motion", "motion", None,
    ]  # fmt: skip


def test_a_threshold_is_a_lower_bound_that_may_be_reached() -> None:
    base, changed = grey(100), grey(100)
    changed[:16] = 200
    settings = {"perceptual_hashing": False}
    assert decide([base, changed], motion_threshold=0.25, **settings) == [None, None]
    assert decide([base, changed], motion_threshold=0.251, **settings) == [None, "motion"]


@pytest.mark.parametrize("seed", range(20))
def test_the_hash_of_an_8_by_8_picture_is_imagehashs_bit_for_bit(seed: int) -> None:
    cells = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    theirs = imagehash.average_hash(Image.fromarray(cells))
    np.testing.assert_array_equal(average_hash(cells), theirs.hash.reshape(-1))


@pytest.mark.parametrize("seed", range(10))
def test_the_hash_of_a_picture_is_within_a_few_bits_of_imagehashs(seed: int) -> None:
    # imagehash shrinks by Lanczos, we by area: cells near the mean may fall on the other side.
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    image = cv2.resize(coarse, (224, 224), interpolation=cv2.INTER_CUBIC)
    theirs = imagehash.average_hash(Image.fromarray(image)).hash.reshape(-1)
    assert np.count_nonzero(average_hash(image) != theirs) <= 6

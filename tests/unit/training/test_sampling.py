"""Which clips a step sees: all of them, in an order of seed and epoch, with little padding."""

import numpy as np
import pyarrow as pa
import pytest

from spark_ray.datasets.samples import INDEX_SCHEMA, SPLITS, split_of
from spark_ray.training.data import share_of
from spark_ray.training.sampling import Lengths, draw_weights, has_texts, micro_batches, plan_epoch


def lengths(count: int) -> Lengths:
    rng = np.random.default_rng(0)
    return Lengths(
        rng.integers(1, 17, count), rng.integers(0, 3, count), rng.integers(5, 90, count)
    )


def plan(count: int = 203, **changes: int) -> np.ndarray:
    options = {"batch": 4, "accumulation": 2, "seed": 0, "epoch": 0, **changes}
    return plan_epoch(lengths(count), np.ones(count), **options)


def test_an_epoch_shows_every_clip_once_but_for_the_last_incomplete_step():
    seen = plan().ravel().tolist()
    assert len(seen) == len(set(seen)) == 200
    assert {row for epoch in range(6) for row in plan(epoch=epoch).ravel()} == set(range(203))


def test_the_order_follows_from_seed_and_epoch():
    assert np.array_equal(plan(), plan())
    assert not np.array_equal(plan(), plan(epoch=1))
    assert not np.array_equal(plan(), plan(seed=1))


def test_clips_of_like_length_share_a_micro_batch():
    def padding(order: np.ndarray) -> float:
        frames = lengths(2000).frames[order]
        return 1 - frames.sum() / (frames.max(axis=1) * order.shape[1]).sum()

    shuffled = np.random.default_rng(1).permutation(2000).reshape(-1, 8)
    assert padding(shuffled) > 0.3
    assert padding(plan(2000, batch=8)) < 0.12


def test_texts_of_about_the_same_length_stay_mixed():
    """Or each batch of a small dataset would hold one kind of sentence, and learning suffers."""
    characters = np.random.default_rng(0).integers(10, 60, 512)
    same = np.ones(512, np.int64)
    rows = plan_epoch(
        Lengths(same, same, characters), np.ones(512), batch=8, accumulation=1, seed=0, epoch=0
    )
    assert characters[rows].std(axis=1).mean() > 0.8 * characters.std()


def test_weights_draw_clips_more_or_less_often():
    weights = np.repeat([0.0, 1.0, 2.5], 40)
    rows = plan_epoch(lengths(120), weights, batch=4, accumulation=1, seed=0, epoch=0).ravel()
    times = np.bincount(rows, minlength=120)
    assert times[:40].sum() == 0
    assert set(times[40:80]) == {1}
    assert set(times[80:]) == {2, 3}
    assert len(rows) == micro_batches(weights, 4, 1) * 4 == 140


def test_the_mixture_weighs_labels():
    table = pa.table({"label": ["cat", "dog", None, "cat"]})
    assert draw_weights(table, {"cat": 2.0}).tolist() == [2.0, 1.0, 1.0, 2.0]


def test_a_clip_without_a_text_about_what_is_shown_is_not_drawn():
    table = pa.table(
        {
            "caption": ["a cat", None, "a dog", None],
            "transcript": [None, "miau", "wuff", "unheard"],
            "frame_times": [[0.0], [0.0], [], [0.0]],
            "has_audio": [True, True, True, False],
        }
    )
    assert has_texts(table, ("caption",)).tolist() == [True, False, False, False]
    assert has_texts(table, ("transcript",)).tolist() == [False, True, True, False]
    assert has_texts(table, ("caption", "transcript")).tolist() == [True, True, True, False]


def test_too_few_clips_make_no_step():
    assert micro_batches(np.ones(7), batch=4, accumulation=2) == 0


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_a_micro_batch_whatever_their_number(world_size: int):
    rows = np.arange(10, 18)
    shares = [share_of(rows, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    dealt = np.concatenate(shares)
    assert dealt[dealt >= 0].tolist() == rows.tolist()


def test_a_video_keeps_its_split_and_splits_have_their_shares():
    splits = [split_of(f"{number:016x}") for number in range(4000)]
    assert splits == [split_of(f"{number:016x}") for number in range(4000)]
    shares = [splits.count(name) / 4000 for name in SPLITS]
    assert shares == pytest.approx([0.85, 0.05, 0.10], abs=0.02)
    assert "split" in INDEX_SCHEMA.names

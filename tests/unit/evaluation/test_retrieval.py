"""Ranks counted by hand, and by another way over random vectors."""

import numpy as np
import pytest

from spark_ray.evaluation import retrieval
from spark_ray.evaluation.retrieval import retrieval_scores, retrieve


def unit(rows: object) -> np.ndarray:
    vectors = np.asarray(rows, np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ranks(captions: list[str], clips: np.ndarray, texts: np.ndarray) -> list[tuple[int, int]]:
    found = retrieve(captions, clips, texts)
    return [(one.clip_to_text_rank, one.text_to_clip_rank) for one in found]


def test_ranks_in_both_directions() -> None:
    clips = unit([(1, 0), (1, 0.2), (0, 1)])
    texts = unit([(1, 0.1), (0.5, 1), (0, 1)])
    # Clip 0 is nearest to text 0. Clip 1 too, then to text 1. Clip 2 is text 2's, and text 1 is
    # nearer to clip 2 and then to clip 1 than to clip 0.
    assert ranks(["a", "b", "c"], clips, texts) == [(1, 2), (2, 2), (1, 1)]


def test_equal_captions_are_right_for_each_other() -> None:
    clips = unit([(1, 0), (0, 1), (1, 1)])
    texts = unit([(0, 1), (0, 1), (1, 0)])
    # The first two clips share a caption: it finds clip 1 at once. Clip 0 has two captions to find
    # among, and theirs is the farther one.
    assert ranks(["A  dog", "a dog", "cats"], clips, texts) == [(2, 1), (1, 1), (2, 2)]


def test_a_model_that_embeds_all_alike_has_found_nothing() -> None:
    same = unit([(1, 2, 3)] * 5)
    assert ranks(list("abcde"), same, same) == [(5, 5)] * 5
    zero = np.zeros((5, 3), np.float32)
    assert ranks(list("abcde"), zero, same) == [(5, 5)] * 5
    assert ranks(list("abcde"), np.full((5, 3), np.nan, np.float32), same) == [(5, 5)] * 5


def test_in_chunks_as_by_sorting(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    captions = [f"caption {n % 23}" for n in range(40)]
    clips, texts = unit(rng.normal(size=(40, 8))), unit(rng.normal(size=(40, 8)))
    monkeypatch.setattr(retrieval, "_CHUNK_BYTES", 4 * 40 * 3)
    found = ranks(captions, clips, texts)
    different = list(dict.fromkeys(captions))
    text_of = {caption: texts[captions.index(caption)] for caption in different}
    for clip, caption, (to_text, to_clip) in zip(clips, captions, found, strict=True):
        by_text = sorted(different, key=lambda other: -float(clip @ text_of[other]))
        assert to_text == by_text.index(caption) + 1
        by_clip = sorted(range(40), key=lambda n: -float(clips[n] @ text_of[caption]))
        assert to_clip == [captions[n] for n in by_clip].index(caption) + 1


def test_recall_and_median() -> None:
    scores = retrieval_scores([1, 1, 4, 6, 11, 30], 100)
    assert scores is not None
    assert scores.recall_at_1 == pytest.approx(2 / 6)
    assert scores.recall_at_5 == pytest.approx(3 / 6)
    assert scores.recall_at_10 == pytest.approx(4 / 6)
    assert scores.median_rank == 5.0
    assert retrieval_scores([], 100) is None


def test_no_captions_no_ranks() -> None:
    assert retrieve([], np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32)) == []

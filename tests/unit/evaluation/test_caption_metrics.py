"""Caption metrics against values computed by hand."""

import math

import pytest

from spark_ray.evaluation.captions import bleu_signature, caption_scores, judge_captions
from spark_ray.evaluation.results import CaptionResult


def one(reference: str, predicted: str) -> CaptionResult:
    (result,) = judge_captions([reference], [predicted])
    return result


def test_rouge_l_is_the_f1_of_the_longest_common_subsequence() -> None:
    # "the cat sat on mat" is common: precision 5/5, recall 5/6.
    assert one("The cat sat on the mat.", "the cat sat on mat").rouge_l == pytest.approx(10 / 11)


def test_rouge_l_reads_every_alphabet() -> None:
    assert one("красный круг растёт", "красный круг").rouge_l == pytest.approx(0.8)


def test_meteor_of_a_text_and_itself() -> None:
    # One chunk of six words: 1 - 0.5 (1/6)^3.
    result = one("the cat sat on the mat", "The cat sat on the mat!")
    assert result.meteor == pytest.approx(1 - 0.5 / 216)


def test_meteor_matches_stems_but_no_synonyms() -> None:
    # "jumps" and "jumped" share a stem: both words match in one chunk.
    assert one("dogs jumps", "dogs jumped").meteor == pytest.approx(1 - 0.5 / 8)
    # "big" and "large" don't: P = R = 1/2, one chunk of one word.
    assert one("big dog", "large dog").meteor == pytest.approx(0.5 * 0.5)


def test_meteor_weighs_recall_and_fragments() -> None:
    # 3 of 4 words given and 3 of 6 wanted match, in two chunks ("a b" and "e"):
    # F = 10 P R / (R + 9 P) = 10 (3/4) (1/2) / (1/2 + 27/4), penalty 0.5 (2/3)^3.
    expected = (3.75 / 7.25) * (1 - 0.5 * (2 / 3) ** 3)
    assert one("a b c d e f", "a b x e").meteor == pytest.approx(expected)


def test_bleu_is_of_the_corpus() -> None:
    # n-gram precisions 5/5, 3/4, 2/3, 1/2 and one word too few.
    results = judge_captions(["The cat sat on the mat"], ["the cat sat on mat"])
    scores = caption_scores(results)
    assert scores is not None
    assert scores.bleu == pytest.approx(100 * math.exp(1 - 6 / 5) * 0.25**0.25)
    assert "case:lc" in bleu_signature(results)


def test_short_captions_that_are_right_have_a_bleu() -> None:
    scores = caption_scores(judge_captions(["two dogs", "a cat"], ["two dogs", "a cat"]))
    assert scores is not None
    assert scores.bleu == pytest.approx(100)


def test_scores_are_means_over_clips() -> None:
    references = ["a red circle moves left", "a blue star grows", "two dogs run home"]
    results = judge_captions(references, ["A red circle moves left", "a blue star", ""])
    scores = caption_scores(results)
    assert scores is not None
    assert [result.exact for result in results] == [True, False, False]
    assert scores.exact == pytest.approx(1 / 3)
    assert scores.rouge_l == pytest.approx((1 + 6 / 7 + 0) / 3)
    assert scores.cider == pytest.approx(sum(result.cider for result in results) / 3)
    assert results[2].meteor == 0.0
    assert caption_scores([]) is None

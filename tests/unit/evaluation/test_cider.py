"""CIDEr-D gives what its authors' code gives."""

import pytest

from spark_ray.evaluation.cider import cider_d

REFERENCES = (
    "a red circle moves left",
    "a red circle moves right then a blue square grows",
    "a dog runs over the green grass",
    "two people talk in a kitchen",
    "a red circle moves left",
    "a man",
)
CANDIDATES = (
    "a red circle moves left",
    "a red circle grows then a blue square moves right",
    "the dog the dog the dog runs",
    "people talk",
    "a blue star shrinks and shrinks and shrinks and shrinks and shrinks",
    "a",
)
# CiderScorer(n=4, sigma=6.0) of pycocoevalcap 1.2 for the same words.
PUBLISHED = (10.0, 5.248409, 0.975212, 2.161329, 0.0, 0.0)


def split(texts: tuple[str, ...]) -> list[list[str]]:
    return [text.split() for text in texts]


def test_equals_the_authors_code() -> None:
    scores = cider_d(split(REFERENCES), split(CANDIDATES))
    assert scores == pytest.approx(PUBLISHED, abs=1e-6)


def test_repeating_a_rare_word_earns_nothing() -> None:
    references = split(REFERENCES)
    once, often = (
        cider_d(references, [*split(CANDIDATES[:3]), text.split(), *split(CANDIDATES[4:])])[3]
        for text in ("people talk", "people people people people talk")
    )
    assert often < once


def test_a_single_pair_tells_nothing_and_an_empty_text_scores_nothing() -> None:
    assert cider_d([["a", "dog"]], [["a", "dog"]]) == [0.0]
    assert cider_d([["a", "dog"], ["a", "cat"]], [[], ["a", "cat"]])[0] == 0.0
    assert cider_d([], []) == []

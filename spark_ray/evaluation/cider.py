"""CIDEr-D: how much of what is special about a reference a caption says.

R. Vedantam, C. L. Zitnick, D. Parikh, "CIDEr: Consensus-based Image Description Evaluation", CVPR
2015, https://arxiv.org/abs/1411.5726: its variant D, which clips and has a length penalty. The
constants are those of the authors' code, which gives the same numbers for the same words
(pycocoevalcap's `cider`; the unit test holds values that it returned).
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

_ORDERS = (1, 2, 3, 4)
_SIGMA = 6.0
_SCALE = 10.0

_NGram = tuple[str, ...]


class _Vector(NamedTuple):
    """An n-gram's weight in one text, and the length of that vector."""

    weights: dict[_NGram, float]
    norm: float


def cider_d(
    references: Sequence[Sequence[str]], candidates: Sequence[Sequence[str]]
) -> list[float]:
    """CIDEr-D of each candidate, 0 to 10, against its one reference.

    An n-gram weighs the more, the fewer references have it, so the score of a caption depends on
    the references of all others: one that all captions share weighs nothing, and if there is a
    single pair everything is 0.

    Args:
        references: words of each clip's caption.
        candidates: words of what the model wrote about the same clips.
    """
    rarity = _rarity(references)
    return [
        _SCALE * sum(_similarity(reference, candidate, n, rarity) for n in _ORDERS) / len(_ORDERS)
        for reference, candidate in zip(references, candidates, strict=True)
    ]


class _Rarity:
    """Inverse document frequency over the references; one that none has counts as had by one."""

    def __init__(self, counts: Counter[_NGram], documents: int) -> None:
        self._counts = counts
        self._log_documents = math.log(documents) if documents else 0.0

    def __call__(self, ngram: _NGram) -> float:
        return self._log_documents - math.log(max(1, self._counts[ngram]))


def _rarity(references: Sequence[Sequence[str]]) -> _Rarity:
    counts: Counter[_NGram] = Counter()
    for reference in references:
        counts.update({ngram for n in _ORDERS for ngram in _ngrams(reference, n)})
    return _Rarity(counts, len(references))


def _similarity(
    reference: Sequence[str], candidate: Sequence[str], n: int, rarity: _Rarity
) -> float:
    """Cosine of the two vectors of one order, clipped so that repetition earns nothing."""
    wanted, given = _vector(reference, n, rarity), _vector(candidate, n, rarity)
    if not wanted.norm or not given.norm:
        return 0.0
    shared = sum(
        min(weight, wanted.weights[ngram]) * wanted.weights[ngram]
        for ngram, weight in given.weights.items()
        if ngram in wanted.weights
    )
    # The authors' code measures lengths in bigrams, which a text of one word has as many of as one
    # of no words.
    longer = max(len(candidate) - 1, 0) - max(len(reference) - 1, 0)
    penalty = math.exp(-(longer**2) / (2 * _SIGMA**2))
    return penalty * shared / (wanted.norm * given.norm)


def _vector(text: Sequence[str], n: int, rarity: _Rarity) -> _Vector:
    weights = {ngram: count * rarity(ngram) for ngram, count in Counter(_ngrams(text, n)).items()}
    return _Vector(weights, math.sqrt(sum(weight**2 for weight in weights.values())))


def _ngrams(text: Sequence[str], n: int) -> list[_NGram]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]

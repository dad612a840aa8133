"""Retrieval both ways: the caption that belongs to a clip, and the clip that belongs to a caption.

Captions that are the same text (see `text.same_text`) are one: the candidates of a clip are the
different captions, and a caption that several clips share has found what it should with any of
them. Each clip asks once in either direction, so a caption that ten clips share is asked ten times.
"""

from collections.abc import Sequence

import numpy as np

from spark_ray.evaluation.results import RetrievalScores, Retrieved
from spark_ray.evaluation.text import same_text

_CHUNK_BYTES = 64 << 20
_ROUNDING = 1e-6  # of a product of float32 unit vectors


def retrieve(
    captions: Sequence[str], clip_vectors: np.ndarray, caption_vectors: np.ndarray
) -> list[Retrieved]:
    """Ranks of each clip; parallel to the arguments. The similarities are never held as a whole.

    Args:
        captions: reference caption of each clip.
        clip_vectors: `[clips, E]` float32 unit vectors.
        caption_vectors: `[clips, E]` float32 unit vectors of the captions; of equal captions the
            first one's is used.
    """
    if not captions:
        return []
    _, first, key = np.unique(
        [same_text(c) for c in captions], return_index=True, return_inverse=True
    )
    texts = caption_vectors[first]
    to_text = _ranks(clip_vectors, texts, key, np.arange(len(texts)))
    to_clip = _ranks(texts, clip_vectors, np.arange(len(texts)), key)[key]
    return [
        Retrieved(clip_to_text_rank=int(text), text_to_clip_rank=int(clip))
        for text, clip in zip(to_text, to_clip, strict=True)
    ]


def _ranks(
    queries: np.ndarray, candidates: np.ndarray, query_key: np.ndarray, candidate_key: np.ndarray
) -> np.ndarray:
    """`[queries]` rank of the first right candidate: right is the one with the query's key.

    Wrong candidates that are just as similar go before it, and so do those whose similarity is not
    a number: a model that embeds everything alike, or not at all, has found nothing.
    """
    ranks = np.empty(len(queries), np.int64)
    step = max(1, _CHUNK_BYTES // (4 * len(candidates)))
    for start in range(0, len(queries), step):
        chunk = slice(start, start + step)
        similarity = queries[chunk] @ candidates.T
        is_right = query_key[chunk, None] == candidate_key[None]
        best = np.where(is_right, similarity, -np.inf).max(axis=1)
        is_behind = similarity < best[:, None] - _ROUNDING
        ranks[chunk] = 1 + (~is_right & ~is_behind).sum(axis=1)
    return ranks


def retrieval_scores(ranks: Sequence[int], candidates: int) -> RetrievalScores | None:
    """Recall at 1, 5 and 10 and the median of some clips' ranks; None for no clip."""
    if not ranks:
        return None
    found = np.asarray(ranks)
    return RetrievalScores(
        clips=len(ranks),
        candidates=candidates,
        recall_at_1=float((found <= 1).mean()),
        recall_at_5=float((found <= 5).mean()),
        recall_at_10=float((found <= 10).mean()),
        median_rank=float(np.median(found)),
    )

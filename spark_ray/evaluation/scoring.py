"""From a model's answers to scores: joined with the references, judged, grouped."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spark_ray.evaluation.captions import caption_scores, judge_captions
from spark_ray.evaluation.results import Failure, Prediction, Scores
from spark_ray.evaluation.retrieval import retrieval_scores, retrieve
from spark_ray.evaluation.slices import slice_predictions
from spark_ray.evaluation.text import same_text
from spark_ray.evaluation.transcripts import judge_transcript, transcript_scores

_Result = TypeVar("_Result")


def judge(clips: pa.Table, answers: pa.Table) -> tuple[list[Prediction], list[Failure]]:
    """Every clip's answers against its references, and the clips that could not be read.

    Args:
        clips: rows of the index, with a column `source`.
        answers: rows of `predict.ANSWER_SCHEMA`, parallel to `clips`.
    """
    is_read = pc.is_null(answers["error"])
    failures = [
        Failure(id=clip["id"], source_path=clip["source_path"], **answer)
        for clip, answer in zip(
            clips.filter(pc.invert(is_read)).select(["id", "source_path"]).to_pylist(),
            answers.filter(pc.invert(is_read)).select(["error", "message"]).to_pylist(),
            strict=True,
        )
    ]
    clips, answers = clips.filter(is_read), answers.filter(is_read)
    return _judge_read(clips, answers), failures


def _judge_read(clips: pa.Table, answers: pa.Table) -> list[Prediction]:
    names = ("id", "source_path", "label", "duration", "source", "caption", "transcript")
    rows = clips.select(names).to_pylist()
    given = answers.select(["caption", "transcript", "seconds"]).to_pylist()

    captioned = [number for number, row in enumerate(rows) if row["caption"] is not None]
    references = [rows[number]["caption"] for number in captioned]
    captions = judge_captions(references, [given[number]["caption"] for number in captioned])
    clip_vectors, caption_vectors = (
        _matrix(answers[name].take(pa.array(captioned, pa.int64())))
        for name in ("clip_vector", "caption_vector")
    )
    caption_of = dict(zip(captioned, captions, strict=True))
    ranks = retrieve(references, clip_vectors, caption_vectors)
    rank_of = dict(zip(captioned, ranks, strict=True))
    return [
        Prediction(
            **{name: row[name] for name in names[:5]},
            caption=caption_of.get(number),
            transcript=(
                judge_transcript(row["transcript"], answer["transcript"])
                if row["transcript"] is not None
                else None
            ),
            retrieval=rank_of.get(number),
            seconds=answer["seconds"],
        )
        for number, (row, answer) in enumerate(zip(rows, given, strict=True))
    ]


def _matrix(vectors: pa.ChunkedArray) -> np.ndarray:
    """`[clips, E]` float32 of a column of lists of one length."""
    flat = np.asarray(pc.list_flatten(vectors), np.float32)
    return flat.reshape(len(vectors), -1) if len(vectors) else flat.reshape(0, 0)


def score_all(predictions: Sequence[Prediction]) -> tuple[Scores, dict[str, dict[str, Scores]]]:
    """Scores of all predictions together, and of every slice.

    In a slice, too, what can be retrieved are all clips and captions, and CIDEr is weighed by them.
    """
    references = [p.caption.reference for p in predictions if p.caption is not None]
    candidates = _Candidates(len({same_text(text) for text in references}), len(references))
    slices = {
        kind: {name: _score(group, candidates) for name, group in groups.items()}
        for kind, groups in slice_predictions(predictions).items()
    }
    return _score(predictions, candidates), slices


class _Candidates(NamedTuple):
    texts: int
    clips: int


def _score(predictions: Sequence[Prediction], candidates: _Candidates) -> Scores:
    ranks = _there(predictions, lambda p: p.retrieval)
    to_text, to_clip = (
        [rank.clip_to_text_rank for rank in ranks],
        [rank.text_to_clip_rank for rank in ranks],
    )
    return Scores(
        clips=len(predictions),
        captions=caption_scores(_there(predictions, lambda p: p.caption)),
        transcripts=transcript_scores(_there(predictions, lambda p: p.transcript)),
        clip_to_text=retrieval_scores(to_text, candidates.texts),
        text_to_clip=retrieval_scores(to_clip, candidates.clips),
    )


def _there(
    predictions: Sequence[Prediction], of: Callable[[Prediction], _Result | None]
) -> list[_Result]:
    return [result for result in map(of, predictions) if result is not None]

"""A whole evaluation without Ray and without a model: answers are made from the references."""

import random
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from fake_version import make_clip, write_version

from spark_ray.core.schema import Clip, ModelInfo, Transcript
from spark_ray.datasets.samples import SampleIndex
from spark_ray.evaluation import evaluate as job
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.predict import ANSWER_SCHEMA, Answers

MODEL = ModelInfo(name="models:/apotheon@champion", revision="3", weights_hash="ab" * 32)
_HUB_ID = "our/apotheon"  # which nobody looks up before an actor loads it

Answer = Callable[[dict[str, Any]], dict[str, Any]]


def write_clips(root: Path, clips: list[Clip] | None = None) -> Path:
    """A dataset's folder; by default six clips of two labels and two durations."""
    write_version(root, clips or [some_clip(number) for number in range(6)])
    return root


def some_clip(number: int, **changes: Any) -> Clip:
    colour = ("red", "blue")[number % 2]
    clip = make_clip(
        number,
        source=f"/films/{colour}/{number}.mp4",
        caption=f"a {colour} circle number {number} moves left",
    )
    clip.label = colour
    clip.end_s = (2.0, 6.0)[number % 2]
    clip.transcript = Transcript(text=f"my friend lost {number} boats")
    return clip.model_copy(update=changes)


def perfect(row: dict[str, Any]) -> dict[str, Any]:
    """What a model would answer that knows everything; equal captions have equal vectors."""
    rng = np.random.default_rng(random.Random(row["caption"]).getrandbits(32))
    vector = rng.normal(size=16).astype(np.float32)
    vector /= np.linalg.norm(vector)
    return {
        "caption": row["caption"],
        "transcript": row["transcript"],
        "clip_vector": vector if row["caption"] else None,
        "caption_vector": vector if row["caption"] else None,
    }


def unreadable(_row: dict[str, Any]) -> dict[str, Any]:
    return {"error": "CorruptMedia", "message": "a frame of the clip is no readable JPEG"}


def run(patch: pytest.MonkeyPatch, answer: Answer, **settings: Any) -> job.Evaluation:
    """Evaluate with these answers in place of a model's."""

    def predict(_config: EvaluateConfig, clips: SampleIndex) -> Answers:
        rows = [
            {"place": place, "seconds": 0.5, **answer(row)}
            for place, row in enumerate(clips.table.to_pylist())
        ]
        return Answers(pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA), MODEL)

    patch.setattr(job, "predict", predict)
    patch.setattr(job, "ray_session", lambda _config: nullcontext())
    config = EvaluateConfig.from_values(model=_HUB_ID, **{"split": "all", **settings})
    return job.evaluate(config)

"""What a model writes and how it embeds, for every clip: actors on Ray Data that load it once.

A block is a batch: which clips share one follows from their order alone, so that the number of
actors, and which of them does what, changes no padding and thereby no prediction.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import cv2
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy

from spark_ray.core.errors import (
    ConfigError,
    CorruptMedia,
    DatasetError,
    ModelError,
    SparkRayError,
    StorageError,
)
from spark_ray.core.progress import ProgressReport
from spark_ray.core.schema import ModelInfo
from spark_ray.core.storage import Folder
from spark_ray.datasets.capacity import Resources, have_gpus, have_room, living_nodes
from spark_ray.datasets.samples import SampleIndex, read_clip
from spark_ray.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from spark_ray.apotheon.processing import PreparedClip
    from spark_ray.models.apotheon import Apotheon

_READERS = 16
_VECTOR = pa.list_(pa.float32())

ANSWER_SCHEMA = pa.schema(
    {
        "place": pa.int64(),
        "caption": pa.string(),
        "transcript": pa.string(),
        "clip_vector": _VECTOR,
        "caption_vector": _VECTOR,
        "seconds": pa.float64(),
        "error": pa.string(),
        "message": pa.string(),
        "model": pa.string(),
    }
)
"""One clip's answer. `place` is its row in the table that was asked about; -1 ends the job with
`error` and `message`. `model` is a `ModelInfo` as JSON."""

_ABORTED = -1
_EPSILON = 1e-6


class Predictor:
    """An actor's work: reads a batch of clips, writes about them, embeds them.

    What has no reference is not written, since it could not be judged. Reading and decoding run in
    threads, yet before the model starts on the batch: on storage that takes a second a clip, the
    model waits for a second a batch.
    """

    def __init__(self, version: Folder, config: EvaluateConfig) -> None:
        self._version = version
        self._config = config
        self._model: Apotheon | None = None
        self._info = ""

    def __call__(self, rows: pa.Table) -> pa.Table:
        try:
            return _table(self._answer(rows.to_pylist()))
        except SparkRayError as error:
            # Raised, it would reach the user inside two pages of Ray's own traceback.
            return _table([{"place": _ABORTED, **_reason(error)}])

    def _answer(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        model = self._model or self._load()
        started = time.monotonic()
        with ThreadPoolExecutor(_READERS) as threads:
            read = list(threads.map(self._read, rows))
        answers: list[dict[str, Any]] = [
            {"place": row["place"], "model": self._info} for row in rows
        ]
        clips: list[_Asked] = []
        for row, answer, found in zip(rows, answers, read, strict=True):
            if isinstance(found, Exception):
                answer |= _reason(found)
            else:
                clips.append(_Asked(row, answer, found))
        self._write(model, clips)
        seconds = (time.monotonic() - started) / len(rows)
        return [{**answer, "seconds": seconds} for answer in answers]

    def _load(self) -> "Apotheon":
        # Imported here: the driver needs no torch.
        from spark_ray.models.apotheon import Apotheon

        cv2.setNumThreads(1)  # one thread a clip is enough
        self._model = Apotheon.load(self._config.model, setting="model")
        self._info = self._model.weights.info().model_dump_json()
        return self._model

    def _read(self, row: Mapping[str, Any]) -> "PreparedClip | Exception":
        """The clip ready for the model, or why it can't be."""
        assert self._model is not None
        times = row["frame_times"]
        chosen = self._model.choose_frames(len(times))
        try:
            found = read_clip(self._version, row, frames=chosen)
            if not found.frames and not found.audio:
                raise CorruptMedia("the clip has neither frames nor sound")
            shown_at = [times[number] for number in chosen]
            return self._model.prepare(found.frames, shown_at, found.audio)
        except (SparkRayError, OSError, pa.ArrowException) as error:
            return error

    def _write(self, model: "Apotheon", clips: "Sequence[_Asked]") -> None:
        """Add to the clips' answers what the model has to say."""
        import torch

        try:
            for task in ("caption", "transcript"):
                asked = [clip for clip in clips if clip.row[task]]
                if asked:
                    texts = model.write(
                        [clip.media for clip in asked],
                        task,
                        self._config.max_new_tokens,
                        self._config.num_beams,
                    )
                    _add(asked, task, texts)
            captioned = [clip for clip in clips if clip.row["caption"]]
            if captioned:
                _add(captioned, "clip_vector", model.embed_clips([c.media for c in captioned]))
                texts = [clip.row["caption"] for clip in captioned]
                _add(captioned, "caption_vector", model.embed_texts(texts))
        except torch.OutOfMemoryError as error:
            raise ModelError(
                f"batch_size: {self._config.batch_size} clips with num_beams="
                f"{self._config.num_beams} don't fit into the GPU's memory; lower either"
            ) from error


@dataclass(frozen=True)
class _Asked:
    """A clip that could be read, and where its answer goes."""

    row: Mapping[str, Any]
    answer: dict[str, Any]
    media: "PreparedClip"


def _add(clips: Sequence[_Asked], name: str, values: Any) -> None:
    for clip, value in zip(clips, values, strict=True):
        clip.answer[name] = value


def _reason(error: Exception) -> dict[str, str]:
    return {"error": type(error).__name__, "message": str(error)}


def _table(answers: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(answers, schema=ANSWER_SCHEMA)


@dataclass(frozen=True)
class Answers:
    """A row of `ANSWER_SCHEMA` for every clip, in the order asked, and the model that spoke."""

    table: pa.Table
    model: ModelInfo


def predict(config: EvaluateConfig, clips: SampleIndex) -> Answers:
    """Ask the model about every clip, `config.workers` batches at a time. Needs a connected Ray.

    Raises:
        ModelError: it can't be loaded, or the actors found different weights under its name.
        SparkRayError: an actor could not go on.
    """
    rows = clips.table.append_column("place", pa.array(range(clips.table.num_rows), pa.int64()))
    blocks = [
        rows.slice(start, config.batch_size).combine_chunks()
        for start in range(0, rows.num_rows, config.batch_size)
    ]
    actors = min(config.workers, len(blocks))
    have_gpus(actors, config.num_gpus)
    have_room([{"CPU": 1.0}])
    # `map_batches` gives whole blocks to CPUs alone.
    dataset = ray.data.from_blocks(blocks).map_batches_internal(
        Predictor,
        fn_constructor_args=(clips.version, config),
        compute=ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=2),
        batch_size=None,
        batch_format="pyarrow",
        zero_copy_batch=True,
        **_resources(actors, config.num_gpus, living_nodes()),
    )
    tables, failed = [], 0
    with ProgressReport("Evaluating", rows.num_rows, "clips") as progress:
        for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
            table, more = _checked(cast(pa.Table, batch))
            tables.append(table)
            failed += more
            progress.advance(table.num_rows, f"{failed} could not be read" if failed else "")
    table = pa.concat_tables(tables).sort_by("place")
    assert table["place"].to_pylist() == list(range(rows.num_rows)), "a clip has no answer, or two"
    return Answers(table, _one_model(config, table))


def _resources(actors: int, num_gpus: float, nodes: Sequence[Resources]) -> dict[str, float]:
    """What an actor may take so that all fit at once; else Ray Data waits for ever."""
    parts = [1 / number for number in range(2, actors + 1)]
    gpus = [node.get("GPU", 0.0) for node in nodes]
    if num_gpus and any(gpus):
        devices = [1.0] * int(sum(gpus))  # what two of them have left over makes no third part
        shares = (num_gpus, *range(math.ceil(num_gpus) - 1, 0, -1), *parts)
        fitting = (
            share
            for share in shares
            if share <= num_gpus and _places(share, gpus if share >= 1 else devices) >= actors
        )
        return {"num_gpus": next(fitting, 1 / actors), "num_cpus": 0}
    cpus = [node.get("CPU", 0.0) for node in nodes]
    fitting = (share for share in (1.0, *parts) if _places(share, cpus) >= actors)
    return {"num_cpus": next(fitting, 1 / actors)}


def _places(share: float, there: Sequence[float]) -> int:
    """How many find such a share, each in one place."""
    return sum(int(amount / share + _EPSILON) for amount in there)


def _checked(batch: pa.Table) -> tuple[pa.Table, int]:
    """A batch that says no actor gave up, and how many of its clips could not be read."""
    answers = batch.select(["place", "error", "message"]).to_pylist()
    for answer in answers:
        if answer["place"] == _ABORTED:
            kinds = {k.__name__: k for k in (ConfigError, DatasetError, ModelError, StorageError)}
            raise kinds.get(answer["error"], SparkRayError)(answer["message"])
    return batch, sum(answer["error"] is not None for answer in answers)


def _one_model(config: EvaluateConfig, answers: pa.Table) -> ModelInfo:
    found = sorted(set(answers["model"].to_pylist()))
    if len(found) > 1:
        raise ModelError(
            f"model: {config.model} holds different weights on different nodes; put one model "
            "where all of them can read it"
        )
    return ModelInfo(**json.loads(found[0]))

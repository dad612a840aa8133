"""The deployment of published datasets: looked through, and searched by meaning.

Search compares an embedding of each clip with that of the question.

All vectors of a dataset are held and compared: 100,000 clips of 512 numbers are 200 MB and take
20 ms, and nothing is approximated. They are made once for a dataset and a model, and kept on disk.
"""

import asyncio
from collections.abc import Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ray.serve.exceptions import BackPressureError

from spark_ray.core.logging import configure_logging, get_logger
from spark_ray.core.provenance import text_hash
from spark_ray.core.schema import Clip, FrameSample
from spark_ray.core.storage import Folder
from spark_ray.datasets.browsing import ClipQuery
from spark_ray.datasets.samples import SampleIndex, read_clip
from spark_ray.monitoring.logs import serve_ids
from spark_ray.serving.catalog import base_name
from spark_ray.serving.dataset_names import name_of
from spark_ray.serving.dataset_schemas import (
    ClipDetails,
    ClipPage,
    DatasetSummary,
    VersionComparison,
    VersionDetails,
)
from spark_ray.serving.errors import ApiError
from spark_ray.serving.library import Library
from spark_ray.serving.messages import DatasetPlace, Embedded, ModelFacts
from spark_ray.serving.schemas import Hit
from spark_ray.serving.settings import ServeSettings

log = get_logger(__name__)

_CLIPS_AT_ONCE = 32
_BUSY_S = 1.0
_MOST_HELD = 8
"""Indices in memory; each promoted model and each new version of a dataset needs another."""


@dataclass
class _Index:
    """A dataset's clips with their unit vectors `[clips, E]`."""

    samples: SampleIndex
    vectors: np.ndarray

    def nearest(self, query: np.ndarray, limit: int) -> list[Hit]:
        scores = self.vectors @ query
        best = np.argsort(-scores, kind="stable")[:limit]
        rows = self.samples.table.take(best).to_pylist()
        return [
            Hit(
                clip_id=row["id"],
                score=round(float(scores[number]), 6),
                caption=row["caption"],
                transcript=row["transcript"],
                source_path=row["source_path"],
                label=row["label"],
            )
            for number, row in zip(best, rows, strict=True)
        ]


class SearchServer:
    """Published datasets, read by a `Library`, and their embeddings by dataset and model.

    Embeddings are made when they are first asked for, in the background.
    """

    def __init__(self, settings: ServeSettings, models: dict[str, Any]) -> None:
        configure_logging(ids=serve_ids)
        self._models = models
        self._folder = Folder(f"{settings.state}/indices")
        self._making: dict[tuple[str, str], asyncio.Task[_Index]] = {}
        self._library = Library()

    async def summaries(self, places: list[DatasetPlace]) -> list[DatasetSummary]:
        return await asyncio.to_thread(lambda: [self._library.summary(place) for place in places])

    async def version(self, place: DatasetPlace, version: str) -> VersionDetails:
        return await asyncio.to_thread(self._library.version, place, version)

    async def clips(
        self, place: DatasetPlace, version: str, query: ClipQuery, window: tuple[int, int],
        thumbnails: int,
    ) -> ClipPage:  # fmt: skip
        return await asyncio.to_thread(
            self._library.clips, place, version, query, window, thumbnails
        )

    async def clip(
        self, place: DatasetPlace, version: str, clip_id: str, thumbnails: int
    ) -> ClipDetails:
        return await asyncio.to_thread(self._library.clip, place, version, clip_id, thumbnails)

    async def frame(self, place: DatasetPlace, version: str, clip_id: str, number: int) -> bytes:
        return await asyncio.to_thread(self._library.frame, place, version, clip_id, number)

    async def sound(self, place: DatasetPlace, version: str, clip_id: str) -> bytes:
        return await asyncio.to_thread(self._library.sound, place, version, clip_id)

    async def compare(self, place: DatasetPlace, before: str, after: str) -> VersionComparison:
        return await asyncio.to_thread(self._library.compare, place, before, after)

    async def find(
        self, dataset: str, model: str, reference: str | None, query: list[float], limit: int
    ) -> tuple[list[Hit], str]:
        """The nearest clips, and the version of the dataset.

        Raises:
            ApiError: its clips are still being embedded; it says when to ask again.
            DatasetError: there is no such dataset.
        """
        samples = await asyncio.to_thread(self._library.index, dataset)
        task = self._index(samples, model, reference)
        if not task.done():
            await asyncio.wait([task], timeout=2.0)
        if not task.done():
            raise ApiError(
                503,
                "index_not_ready",
                f"the clips of {name_of(dataset)} are being embedded; ask again",
                retry_after_s=5.0,
            )
        nearest = partial(task.result().nearest, np.asarray(query, np.float32), limit)
        return await asyncio.to_thread(nearest), samples.version.location.rpartition("/")[2]

    def _index(
        self, samples: SampleIndex, model: str, reference: str | None
    ) -> "asyncio.Task[_Index]":
        """What makes the index, or has made it; one that failed or was broken off begins anew.

        So does one of a version that was removed, and published with other clips since.
        """
        key = (samples.version.location, reference or model)
        task = self._making.pop(key, None)
        if task is None or _is_lost(task) or _is_outdated(task, samples):
            # Not in the context of the request that happens to be first: Serve, which knows it by
            # that, would break the work off with it.
            task = asyncio.create_task(self._make(samples, model, reference), context=Context())
        self._making[key] = task  # the last, as it was asked for last
        ready = [key for key, task in self._making.items() if task.done()]
        for old in ready[:-_MOST_HELD]:
            del self._making[old]
        return task

    async def _make(self, samples: SampleIndex, model: str, reference: str | None) -> _Index:
        handle = self._models[base_name(model)]
        if reference is not None:
            handle = handle.options(multiplexed_model_id=reference)
        facts: ModelFacts = await handle.facts.remote()
        manifest = await asyncio.to_thread(samples.manifest_sha256)
        name = f"{text_hash(f'{manifest} {facts.served.weights_hash}')[:32]}.npy"
        if await asyncio.to_thread(self._folder.exists, name):
            data = await asyncio.to_thread(self._folder.read, name)
            return _Index(samples, _from_bytes(data))
        rows = samples.table.to_pylist()
        vectors: list[list[float]] = []
        for start in range(0, len(rows), _CLIPS_AT_ONCE):
            batch = rows[start : start + _CLIPS_AT_ONCE]
            clips = await asyncio.to_thread(_read_clips, samples, batch)
            vectors += (await _embedded(handle, clips)).vectors
            log.info("embedded", dataset=samples.version.location, clips=len(vectors))
        made = np.asarray(vectors, np.float32)
        await asyncio.to_thread(self._folder.write, name, _to_bytes(made))
        return _Index(samples, made)


async def _embedded(handle: Any, clips: list[Clip]) -> Embedded:
    """Those who wait for an answer go first: a model without room is asked again."""
    while True:
        try:
            embedded: Embedded = await handle.embed_clips.remote(clips)
        except BackPressureError:
            await asyncio.sleep(_BUSY_S)
        else:
            return embedded


def _is_lost(task: "asyncio.Task[_Index]") -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _is_outdated(task: "asyncio.Task[_Index]", samples: SampleIndex) -> bool:
    return task.done() and task.result().samples is not samples


def _read_clips(samples: SampleIndex, rows: Sequence[dict[str, Any]]) -> list[Clip]:
    clips = []
    for row in rows:
        found = read_clip(samples.version, row)
        clips.append(
            Clip(
                clip_id=row["id"],
                video_id=row["video_id"],
                unit_id=row["id"],
                source_path=row["source_path"],
                end_s=row["duration"],
                samples=[FrameSample(time=time) for time in row["frame_times"]],
                frames=found.frames,
                audio=found.audio,
            )
        )
    return clips


def _to_bytes(vectors: np.ndarray) -> bytes:
    return np.asarray(vectors.shape, "<i8").tobytes() + vectors.astype("<f4").tobytes()


def _from_bytes(data: bytes) -> np.ndarray:
    shape = np.frombuffer(data[:16], "<i8")
    return np.frombuffer(data[16:], "<f4").reshape(shape)

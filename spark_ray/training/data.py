"""Batches for one rank, made ready ahead of the step by Ray Data on CPU workers.

Each rank streams its own share of the run's micro-batches, in order, through one or more actors
that read, decode, augment and tokenize. What comes out depends on nothing but the plan, so a rank
that starts anywhere in it gets exactly what it would have got there.
"""

import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext, ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.exceptions import RayTaskError
from safetensors.numpy import save
from safetensors.torch import load
from torch import Tensor

from spark_ray.apotheon.processing import PreparedClip, even_choice
from spark_ray.core.background import start_thread
from spark_ray.core.errors import DatasetError, SparkRayError
from spark_ray.datasets.samples import SampleIndex, read_clip
from spark_ray.models.apotheon import prepare_clip
from spark_ray.training.augment import augment
from spark_ray.training.config import TrainConfig
from spark_ray.training.plan import RunPlan, Segment

_POSITIONS_PER_BLOCK = 4
# Each block takes 0.7 ms before the first batch comes: 3 s, where ten epochs of a million clips at
# once would take a minute. The price is that the actors start anew after so many, caches empty.
_POSITIONS_AT_ONCE = 16_384
_TEXTS_KEPT = 16_384


@dataclass
class Batch:
    """One rank's share of a micro-batch: what the model takes, and which clips it is."""

    tensors: dict[str, Tensor]
    rows: list[int]


class BatchMaker:
    """Reads, decodes, augments and tokenizes one rank's share of micro-batches, by position."""

    def __init__(self, plan: RunPlan, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank, self.world_size = rank, world_size
        self.cache = ClipCache(plan.config.data_cache_bytes)
        self._tokenize = lru_cache(maxsize=_TEXTS_KEPT)(plan.processor.tokenize)
        self._starts = [segment.first for segment in plan.segments]
        self._current: tuple[Segment, np.ndarray] | None = None

    def make(self, position: int) -> dict[str, np.ndarray]:
        """The collated arrays of the micro-batch at a position, and its `rows`."""
        segment = self.plan.segments[bisect_right(self._starts, position) - 1]
        if self._current is None or self._current[0] != segment:
            self._current = segment, self.plan.rows(segment)
        rows = share_of(self._current[1][position - segment.first], self.rank, self.world_size)
        clips = [self._clip(int(row), segment) for row in rows]
        stage = self.plan.shown(segment)
        always = {"texts"}
        always |= {"audio"} if stage.shows_audio else set()
        always |= {"frames"} if stage.shows_frames else set()
        batch = self.plan.processor.collate(clips, always)
        return {**{name: tensor.numpy() for name, tensor in batch.items()}, "rows": rows}

    def _clip(self, row: int, segment: Segment) -> PreparedClip:
        """A clip as the stage shows it: augmented in training, with one frame for `image`."""
        plan, tasks = self.plan, self.plan.tasks(segment)
        if row < 0:
            return replace(plan.processor.prepare([], []), texts=[[] for _ in tasks])
        index = plan.validation if segment.validation else plan.train
        assert index is not None
        stage = plan.shown(segment)
        rng = np.random.default_rng([plan.config.seed, segment.epoch, row])
        available = min(len(index.table["frame_times"][row]), plan.processor.max_frames)
        shown = slice(None if stage.shows_frames else 0)
        if "image" in stage.modalities and available:
            one = available // 2 if segment.validation else int(rng.integers(available))
            shown = slice(one, one + 1)
        if self.cache.max_bytes:
            whole = self._whole(row, index, segment.validation)
        else:  # nothing is kept for other stages, so nothing is read for them
            whole, shown = self._read(row, index, shown, stage.shows_audio), slice(None)
        pixels, times = whole.pixels[shown], whole.frame_times[shown]
        # As with stages: of what a clip lacks, it has no text.
        there = {"caption": len(pixels) > 0, "transcript": len(whole.mel) > 0}
        texts = {task: index.table[task][row].as_py() if there[task] else None for task in tasks}
        if not segment.validation:
            pixels, caption = augment(pixels, texts.get("caption"), plan.config, rng)
            texts |= {"caption": caption} if "caption" in texts else {}
        heard = slice(None if stage.shows_audio else 0)
        return PreparedClip(
            pixels,
            times,
            whole.mel[heard],
            whole.audio_frames[heard],
            [self._tokenize(text) for text in texts.values()],
        )

    def _whole(self, row: int, index: SampleIndex, validation: bool) -> PreparedClip:
        """All that any stage shows of a clip, decoded and scaled, without its texts."""
        key = (validation, row)
        cached = self.cache.get(key)
        if cached is not None:
            return cached
        used = {modality for stage in self.plan.stages for modality in stage.modalities}
        frames = slice(None if {"image", "video"} & used else 0)
        clip = self._read(row, index, frames, "audio" in used)
        self.cache.put(key, clip)
        return clip

    def _read(self, row: int, index: SampleIndex, frames: slice, audio: bool) -> PreparedClip:
        """Some of a clip's frames, of those that the model may see, and its sound if wanted."""
        entry = index.table.slice(row, 1).to_pylist()[0]
        processor = self.plan.processor
        try:
            times = entry["frame_times"]
            chosen = even_choice(len(times), processor.max_frames)[frames]
            found = read_clip(index.version, entry, frames=chosen, audio=audio)
            shown_at = [times[number] for number in chosen]
            return prepare_clip(processor, found.frames, shown_at, found.audio)
        except SparkRayError as error:
            raise DatasetError(f"clip {entry['id']}: {error}") from error


def share_of(rows: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """A rank's part of a micro-batch; -1 fills the shorter ones up where it can't be shared evenly.

    The gathering of the contrastive loss needs equally many clips on every rank.
    """
    padded = np.full(-(-len(rows) // world_size) * world_size, -1)
    padded[: len(rows)] = rows
    return padded.reshape(world_size, -1)[rank]


class ClipCache:
    """The clips that were decoded last, up to a number of bytes."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._clips: OrderedDict[tuple[bool, int], PreparedClip] = OrderedDict()
        self._bytes = 0

    def get(self, key: tuple[bool, int]) -> PreparedClip | None:
        if key in self._clips:
            self._clips.move_to_end(key)
        return self._clips.get(key)

    def put(self, key: tuple[bool, int], clip: PreparedClip) -> None:
        self._clips[key] = clip
        self._bytes += _size_bytes(clip)
        while self._bytes > self.max_bytes:
            self._bytes -= _size_bytes(self._clips.popitem(last=False)[1])


def _size_bytes(clip: PreparedClip) -> int:
    return clip.pixels.nbytes + clip.mel.nbytes + 1024


class _Unhurried(ExecutionCallback):
    """Lets Ray Data look at its tasks 20 times a second.

    Where finished batches wait for room it would look again without a pause, in a thread of the
    rank's own process, and take half of the interpreter from the training loop.
    """

    def on_execution_step(self, executor: Any) -> None:
        time.sleep(0.05)


class _MakeRows:
    """The actor: positions in, the arrays of their micro-batches as safetensors out."""

    def __init__(self, plan: Any, rank: int, world_size: int) -> None:
        self.maker = BatchMaker(ray.get(plan[0]), rank, world_size)

    def __call__(self, rows: pa.Table) -> Iterator[pa.Table]:
        for position in rows["item"].to_pylist():
            data = save(self.maker.make(position))
            yield pa.table({"batch": pa.array([data], pa.large_binary())})


def load_batches(plan: Any, rank: int, world_size: int, start: int) -> Iterator[Batch]:
    """A rank's micro-batches from position `start` to the end of the run, each ready in time.

    The actors start at once, so that they come up while the caller builds its model. `plan` is a
    reference to a `RunPlan` in Ray's object store.

    Raises:
        DatasetError: a clip can't be read or decoded.
    """
    batches = _batches(plan, rank, world_size, start)
    first = start_thread(lambda: list(islice(batches, 1)), "first batch")

    def all_of_them() -> Iterator[Batch]:
        yield from first.result()
        yield from batches

    return all_of_them()


def _batches(plan: Any, rank: int, world_size: int, start: int) -> Iterator[Batch]:
    run: RunPlan = ray.get(plan)
    _set_context(run.config)
    for first in range(start, run.total, _POSITIONS_AT_ONCE):
        positions = range(first, min(first + _POSITIONS_AT_ONCE, run.total))
        yield from _load_stretch(plan, run.config, rank, world_size, positions)


def _set_context(config: TrainConfig) -> None:
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Or they would be made as far ahead as half of the node's object store has room.
    context.execution_options.resource_limits = ExecutionResources.for_limits(
        object_store_memory=config.data_ahead_bytes
    )
    context.custom_execution_callback_classes = [_Unhurried]
    # Each micro-batch is handed on as soon as it is made, and not first joined with others.
    context.target_max_block_size = 1


def _load_stretch(
    plan: Any, config: TrainConfig, rank: int, world_size: int, positions: range
) -> Iterator[Batch]:
    # `from_arrow` and `range` would need a whole CPU for tasks of their own; `from_items` has none.
    blocks = -(-len(positions) // _POSITIONS_PER_BLOCK)
    dataset = ray.data.from_items(list(positions), override_num_blocks=blocks).map_batches(
        _MakeRows,
        fn_constructor_args=([plan], rank, world_size),
        batch_format="pyarrow",
        batch_size=None,
        compute=ActorPoolStrategy(size=config.data_workers),
        num_cpus=config.data_cpus,
    )
    try:
        for table in dataset.iter_batches(
            batch_size=1, batch_format="pyarrow", prefetch_batches=config.prefetch_batches
        ):
            tensors = load(table["batch"][0].as_py())
            yield Batch(tensors, tensors.pop("rows").tolist())
    except RayTaskError as error:
        cause = error.cause
        raise (cause if isinstance(cause, SparkRayError) else error) from None

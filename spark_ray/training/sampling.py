"""Which clips a step sees: decided by seed and epoch alone, whoever computes it.

An epoch is a list of global micro-batches, each of which all ranks share. Every rank works the same
list out for itself and takes its share of each, so nothing depends on how many ranks there are or
which of them is faster, and a place in the data is two numbers: epoch and micro-batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from spark_ray.core.anatomy import Task

_WINDOW = 32
"""Micro-batches that are sorted by length together: more pads less, and shuffles less freely."""
_TEXT_STEP = 64
"""Characters within which texts are equally long. Sorted to the letter, a small dataset's batches
would hold one sentence each in other words, and what one of them teaches the next unlearns."""


@dataclass(frozen=True)
class Lengths:
    """What makes clips long, as `[clips]` integers: frames, windows of audio, characters."""

    frames: np.ndarray
    windows: np.ndarray
    characters: np.ndarray

    @classmethod
    def of(
        cls,
        table: pa.Table,
        tasks: Sequence[Task],
        max_frames: int,
        window_s: float,
        max_windows: int,
    ) -> "Lengths":
        """Of the rows of an index and their texts, given the processor's limits."""
        frames = np.array([len(times) for times in table["frame_times"].to_pylist()], np.int64)
        seconds = table["duration"].to_numpy() * table["has_audio"].to_numpy()
        texts = zip(*(table[task].to_pylist() for task in tasks), strict=True)
        return cls(
            frames=np.minimum(frames, max_frames),
            windows=np.minimum(np.ceil(seconds / window_s), max_windows).astype(np.int64),
            characters=np.array([max(len(t or "") for t in of_clip) for of_clip in texts]),
        )

    def order(self, clips: np.ndarray) -> np.ndarray:
        """The clips, longest media first, then longest text; equals stay as they come."""
        texts = -(self.characters[clips] // _TEXT_STEP)
        keys = (texts, -self.frames[clips], -self.windows[clips])
        return clips[np.lexsort(keys)]


def plan_epoch(
    lengths: Lengths,
    weights: np.ndarray,
    *,
    batch: int,
    accumulation: int,
    seed: int,
    epoch: int,
) -> np.ndarray:
    """The micro-batches of an epoch, `[micro-batches, batch]` row numbers.

    A clip of weight 2.5 comes two or three times. Those that were drawn are shuffled, sorted by
    length within windows of 32 micro-batches, and the micro-batches of a window shuffled again.
    What is left over after the last whole step is left out, other clips every epoch.

    Args:
        weights: `[clips]` how often each is drawn.
        batch: clips in a micro-batch of all ranks together.
        accumulation: micro-batches in a step; their number is a multiple of it.
    """
    rng = np.random.default_rng([seed, epoch])
    count = micro_batches(weights, batch, accumulation) * batch
    clips = rng.permutation(_draw(weights, rng))[:count]
    windows = []
    for start in range(0, len(clips), batch * _WINDOW):
        window = lengths.order(clips[start : start + batch * _WINDOW]).reshape(-1, batch)
        windows.append(rng.permutation(window))
    return np.concatenate(windows) if windows else np.zeros((0, batch), np.int64)


def micro_batches(weights: np.ndarray, batch: int, accumulation: int) -> int:
    """How many micro-batches every epoch has: a multiple of `accumulation`, 0 for too few clips."""
    return int(weights.sum() + 1e-6) // (batch * accumulation) * accumulation


def _draw(weights: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Systematic sampling: always the same number of clips, each floor or ceil of its weight."""
    ends = np.cumsum(weights)
    count = int(ends[-1] + 1e-6)
    points = (np.arange(count) + rng.random()) * (ends[-1] / max(count, 1))
    return np.searchsorted(ends, points, side="right").clip(max=len(weights) - 1)


def draw_weights(table: pa.Table, mixture: Mapping[str, float]) -> np.ndarray:
    """How often each row is drawn, by its label: `[clips]`."""
    return np.array([mixture.get(label, 1.0) for label in table["label"].to_pylist()], np.float64)


def has_texts(table: pa.Table, tasks: Sequence[Task]) -> np.ndarray:
    """Which rows have any text of the tasks, and what that is about: `[clips]` booleans."""
    there = {
        "caption": pc.list_value_length(table["frame_times"]),
        "transcript": table["has_audio"],
    }
    found = [
        table[task].is_valid().to_numpy() & there[task].to_numpy().astype(bool) for task in tasks
    ]
    return np.logical_or.reduce(found)

"""The clips that a model did worst and best on, with what it saw and where its words differ."""

import base64
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import SequenceMatcher
from heapq import nsmallest
from typing import Any, Literal

from spark_ray.core.errors import CorruptMedia, DatasetError
from spark_ray.core.storage import Folder
from spark_ray.datasets.contact_sheet import spread
from spark_ray.datasets.samples import read_clip
from spark_ray.evaluation.results import Prediction
from spark_ray.evaluation.text import normalised
from spark_ray.media.thumbnails import thumbnail

_CLIPS = 4
_FRAMES = 4
_WIDTH = 240  # pixels; frames of a film would make the report hundreds of MB

Task = Literal["caption", "transcript"]


@dataclass(frozen=True)
class Frame:
    """A frame, small, as a JPEG file."""

    time: float
    jpeg: bytes

    @property
    def uri(self) -> str:
        return "data:image/jpeg;base64," + base64.b64encode(self.jpeg).decode()


@dataclass(frozen=True)
class Example:
    """A clip to look at."""

    prediction: Prediction
    frames: tuple[Frame, ...]


@dataclass(frozen=True)
class ExampleGroup:
    """Some clips at one end of the scale of one task, the extreme one first."""

    title: str
    task: Task
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Piece:
    """A run of words that the other text has at this place too, or not."""

    text: str
    differs: bool


def choose_examples(
    predictions: Sequence[Prediction], version: Folder, rows: Mapping[str, Mapping[str, Any]]
) -> list[ExampleGroup]:
    """Up to 4 of the worst and of the best captions (by ROUGE-L) and transcripts (by WER).

    Of equals the longest reference comes first, then the smallest id. A clip that is among the
    worst is not among the best as well.

    Args:
        predictions: of clips that could be read.
        version: where the dataset is.
        rows: of the index, by clip id.
    """
    groups = []
    for task, quality in _QUALITY.items():
        judged = [p for p in predictions if getattr(p, task) is not None]
        worst = nsmallest(_CLIPS, judged, key=lambda p: (quality(p), *_order(p, task)))
        shown = {p.id for p in worst}
        rest = [p for p in judged if p.id not in shown]
        best = nsmallest(_CLIPS, rest, key=lambda p: (-quality(p), *_order(p, task)))
        for which, chosen in (("Worst", worst), ("Best", best)):
            if chosen:
                examples = tuple(_example(p, version, rows[p.id]) for p in chosen)
                groups.append(ExampleGroup(f"{which} {task}s", task, examples))
    return groups


def _caption_quality(prediction: Prediction) -> float:
    assert prediction.caption is not None
    return prediction.caption.rouge_l


def _transcript_quality(prediction: Prediction) -> float:
    assert prediction.transcript is not None
    return -prediction.transcript.wer


_QUALITY: dict[Task, Callable[[Prediction], float]] = {
    "caption": _caption_quality,
    "transcript": _transcript_quality,
}


def _order(prediction: Prediction, task: Task) -> tuple[int, str]:
    return -len(getattr(prediction, task).reference), prediction.id


def _example(prediction: Prediction, version: Folder, row: Mapping[str, Any]) -> Example:
    """With some of its frames. One that is gone or broken, and that the model did not look at, is
    left out.
    """
    shown = []
    for number in spread(len(row["frame_times"]), _FRAMES):
        with suppress(DatasetError, CorruptMedia):
            (jpeg,) = read_clip(version, row, frames=[number], audio=False).frames
            shown.append(Frame(row["frame_times"][number], thumbnail(jpeg, _WIDTH)))
    return Example(prediction, tuple(shown))


def mark_differences(reference: str, predicted: str) -> tuple[list[Piece], list[Piece]]:
    """Both texts in pieces; words are the same whatever their case and punctuation."""
    texts = reference.split(), predicted.split()
    wanted, given = ([normalised(word) for word in words] for words in texts)
    matcher = SequenceMatcher(None, wanted, given, autojunk=False)
    marked: tuple[list[Piece], list[Piece]] = ([], [])
    for tag, *bounds in matcher.get_opcodes():
        for pieces, words, start, end in zip(marked, texts, bounds[::2], bounds[1::2], strict=True):
            if start < end:
                pieces.append(Piece(" ".join(words[start:end]), tag != "equal"))
    return marked

"""Which clips are shown, and how their words are marked."""

from pathlib import Path

import cv2
import numpy as np
from fake_run import some_clip, write_clips
from fake_version import jpeg

from spark_ray.datasets.samples import load_index
from spark_ray.evaluation.captions import judge_captions
from spark_ray.evaluation.examples import ExampleGroup, Piece, choose_examples, mark_differences
from spark_ray.evaluation.results import Prediction
from spark_ray.evaluation.transcripts import judge_transcript


def groups(folder: Path, wrong_words: dict[int, int]) -> dict[str, ExampleGroup]:
    """Examples of a dataset where so many words of a numbered clip's caption are wrong."""
    index = load_index(str(folder))
    rows = {row["id"]: row for row in index.table.to_pylist()}
    predictions = []
    for row in rows.values():
        words = row["caption"].split()
        wrong = wrong_words.get(int(words[4]), 0)
        (caption,) = judge_captions([row["caption"]], [" ".join(["no"] * wrong + words[wrong:])])
        predictions.append(
            Prediction(
                **{name: row[name] for name in ("id", "source_path", "label", "duration")},
                source="films",
                caption=caption,
                transcript=judge_transcript(row["transcript"], row["transcript"]),
                retrieval=None,
                seconds=0.1,
            )
        )
    return {group.title: group for group in choose_examples(predictions, index.version, rows)}


def numbers(group: ExampleGroup) -> list[int]:
    texts = [e.prediction.caption.reference for e in group.examples if e.prediction.caption]
    return [int(text.split()[4]) for text in texts]


def test_worst_and_best_share_no_clip(tmp_path: Path) -> None:
    folder = write_clips(tmp_path / "set", [some_clip(number) for number in range(10)])
    found = groups(folder, {3: 6, 7: 4, 2: 2, 5: 1})
    assert numbers(found["Worst captions"]) == [3, 7, 2, 5]
    # Of the perfect ones, those with the longest references come first: blue is longer than red.
    assert set(numbers(found["Best captions"])) == {1, 9, *numbers(found["Best captions"])[2:]}
    assert not {2, 3, 5, 7} & set(numbers(found["Best captions"]))
    assert list(found) == [
        "Worst captions",
        "Best captions",
        "Worst transcripts",
        "Best transcripts",
    ]


def test_few_clips_are_shown_once(tmp_path: Path) -> None:
    folder = write_clips(tmp_path / "set", [some_clip(number) for number in range(3)])
    assert list(groups(folder, {})) == ["Worst captions", "Worst transcripts"]


def test_four_small_frames(tmp_path: Path) -> None:
    clip = some_clip(0, frames=[jpeg(n, size=640) for n in range(9)])
    clip.samples = [clip.samples[0].model_copy(update={"time": float(n)}) for n in range(9)]
    (example,) = groups(write_clips(tmp_path / "set", [clip]), {})["Worst captions"].examples
    assert [frame.time for frame in example.frames] == [0.0, 3.0, 5.0, 8.0]
    for frame in example.frames:
        image = cv2.imdecode(np.frombuffer(frame.jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (240, 240, 3)
        assert frame.uri.startswith("data:image/jpeg;base64,")


def test_marks_words_that_one_side_lacks() -> None:
    assert mark_differences("A red circle, moves left", "a red big circle moves") == (
        [Piece("A red", False), Piece("circle, moves", False), Piece("left", True)],
        [Piece("a red", False), Piece("big", True), Piece("circle moves", False)],
    )
    assert mark_differences("a dog", "") == ([Piece("a dog", True)], [])

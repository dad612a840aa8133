"""What the actors do when they can't go on, and what they take; the rest needs a model and Ray."""

import pyarrow as pa
import pytest
import torch

from spark_ray.core.errors import DatasetError, ModelError, SparkRayError
from spark_ray.core.storage import Folder
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.predict import (
    ANSWER_SCHEMA,
    Predictor,
    _checked,
    _one_model,
    _resources,
)

CONFIG = EvaluateConfig.from_values(model="m", dataset="d", batch_size=4, num_beams=3)


def answers(*rows: dict[str, object]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=ANSWER_SCHEMA)


GPUS = {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("actors", "num_gpus", "nodes", "share"),
    [
        (2, 1.0, [GPUS], {"num_gpus": 1.0, "num_cpus": 0}),
        (4, 1.0, [{"GPU": 1.0}, {"GPU": 1.0}], {"num_gpus": 0.5, "num_cpus": 0}),
        (3, 1.0, [{"GPU": 2.0}], {"num_gpus": 0.5, "num_cpus": 0}),
        (10, 0.7, [GPUS], {"num_gpus": 0.5, "num_cpus": 0}),
        (2, 4.0, [{"GPU": 5.0}], {"num_gpus": 2, "num_cpus": 0}),
        (2, 2.0, [{"GPU": 1.0}, {"GPU": 1.0}, {"GPU": 2.0}], {"num_gpus": 1, "num_cpus": 0}),
        (2, 0.0, [GPUS], {"num_cpus": 1.0}),
        (8, 1.0, [{"CPU": 2.0}], {"num_cpus": 0.25}),
        (3, 1.0, [{"CPU": 1.0}, {"CPU": 1.0}], {"num_cpus": 0.5}),
    ],
)
def test_all_actors_fit_at_once(
    actors: int, num_gpus: float, nodes: list[dict[str, float]], share: dict[str, float]
) -> None:
    """Each on one node, and parts of a GPU on one GPU: Ray Data waits for the last one for ever."""
    assert _resources(actors, num_gpus, nodes) == share


def test_what_an_actor_gave_up_for_is_raised_here() -> None:
    for name, kind in (("ModelError", ModelError), ("MissingDependency", SparkRayError)):
        with pytest.raises(kind, match=r"^no weights there$"):
            _checked(answers({"place": -1, "error": name, "message": "no weights there"}))
    batch = answers({"place": 0}, {"place": 1, "error": "DatasetError", "message": "gone"})
    assert _checked(batch)[1] == 1


def test_nodes_with_different_weights_are_refused() -> None:
    one, other = '{"name": "m", "weights_hash": "1"}', '{"name": "m", "weights_hash": "2"}'
    assert _one_model(CONFIG, answers({"model": one}, {"model": one})).weights_hash == "1"
    with pytest.raises(ModelError, match="different weights on different nodes"):
        _one_model(CONFIG, answers({"model": one}, {"model": other}))


class NoMemory:
    """A model whose first batch is too large."""

    def choose_frames(self, available: int) -> list[int]:
        return list(range(available))

    def prepare(self, *_: object) -> None:
        return None

    def write(self, *_: object) -> list[str]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_too_large_a_batch_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"place": 0, "caption": "a dog", "transcript": None, "frame_times": [0.0]}
    predictor = Predictor(Folder("/nowhere"), CONFIG)
    predictor._model = NoMemory()  # type: ignore[assignment]
    monkeypatch.setattr(predictor, "_read", lambda _row: object())
    table = predictor(pa.Table.from_pylist([row]))
    with pytest.raises(ModelError, match=r"^batch_size: 4 clips with num_beams=3 don't fit"):
        _checked(table)


def test_files_that_are_gone_are_said_of_each_clip() -> None:
    row = {
        "place": 7,
        "id": "abc",
        "caption": "a dog",
        "transcript": None,
        "frame_times": [0.0],
        "has_files": True,
        "audio": None,
    }
    predictor = Predictor(Folder("/nowhere"), CONFIG)
    predictor._model = NoMemory()  # type: ignore[assignment]
    (answer,) = predictor(pa.Table.from_pylist([row])).to_pylist()
    assert (answer["place"], answer["error"]) == (7, DatasetError.__name__)
    assert "clip abc" in answer["message"]
    assert answer["caption"] is None

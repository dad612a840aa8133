"""Batches through Ray Data: in order from anywhere, also over the seams of a long run."""

from pathlib import Path

import apotheons
import numpy as np
import pytest
import ray
from films import write_films

from spark_ray.datasets.samples import load_index
from spark_ray.training import data
from spark_ray.training.config import TrainConfig
from spark_ray.training.data import BatchMaker, load_batches
from spark_ray.training.plan import RunPlan


@pytest.fixture
def plan(tmp_path: Path) -> RunPlan:
    write_films(tmp_path / "films")
    index = load_index(str(tmp_path / "films"))
    config = TrainConfig.from_values(
        dataset="x", output_dir="y", epochs=2, batch_size=4, gradient_accumulation=1,
        data_cpus=0.5, curriculum=[{"name": "all", "epochs": 2, "modalities": ["video", "audio"]}],
    )  # fmt: skip
    return RunPlan(config, apotheons.processor(), index.split("train"), None)


def test_a_long_run_is_loaded_a_stretch_at_a_time(
    cluster: str, plan: RunPlan, monkeypatch: pytest.MonkeyPatch
):
    """Ray Data takes every block of a dataset before the first batch: some thousand at most."""
    start, sizes = 1, []
    at_once = (plan.total - start) // 2 + 1
    from_items = ray.data.from_items

    def counted(items: list[int], **options: int) -> ray.data.Dataset:
        sizes.append(len(items))
        return from_items(items, **options)

    monkeypatch.setattr(ray.data, "from_items", counted)
    monkeypatch.setattr(data, "_POSITIONS_AT_ONCE", at_once)
    batches = list(load_batches(ray.put(plan), 0, 1, start))
    assert len(sizes) == 2
    assert max(sizes) == at_once
    assert sum(sizes) == len(batches) == plan.total - start
    maker = BatchMaker(plan, 0, 1)
    for position, batch in enumerate(batches, start):
        expected = maker.make(position)
        assert batch.rows == expected.pop("rows").tolist()
        assert batch.tensors.keys() == expected.keys()
        assert all(np.array_equal(batch.tensors[name], expected[name]) for name in expected)

"""Trials beside each other: none is begun that would not find room for all its workers."""

from typing import Any

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training.cluster import share_resources
from spark_ray.training.config import TrainConfig
from spark_ray.training.search.packing import pack

LAPTOP = [{"CPU": 2.0}]
TWO_NODES = [{"CPU": 8.0, "GPU": 2.0}] * 2


def run(**values: Any) -> TrainConfig:
    return TrainConfig.from_values(dataset="sets/x", output_dir="runs/x", **values)


@pytest.mark.parametrize(
    ("values", "nodes", "most", "trials"),
    [
        ({}, LAPTOP, None, 2),
        ({}, LAPTOP, 1, 1),
        ({"num_workers": 2}, LAPTOP, None, 1),
        ({"cpus_per_worker": 0.3, "data_cpus": 0.2}, LAPTOP, None, 4),
        ({"num_workers": 2}, TWO_NODES, None, 2),
        ({"gpus_per_worker": 0.5}, TWO_NODES, None, 8),
        ({"gpus_per_worker": 0.4}, TWO_NODES, None, 8),  # a fifth of each GPU is too little
        ({"gpus_per_worker": 0.4}, TWO_NODES, 3, 3),
        # Three fifths of a GPU, which three times a fifth is a little more than in floating point.
        ({"num_workers": 3, "gpus_per_worker": 0.2}, [{"CPU": 60.0, "GPU": 3.0}], None, 5),
        ({"gpus_per_worker": 2}, TWO_NODES, None, 2),
        ({"cpus_per_worker": 3, "data_cpus": 1}, [{"CPU": 5.0}, {"CPU": 3.0}], None, 2),
    ],
)
def test_as_many_trials_as_find_room(
    values: dict[str, Any], nodes: list[dict[str, float]], most: int | None, trials: int
):
    packing = pack([run(**values)], nodes, most)
    assert packing.trials == trials
    settled, scaling, _ = share_resources(run(**values), packing.resources)
    worker = scaling.resources_per_worker["CPU"]
    taken = trials * scaling.num_workers * (worker + settled.data_cpus * settled.data_workers)
    assert taken <= sum(node["CPU"] for node in nodes) + 1e-6


def test_the_largest_trial_decides():
    small, large = run(), run(num_workers=4, cpus_per_worker=1, data_cpus=1)
    assert pack([small, large], [{"CPU": 16.0}], None).trials == 2


@pytest.mark.parametrize(
    ("values", "nodes", "sentence"),
    [
        ({"cpus_per_worker": 8}, [{"CPU": 4.0}] * 4, "cpus_per_worker: 8 CPUs are more than any"),
        ({"gpus_per_worker": 4}, TWO_NODES, "gpus_per_worker: 4 GPUs are more than any node"),
        ({"gpus_per_worker": 1}, LAPTOP, "the largest has 0"),
        ({"num_workers": 5, "gpus_per_worker": 1}, TWO_NODES, "num_workers: 5 workers of 1 GPUs"),
        (
            {"num_workers": 2, "cpus_per_worker": 3, "data_cpus": 0.5},
            [{"CPU": 4.0}, {"CPU": 2.0}, {"CPU": 2.0}],
            "finds room for all its workers on the 3 nodes",
        ),
    ],
)
def test_a_trial_that_would_wait_for_ever_is_refused(
    values: dict[str, Any], nodes: list[dict[str, float]], sentence: str
):
    with pytest.raises(ConfigError, match=sentence):
        pack([run(**values)], nodes, None)

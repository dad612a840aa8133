"""Which nodes a run asks for, and how its workers are laid out on those that there are."""

from typing import Any

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training import cluster
from spark_ray.training.cluster import await_nodes, say_what_is_awaited, share_resources
from spark_ray.training.config import TrainConfig

ONE_GPU = {"CPU": 8.0, "GPU": 1.0}


def config(**values: Any) -> TrainConfig:
    return TrainConfig.from_values(dataset="sets/x", output_dir="runs/x", **values)


@pytest.mark.parametrize(
    ("values", "nodes", "worker"),
    [
        ({}, [{"CPU": 8.0}] * 2, 5.0),
        ({"num_workers": 2}, [{"CPU": 8.0}] * 3, 5.0),
        ({"num_workers": 3}, [{"CPU": 8.0}] * 2, 3.0),
        ({}, [ONE_GPU, {"CPU": 64.0}], 5.0),
        ({"num_workers": 2}, [{"CPU": 8.0, "GPU": 2.0}, {"CPU": 64.0}], 2.0),
        ({"gpus_per_worker": 0}, [ONE_GPU, {"CPU": 64.0}], 42.0),
        ({"cpus_per_worker": 8}, [ONE_GPU, {"CPU": 64.0}], 8.0),
    ],
)
def test_a_worker_is_no_larger_than_a_node_that_can_take_it(
    values: dict[str, Any], nodes: list[dict[str, float]], worker: float
):
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    settled, scaling, _ = share_resources(config(**values), total, nodes)
    assert scaling.resources_per_worker["CPU"] == worker
    assert settled.data_cpus is not None
    assert 0 < settled.data_cpus <= max(node["CPU"] for node in nodes)


class Wishes:
    """A cluster without nodes, but for the ones that come when they are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, largest: dict[str, float], most: int):
        self.asked: list[list[dict[str, float]]] = []
        self.nodes: list[dict[str, float]] = []

        def have_room(needs: list[dict[str, float]]) -> bool:
            self.asked.append(needs)
            workers = [need for need in needs if need.get("CPU", 1.0) > 0.01]
            fits = all(largest.get(kind, 0) >= need[kind] for need in needs for kind in need)
            if fits and len(workers) <= most:
                self.nodes = [largest] * len(workers)
                return True
            return False

        monkeypatch.setattr(cluster, "have_room", have_room)
        monkeypatch.setattr(cluster, "living_nodes", lambda: self.nodes)


def test_gpus_are_asked_for_where_nothing_is_said_of_them(monkeypatch: pytest.MonkeyPatch):
    wishes = Wishes(monkeypatch, ONE_GPU, most=4)
    await_nodes(config(num_workers=2))
    assert wishes.asked[0] == [{"CPU": 0.99, "GPU": 1.0}, {"CPU": 0.01}] * 2
    assert len(wishes.nodes) == 2


def test_without_a_gpu_to_come_cpus_are_asked_for(monkeypatch: pytest.MonkeyPatch):
    wishes = Wishes(monkeypatch, {"CPU": 4.0}, most=4)
    await_nodes(config(num_workers=[1, 4], cpus_per_worker=3))
    assert wishes.asked[-1] == [{"CPU": 3.0, "GPU": 0.0}, {"CPU": 0.01}]
    assert wishes.nodes == [{"CPU": 4.0}]


def test_fewer_gpus_than_workers_are_no_reason_to_train_on_cpus(monkeypatch: pytest.MonkeyPatch):
    wishes = Wishes(monkeypatch, ONE_GPU, most=1)
    run = config(num_workers=2)
    await_nodes(run)
    assert wishes.nodes == [ONE_GPU]
    with pytest.raises(ConfigError, match="2 workers of 1 GPUs need 2, but the run has 1"):
        share_resources(run, ONE_GPU, wishes.nodes)


def test_a_study_makes_do_with_room_for_one_trial(monkeypatch: pytest.MonkeyPatch):
    wishes = Wishes(monkeypatch, ONE_GPU, most=2)
    await_nodes(config(gpus_per_worker=1), runs=3)
    assert [len(needs) for needs in wishes.asked] == [6, 2]
    assert wishes.nodes == [ONE_GPU]


def test_what_no_node_has_or_comes_with_is_refused(monkeypatch: pytest.MonkeyPatch):
    Wishes(monkeypatch, ONE_GPU, most=4)
    with pytest.raises(ConfigError, match="gpus_per_worker: 8 GPUs are more than any node has"):
        await_nodes(config(gpus_per_worker=8))


def test_a_run_says_that_it_waits_for_what_a_server_holds(capsys: pytest.CaptureFixture[str]):
    there = {"CPU": 6.0}
    shares, scaling, _ = share_resources(config(num_workers=[2]), there)
    say_what_is_awaited(shares, scaling, there)
    assert capsys.readouterr().err == ""

    say_what_is_awaited(shares, scaling, {"CPU": 5.2})

    assert "waiting      for 0.8 of 6 CPUs, which others hold" in capsys.readouterr().err

"""What a cluster has room for, and what is asked of its autoscaler where it has none."""

import time
from types import SimpleNamespace
from typing import Any

import pytest

from spark_ray.core.errors import SparkRayError
from spark_ray.datasets import capacity
from spark_ray.datasets.capacity import have_gpus, have_room

NODES = [{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}]


class Cluster:
    """These nodes, and an autoscaler that says of each wish whether it is beyond what it starts.

    Where it is not, the nodes never come.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, float]]) -> None:
        self.asked: list[list[dict[str, float]]] = []
        self.removed = 0
        self.beyond: Any = lambda needs: True
        self.autoscales = True
        fakes = {
            "living_nodes": lambda: nodes,
            "is_autoscaler_v2": lambda fetch_from_server: self.autoscales,
            "placement_group": self.ask,
            "remove_placement_group": self.remove,
            "GcsClient": lambda address: None,
            "_status": self.status,
            "ray": SimpleNamespace(
                get_runtime_context=lambda: SimpleNamespace(gcs_address="here"),
            ),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(capacity, name, fake)

    def ask(self, needs: list[dict[str, float]]) -> Any:
        self.asked.append(needs)
        return SimpleNamespace(
            id=SimpleNamespace(hex=lambda: "abc"),
            wait=lambda seconds: time.sleep(0.01),
        )

    def remove(self, group: Any) -> None:
        self.removed += 1

    def status(self, gcs: Any) -> Any:
        beyond = (
            [SimpleNamespace(details="abc:PACK|PENDING")] if self.beyond(self.asked[-1]) else []
        )
        return SimpleNamespace(
            cluster_resource_state=SimpleNamespace(cluster_resource_state_version=7),
            autoscaling_state=SimpleNamespace(
                last_seen_cluster_resource_state_version=7,
                infeasible_gang_resource_requests=beyond,
            ),
        )


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        ([], True),
        ([{"CPU": 8.0}, {"CPU": 4.0, "GPU": 2.0}], True),
        ([{"GPU": 0.5, "CPU": 0.0}] * 4, True),
        ([{"CPU": 9.0}], False),
        ([{"CPU": 5.0, "GPU": 1.0}], False),
        ([{"CPU": 4.0}] * 4, False),
        ([{"GPU": 1.0}] * 3, False),
    ],
)
def test_each_need_is_one_nodes_and_the_sum_is_that_of_all(
    monkeypatch: pytest.MonkeyPatch, needs: list[dict[str, float]], fits: bool
):
    cluster = Cluster(monkeypatch, NODES)
    assert have_room(needs) == fits
    assert len(cluster.asked) == cluster.removed == (not fits)


def test_nobody_is_asked_where_no_autoscaler_is(monkeypatch: pytest.MonkeyPatch):
    cluster = Cluster(monkeypatch, NODES)
    cluster.autoscales = False
    assert not have_room([{"CPU": 9.0}])
    assert not cluster.asked


def test_nodes_that_were_to_come_and_did_not_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    cluster = Cluster(monkeypatch, NODES)
    cluster.beyond = lambda needs: False
    with pytest.raises(SparkRayError, match="no nodes with 2 GPUs and 10 CPUs came within"):
        have_room([{"CPU": 5.0, "GPU": 1.0}] * 2, within_s=0.1)
    assert capsys.readouterr().err == "  waiting      for nodes with 2 GPUs and 10 CPUs\n"
    assert cluster.removed == 1


@pytest.mark.parametrize(
    ("nodes", "actors", "gpus", "asked"),
    [
        (NODES, 4, 1.0, []),
        ([{"CPU": 8.0}], 2, 0.0, []),
        ([{"CPU": 8.0}], 0, 1.0, []),
        ([{"CPU": 8.0}], 3, 2.0, [[{"GPU": 2.0}] * 3, [{"GPU": 1.0}]]),
        ([{"CPU": 8.0}], 1, 0.5, [[{"GPU": 0.5}], [{"GPU": 0.5}]]),
    ],
)
def test_gpus_are_asked_for_where_there_are_none(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    actors: int,
    gpus: float,
    asked: list[list[dict[str, float]]],
):
    cluster = Cluster(monkeypatch, nodes)
    have_gpus(actors, gpus)
    assert cluster.asked == asked

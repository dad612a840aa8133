"""How many trials run at a time: as many as find room for all their workers, and no more.

A trial that was begun without room for its workers would wait for those of another one, which may
wait for the same.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from spark_ray.core.errors import ConfigError
from spark_ray.training.cluster import check_worker, share_resources
from spark_ray.training.config import TrainConfig

_EPSILON = 1e-6


@dataclass(frozen=True)
class Packing:
    """So many trials at a time, each with its share of the cluster."""

    trials: int
    resources: dict[str, float]


class _Node:
    """What is left of a node. GPUs are kept apart: a worker's half is never of two."""

    def __init__(self, resources: Mapping[str, float]) -> None:
        self.cpus = resources.get("CPU", 0.0)
        self.gpus = [1.0] * int(resources.get("GPU", 0.0))

    def take(self, cpus: float, gpus: float) -> bool:
        """Whether a worker found room."""
        if self.cpus < cpus - _EPSILON:
            return False
        if gpus >= 1:
            whole = [index for index, free in enumerate(self.gpus) if free == 1.0]
            if len(whole) < gpus:
                return False
            for index in whole[: int(gpus)]:
                self.gpus[index] = 0.0
        elif gpus:
            # The fullest that has room, as Ray does: it keeps the others whole.
            with_room = [index for index, free in enumerate(self.gpus) if free > gpus - _EPSILON]
            if not with_room:
                return False
            self.gpus[min(with_room, key=lambda index: self.gpus[index])] -= gpus
        self.cpus -= cpus
        return True


def pack(
    configs: Sequence[TrainConfig], nodes: Sequence[Mapping[str, float]], most: int | None
) -> Packing:
    """The trials that run beside each other, whatever points of the space they are.

    Args:
        configs: runs that trials may be.
        nodes: the resources of each node.
        most: what the user allows.

    Raises:
        ConfigError: a trial is larger than the cluster, or one of its workers than every node.
    """
    configs = unlike(configs)
    for config in configs:
        check_worker(config, nodes)
    total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU")}
    highest = max(1, min(_upper_bound(config, total) for config in configs))
    for trials in range(min(highest, most or highest), 0, -1):
        share = {kind: amount / trials for kind, amount in total.items()}
        if all(_fits(config, share, nodes, trials) for config in configs):
            return Packing(trials, share)
    for config in configs:
        share_resources(config, total, nodes)  # says what is too much, where that is the sum
    raise ConfigError(
        f"num_workers: no trial finds room for all its workers on the {len(nodes)} nodes; lower "
        "num_workers, cpus_per_worker or gpus_per_worker"
    )


def unlike(configs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """One for each room that trials need; corners of a space seldom differ in it."""
    return list({_need(config): config for config in configs}.values())


def _need(config: TrainConfig) -> tuple[object, ...]:
    """All that decides which room a trial needs."""
    return (
        *config.num_workers,
        config.cpus_per_worker,
        config.gpus_per_worker,
        config.data_workers,
        config.data_cpus,
        config.mixed_precision,
    )


def _upper_bound(config: TrainConfig, total: Mapping[str, float]) -> int:
    """Trials that leave each worker a CPU with its data actors, and the GPUs that it asks for."""
    workers = config.num_workers[-1]
    cpus = max(1.0, config.cpus_per_worker or 0.0)
    if config.cpus_per_worker is not None:
        data = config.data_cpus or config.cpus_per_worker / 2 / config.data_workers
        cpus = config.cpus_per_worker + data * config.data_workers
    bound = int(total["CPU"] / (workers * cpus) + _EPSILON)
    gpus = config.gpus_per_worker
    if gpus is None:
        gpus = 1.0 if total["GPU"] else 0.0
    return min(bound, int(total["GPU"] / (workers * gpus) + _EPSILON)) if gpus else bound


def _fits(
    config: TrainConfig,
    share: Mapping[str, float],
    nodes: Sequence[Mapping[str, float]],
    trials: int,
) -> bool:
    """Whether all workers and data actors of so many such trials find a node."""
    try:
        settled, scaling, _ = share_resources(config, share, nodes)
    except ConfigError:
        return False
    resources = cast(dict[str, float], scaling.resources_per_worker)
    left = [_Node(node) for node in nodes]
    workers = trials * config.num_workers[-1]
    parts = [(resources["CPU"], resources.get("GPU", 0.0))] * workers
    parts += [(settled.data_cpus or 0.0, 0.0)] * (workers * config.data_workers)
    return all(any(node.take(*part) for node in left) for part in parts)

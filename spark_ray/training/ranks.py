"""What the ranks of a run settle among themselves; all of them must call each of these."""

from collections.abc import Callable
from typing import TypeVar, cast

import ray
import torch.distributed as dist

from spark_ray.apotheon.losses import world_size

_T = TypeVar("_T")


def gather(mine: _T) -> list[_T]:
    """What each rank has."""
    if world_size() == 1:
        return [mine]
    everyone = [mine] * world_size()
    dist.all_gather_object(everyone, mine)
    return everyone


def once_on_each_node(work: Callable[[], _T]) -> _T:
    """What the first rank of the node makes of it; the others wait."""
    nodes = gather(ray.get_runtime_context().get_node_id())
    rank = dist.get_rank() if len(nodes) > 1 else 0
    first = nodes.index(nodes[rank])
    return cast(_T, gather(work() if rank == first else None)[first])

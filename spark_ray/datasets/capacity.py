"""Room on a cluster that scales itself: for what no node has room for, nodes are asked for.

Ray knows the nodes there are, but not what its autoscaler may start: nothing in Ray says that. So
it is asked: a placement group is demand like any other, and the autoscaler (v2, that of KubeRay and
of `ray up`) tells of each whether it is beyond all that it may start.
"""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

import ray
from ray._raylet import GcsClient  # type: ignore[attr-defined]
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.core.generated import autoscaler_pb2
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from spark_ray.core.errors import SparkRayError

Resources = Mapping[str, float]

NODES_WITHIN_S = 1800.0
"""A node with GPUs has to be found by the cloud, started, and given an image of many gigabytes."""

_LOOK_EVERY_S = 1.0
_EPSILON = 1e-6


def living_nodes() -> list[Resources]:
    """What each node has, whoever holds it."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def have_room(needs: Sequence[Resources], within_s: float = NODES_WITHIN_S) -> bool:
    """Whether the cluster is large enough; waits for nodes where its autoscaler starts some.

    Args:
        needs: what has to be there at once, each on one node; what others hold counts as well.
        within_s: how long to wait for nodes.

    Raises:
        SparkRayError: nodes were to come, and did not.
    """
    needs = [{kind: amount for kind, amount in need.items() if amount} for need in needs]
    if _are_large_enough(living_nodes(), needs):
        return True
    if not is_autoscaler_v2(fetch_from_server=True):
        return False
    group = placement_group([dict(need) for need in needs])
    try:
        return _wait(group, needs, within_s)
    finally:
        remove_placement_group(group)


def have_gpus(actors: int, gpus: float) -> None:
    """Wait for GPUs for so many actors, or for one that they share, where the cluster has none.

    Raises:
        SparkRayError: nodes were to come, and did not.
    """
    if gpus and not any(node.get("GPU") for node in living_nodes()):
        have_room([{"GPU": gpus}] * actors) or have_room([{"GPU": min(1.0, gpus)}])


def _are_large_enough(nodes: Sequence[Resources], needs: Sequence[Resources]) -> bool:
    """Whether each need is less than a node, and the sum of all no more than that of the nodes."""
    parts = all(any(_is_within(need, node) for node in nodes) for need in needs)
    return parts and _is_within(_total(needs), _total(nodes))


def _total(needs: Sequence[Resources]) -> Resources:
    kinds = {kind for need in needs for kind in need}
    return {kind: math.fsum(need.get(kind, 0.0) for need in needs) for kind in kinds}


def _is_within(need: Resources, there: Resources) -> bool:
    return all(there.get(kind, 0.0) >= amount - _EPSILON for kind, amount in need.items())


def _wait(group: PlacementGroup, needs: Sequence[Resources], within_s: float) -> bool:
    """Whether nodes come for a placement group; False as soon as the autoscaler says that none do.

    Raises:
        SparkRayError: nodes were to come, and did not.
    """
    gcs = GcsClient(ray.get_runtime_context().gcs_address)
    asked = _status(gcs).cluster_resource_state.cluster_resource_state_version
    end, are_coming = time.monotonic() + within_s, False
    while not group.wait(_LOOK_EVERY_S):
        answer = _status(gcs).autoscaling_state
        if answer.last_seen_cluster_resource_state_version >= asked:
            beyond = (gang.details for gang in answer.infeasible_gang_resource_requests)
            if any(details.startswith(group.id.hex()) for details in beyond):
                return False
            if not are_coming:
                print(f"  waiting      for nodes with {_shown(needs)}", file=sys.stderr)
                are_coming = True
        if time.monotonic() > end:
            raise SparkRayError(
                f"no nodes with {_shown(needs)} came within {within_s / 60:.2g} minutes; look at "
                "'ray status', and run the same command again to go on waiting"
            )
    return True


def _status(gcs: GcsClient) -> Any:
    """Ray's `GetClusterStatusReply`: what the cluster lacks, and what the autoscaler says of it."""
    status = autoscaler_pb2.GetClusterStatusReply()  # type: ignore[attr-defined]
    status.ParseFromString(gcs.get_cluster_status())
    return status


def _shown(needs: Sequence[Resources]) -> str:
    """As in: 2 GPUs and 8 CPUs."""
    return " and ".join(
        f"{amount:.3g} {kind}{'' if amount == 1 else 's'}"
        for kind, amount in sorted(_total(needs).items(), reverse=True)
    )

"""CPUs and GPUs that a dead trial still holds."""

from typing import Any

import ray
from ray._private import state
from ray.core.generated import gcs_pb2
from ray.util.placement_group import PlacementGroup, remove_placement_group


def free_leaked_placement_groups() -> int:
    """Free the placement groups of this job whose creator has died, and say how many there were.

    When a trial's actor is killed, Ray Train's controller goes with it and leaves the workers'
    placement group behind until the whole job ends. Ray has a cleaner for it, which needs the
    dashboard; its public table of placement groups does not tell who made them.
    """
    table: Any = getattr(gcs_pb2, "PlacementGroupTableData")  # noqa: B009 - it is made at run time
    job_id = ray.get_runtime_context().get_job_id()
    every = state.state._connect_and_get_accessor().get_placement_group_table()
    leaked = [
        group
        for group in map(table.FromString, every)
        if group.creator_actor_dead
        and group.creator_job_id.hex() == job_id
        and group.state != table.REMOVED
    ]
    for group in leaked:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
    return len(leaked)

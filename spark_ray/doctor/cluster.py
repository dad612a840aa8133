"""The cluster: whether it answers, takes our token, runs our Ray, and what it has."""

from collections.abc import Iterator

import ray
from ray.util.state import list_nodes
from ray.util.state.exception import RayStateApiException

from spark_ray.cluster.jobs_api import cluster_errors, connect, only_address, ray_version
from spark_ray.core.errors import ClusterError, ConfigError
from spark_ray.core.wording import counted
from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding, wrong_if

_LIMIT = 1000


def check_cluster(config: DoctorConfig) -> Iterator[Finding]:
    try:
        address = config.resolved()
    except ConfigError:
        text = "no cluster is named (--address, RAY_ADDRESS); jobs start one of their own"
        yield Finding("cluster", wrong_if("cluster" in config.needs), text)
        return
    try:
        client = connect(config)
        yield check_version(address, ray_version(client))
        with cluster_errors(address), only_address(client.get_address()):
            nodes = list_nodes(address=client.get_address(), limit=_LIMIT)
    except ClusterError as error:
        yield Finding("cluster", "wrong", str(error))
        return
    except RayStateApiException as error:
        yield Finding("cluster", "wrong", f"{address}: its nodes can't be listed ({error})")
        return
    alive = [node for node in nodes if node.state == "ALIVE"]
    total = {
        kind: sum(node.resources_total.get(kind, 0) for node in alive) for kind in ("CPU", "GPU")
    }
    text = f"{address}: {counted(len(alive), 'node')}, {total['CPU']:g} CPUs, {total['GPU']:g} GPUs"
    if "gpu" in config.needs and not total["GPU"]:
        yield Finding(
            "cluster",
            "wrong",
            f"{text}; a job that needs a GPU is refused, or waits for the autoscaler to bring one",
        )
    else:
        yield Finding("cluster", "ok", text)


def check_version(address: str, theirs: str) -> Finding:
    """Ray's parts talk to their own version only; jobs would fail in strange ways."""
    if theirs != ray.__version__:
        return Finding(
            "cluster",
            "wrong",
            f"{address} runs Ray {theirs}, and this machine {ray.__version__}; "
            f"pip install ray=={theirs} here, or bring the cluster up to date",
        )
    return Finding("cluster", "ok", f"{address} answers, and runs Ray {theirs} as this machine")

"""The cluster as operators see it: nodes, deployments, and how many requests wait where."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import Any

import httpx2 as httpx
import ray
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from spark_ray.serving.schemas import DeploymentInfo, NodeInfo
from spark_ray.serving.shown import without_trace

_QUEUED = "ray_serve_deployment_queued_queries"
_ONGOING = "ray_serve_num_ongoing_requests_at_replicas"
_HEAD = "node:__internal_head__"
_HIDDEN = "node:"  # resources that only name a node

Depths = dict[str, Counter[tuple[str, str]]]


def living_nodes() -> list[dict[str, Any]]:
    return [node for node in ray.nodes() if node["Alive"]]


def describe_node(node: dict[str, Any]) -> NodeInfo:
    return NodeInfo(
        id=node["NodeID"],
        address=node["NodeManagerAddress"],
        is_head=_HEAD in node["Resources"],
        total=shown_resources(node["Resources"]),
    )


def shown_resources(resources: dict[str, float]) -> dict[str, float]:
    return {
        name: round(amount, 4)
        for name, amount in sorted(resources.items())
        if not name.startswith(_HIDDEN)
    }


async def metrics_pages(client: httpx.AsyncClient) -> list[str]:
    """What Ray exports for Prometheus, from each node that answers."""
    nodes = await asyncio.to_thread(living_nodes)
    pages = await asyncio.gather(
        *(
            client.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
            for node in nodes
        ),
        return_exceptions=True,
    )
    return [page.text for page in pages if isinstance(page, httpx.Response)]


def describe_deployments(pages: Iterable[str]) -> list[DeploymentInfo]:
    """Every deployment of Serve, with the depths that the exported metrics tell."""
    depths = queue_depths(pages)
    found = []
    for application, app in serve.status().applications.items():
        for name, deployment in app.deployments.items():
            key = (application, name)
            found.append(
                DeploymentInfo(
                    application=application,
                    name=name,
                    status=str(getattr(deployment.status, "value", deployment.status)),
                    replicas={str(state): n for state, n in deployment.replica_states.items()},
                    queued=depths[_QUEUED][key],
                    ongoing=depths[_ONGOING][key],
                    message=without_trace(deployment.message),
                )
            )
    return sorted(found, key=lambda deployment: (deployment.application, deployment.name))


def queue_depths(pages: Iterable[str]) -> Depths:
    """Requests that wait for a replica, and that replicas are at, summed over those who sent them.

    The metrics' names are of Ray Serve.
    """
    depths: Depths = {_QUEUED: Counter(), _ONGOING: Counter()}
    for page in pages:
        for family in text_string_to_metric_families(_only(page)):
            for sample in family.samples:
                key = (sample.labels.get("application", ""), sample.labels.get("deployment", ""))
                depths[sample.name][key] += round(sample.value)
    return depths


def _only(page: str) -> str:
    """A page's lines of these two metrics: the parser is slow, and pages have thousands."""
    lines = (line for line in page.splitlines() if line.startswith((_QUEUED, _ONGOING)))
    return "\n".join(lines) + "\n"

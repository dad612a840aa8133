"""The cluster as operators see it: nodes, deployments, and how many requests wait where."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
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


@asynccontextmanager
async def metrics_pages(client: httpx.AsyncClient) -> AsyncIterator[list[httpx.Response]]:
    """What Ray exports for Prometheus, from each node that answers, to be read as it comes.

    No page is held whole: Ray keeps the series of every worker that ever ran, so they grow.
    """
    nodes = await asyncio.to_thread(living_nodes)
    async with AsyncExitStack() as opened:
        answers = await asyncio.gather(
            *(
                opened.enter_async_context(
                    client.stream(
                        "GET", f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}"
                    )
                )
                for node in nodes
            ),
            return_exceptions=True,
        )
        yield [answer for answer in answers if isinstance(answer, httpx.Response)]


async def metrics_pieces(client: httpx.AsyncClient) -> AsyncIterator[bytes]:
    """These pages after one another."""
    async with metrics_pages(client) as pages:
        for page in pages:
            async for piece in page.aiter_bytes():
                yield piece
            yield b"\n"


async def queue_lines(client: httpx.AsyncClient) -> list[str]:
    """What `queue_depths` reads of them: its parser is slow, and pages have thousands of lines."""
    async with metrics_pages(client) as pages:
        return [
            line
            for page in pages
            async for line in page.aiter_lines()
            if line.startswith((_QUEUED, _ONGOING))
        ]


def describe_deployments(depths: Depths) -> list[DeploymentInfo]:
    """Every deployment of Serve, with the depths that the exported metrics tell."""
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


def queue_depths(lines: Iterable[str]) -> Depths:
    """Requests that wait for a replica, and that replicas are at, summed over those who sent them.

    The metrics' names are of Ray Serve.
    """
    depths: Depths = {_QUEUED: Counter(), _ONGOING: Counter()}
    for family in text_string_to_metric_families("".join(f"{line}\n" for line in lines)):
        for sample in family.samples:
            key = (sample.labels.get("application", ""), sample.labels.get("deployment", ""))
            depths[sample.name][key] += round(sample.value)
    return depths

"""Health, who asks, the cluster, and what operators scrape."""

import asyncio
from contextvars import Context
from typing import Annotated, Any

import ray
from fastapi import APIRouter, Query, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse

from spark_ray.core.errors import SparkRayError
from spark_ray.core.logging import get_logger
from spark_ray.serving.access import Administers, HasKey, UseServices
from spark_ray.serving.cluster import (
    describe_deployments,
    describe_node,
    living_nodes,
    metrics_pieces,
    queue_depths,
    queue_lines,
    shown_resources,
)
from spark_ray.serving.errors import as_api_error
from spark_ray.serving.schemas import Health, KeyInfo, OwnedJob, SystemInfo
from spark_ray.serving.services import NOT_STARTED, Services

log = get_logger(__name__)

router = APIRouter(tags=["system"])

_READY_TIMEOUT_S = 5.0
_OPEN: dict[str, Any] = {"security": []}


@router.get("/healthz", openapi_extra=_OPEN)
async def healthz() -> Health:
    """Whether this replica runs."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health}}, openapi_extra=_OPEN)
async def readyz(services: UseServices) -> Response:
    """Whether every model answers."""
    if services.looking is None or services.looking.done():
        # Not in the context of the request that happens to be first, with which Serve would end it.
        services.looking = asyncio.create_task(_look(services), context=Context())
    health = await asyncio.shield(services.looking)
    return JSONResponse(health.model_dump(), 200 if health.status == "ok" else 503)


async def _look(services: Services) -> Health:
    """Ask every model."""
    names = services.catalog.names()
    problems = await asyncio.gather(*(_problem(services, name) for name in names))
    found = {name: code for name, code in zip(names, problems, strict=True) if code is not None}
    if not found:
        return Health(status="ok")
    failed = NOT_STARTED in found.values()
    return Health(status="failed" if failed else "starting", waiting_for=list(found))


async def _problem(services: Services, name: str) -> str | None:
    """The code of the error that a model answers with, if it does."""
    settings = services.catalog.settings(name)
    try:
        target = await services.catalog.find(name, settings.abilities[0])
        await services.call(target.model.facts.remote(), f"model {name!r}", _READY_TIMEOUT_S)
    except SparkRayError as error:
        log.info("not ready", model=name, error=str(error))
        return as_api_error(error).code
    return None


@router.get("/v1/me")
async def me(caller: HasKey) -> KeyInfo:
    """What the key of the request may do."""
    return KeyInfo(
        id=caller.id,
        name=caller.name,
        scopes=sorted(caller.scopes),
        requests_per_minute=caller.requests_per_minute,
        max_concurrent=caller.max_concurrent,
    )


@router.get("/v1/system")
async def system(
    caller: Administers, services: UseServices, jobs: Annotated[int, Query(ge=0, le=200)] = 20
) -> SystemInfo:
    """The cluster's nodes, deployments and queues, and the newest jobs of all keys."""
    depths = queue_depths(await queue_lines(services.nodes))
    nodes, available, deployments, newest = await asyncio.gather(
        asyncio.to_thread(living_nodes),
        asyncio.to_thread(ray.available_resources),
        asyncio.to_thread(describe_deployments, depths),
        asyncio.to_thread(services.jobs.newest, jobs),
    )
    infos = [await asyncio.to_thread(services.jobs.info, job) for job in newest]
    return SystemInfo(
        ray_version=ray.__version__,
        nodes=[describe_node(node) for node in nodes],
        available=shown_resources(available),
        deployments=deployments,
        jobs=[
            OwnedJob(**info.model_dump(), owner=job.owner)
            for info, job in zip(infos, newest, strict=True)
        ],
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(caller: Administers, services: UseServices) -> Response:
    """Prometheus metrics of all nodes, as Ray exports them on each."""
    return StreamingResponse(metrics_pieces(services.nodes), media_type="text/plain")

"""Health, models, and what operators scrape."""

import asyncio
from typing import Annotated

import httpx2 as httpx
import ray
from fastapi import APIRouter, Path, Response
from fastapi.responses import JSONResponse, PlainTextResponse

from spark_ray.serving.access import Administers, Infers, UseServices
from spark_ray.serving.errors import ApiError, not_found
from spark_ray.serving.schemas import Health, ModelCard, ModelList
from spark_ray.serving.services import Services
from spark_ray.serving.settings import MODEL_NAME

router = APIRouter(tags=["system"])

_READY_TIMEOUT_S = 5.0


@router.get("/healthz")
async def healthz() -> Health:
    """Whether this replica runs."""
    return Health(status="ok")


@router.get("/readyz", responses={503: {"model": Health}})
async def readyz(services: UseServices) -> Response:
    """Whether every model answers."""
    names = services.catalog.names()
    answers = await asyncio.gather(*(_is_ready(services, name) for name in names))
    missing = [name for name, ready in zip(names, answers, strict=True) if not ready]
    health = Health(status="starting" if missing else "ok", waiting_for=missing)
    return JSONResponse(health.model_dump(), 503 if missing else 200)


async def _is_ready(services: Services, name: str) -> bool:
    settings = services.catalog.settings(name)
    target = await services.catalog.find(name, settings.abilities[0])
    try:
        async with asyncio.timeout(_READY_TIMEOUT_S):
            await target.model.facts.remote()
    except Exception as error:
        if isinstance(services.failure(error, name), ApiError):
            return False
        raise
    return True


@router.get("/v1/models")
async def models(caller: Infers, services: UseServices) -> ModelList:
    """The models that requests may name."""
    return ModelList(data=[_card(services, name) for name in services.catalog.names()])


@router.get("/v1/models/{name}")
async def model(
    name: Annotated[str, Path(pattern=f"^{MODEL_NAME}$")], caller: Infers, services: UseServices
) -> ModelCard:
    """One of them."""
    if name not in services.catalog.names():
        raise not_found("model", name)
    return _card(services, name)


def _card(services: Services, name: str) -> ModelCard:
    settings = services.catalog.settings(name)
    return ModelCard(
        id=name,
        backend=settings.backend,
        abilities=list(settings.abilities),
        reference=settings.reference,
    )


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(caller: Administers) -> str:
    """Prometheus metrics of all nodes, as Ray exports them on each."""
    nodes = [node for node in await asyncio.to_thread(ray.nodes) if node["Alive"]]
    async with httpx.AsyncClient(timeout=_READY_TIMEOUT_S) as client:
        pages = await asyncio.gather(
            *(
                client.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}")
                for node in nodes
            ),
            return_exceptions=True,
        )
    return "\n".join(page.text for page in pages if isinstance(page, httpx.Response))

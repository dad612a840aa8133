"""`/v1/models`: the models that requests may name, their versions, metrics and cards.

The list and its entries have the shape of OpenAI's, with more in them.
"""

from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import PlainTextResponse

from spark_ray.models.registered import SCHEME
from spark_ray.models.registered_versions import ModelVersion, model_card, model_versions
from spark_ray.serving.access import Reads, UseServices
from spark_ray.serving.catalog import base_name
from spark_ray.serving.errors import not_found
from spark_ray.serving.schemas import ModelCard, ModelDetails, ModelList, ModelVersionInfo
from spark_ray.serving.services import Services
from spark_ray.serving.settings import APOTHEON
from spark_ray.serving.shown import without_paths

router = APIRouter(prefix="/v1/models", tags=["models"])

_MOST_VERSIONS = 50

Name = Annotated[
    str, Path(min_length=1, max_length=140, description="an alias behind it makes no difference")
]


@router.get("")
async def show_all(caller: Reads, services: UseServices) -> ModelList:
    """The models that requests may name."""
    return ModelList(data=[_card(services, name) for name in services.catalog.names()])


@router.get("/{name}")
async def show(name: Name, caller: Reads, services: UseServices) -> ModelDetails:
    """One of them, with its versions, from the newest to the oldest of the last fifty."""
    known = await _known(services, name)
    card = _card(services, known).model_copy(update={"id": name})
    reference = _apotheon_reference(services, known)
    versions: list[ModelVersion] = []
    if reference is not None:
        versions = await services.outside(model_versions, reference, _MOST_VERSIONS)
    return ModelDetails(**card.model_dump(), versions=[_info(version) for version in versions])


@router.get("/{name}/card", response_class=PlainTextResponse)
async def card(
    name: Name,
    caller: Reads,
    services: UseServices,
    version: Annotated[str | None, Query(pattern=r"^\d{1,9}$")] = None,
) -> str:
    """What a version can do, what it learned from and how it was measured, as Markdown."""
    reference = _apotheon_reference(services, await _known(services, name))
    text = None
    if reference is not None and (version is None) != reference.startswith(SCHEME):
        text = await services.outside(model_card, reference, version)
    if text is None:
        raise not_found("card", name if version is None else f"{name}/{version}")
    return without_paths(text)


async def _known(services: Services, name: str) -> str:
    """The name without an alias, with which requests may name the model, too."""
    base = base_name(name)
    if base not in services.catalog.names():
        raise not_found("model", name)
    if base != name:
        await services.catalog.find(name, services.catalog.abilities(name)[0])
    return base


def _apotheon_reference(services: Services, name: str) -> str | None:
    """Where our own model lies; other backends' have no record of how they came about."""
    settings = services.catalog.settings(name)
    return settings.reference if settings.backend == APOTHEON else None


def _card(services: Services, name: str) -> ModelCard:
    settings = services.catalog.settings(name)
    return ModelCard(id=name, backend=settings.backend, abilities=list(settings.abilities))


def _info(version: ModelVersion) -> ModelVersionInfo:
    record = version.record
    described = {
        "version": version.version,
        "aliases": list(version.aliases),
        "created": version.created_s,
    }
    if record is None:
        return ModelVersionInfo.model_validate(described)
    held_out = record.held_out
    return ModelVersionInfo.model_validate(
        {
            **described,
            "trained": record.date,
            "dataset": record.dataset.name,
            "dataset_version": record.dataset.version,
            "clips": record.dataset.clips,
            "steps": record.steps,
            "world_size": record.world_size,
            "code_version": record.code_version,
            "license": record.license,
            "training_metrics": record.training_metrics,
            "held_out_split": held_out.split if held_out else None,
            "metrics": held_out.metrics if held_out else {},
        }
    )

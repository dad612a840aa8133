"""`/v1/datasets`: published versions, their funnels and clips, to look through."""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Response

from spark_ray.datasets.browsing import ClipQuery
from spark_ray.datasets.samples import Split
from spark_ray.media.sniff import media_type
from spark_ray.serving.access import Reads, UseServices
from spark_ray.serving.dataset_names import DATASET_NAME, without_location
from spark_ray.serving.dataset_schemas import (
    ClipDetails,
    ClipPage,
    DatasetList,
    DatasetSummary,
    VersionComparison,
    VersionDetails,
)
from spark_ray.serving.errors import ApiError
from spark_ray.serving.messages import DatasetPlace
from spark_ray.serving.services import Services

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

MOST_THUMBNAILS = 8
_IMMUTABLE = {"Cache-Control": "private, max-age=86400, immutable"}

Name = Annotated[str, Path(pattern=f"^{DATASET_NAME}$")]
Version = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
ClipId = Annotated[str, Path(min_length=1, max_length=64)]
Text = Annotated[str | None, Query(min_length=1, max_length=200)]
Seconds = Annotated[float | None, Query(ge=0, le=1e6)]
Thumbnails = Annotated[
    int, Query(ge=0, le=MOST_THUMBNAILS, description="small pictures of each clip")
]


@router.get("")
async def show_all(caller: Reads, services: UseServices) -> DatasetList:
    """The server's datasets, and those that this key's jobs built."""
    places = await services.outside(services.datasets.all, caller)
    return DatasetList(datasets=await _summaries(services, places))


async def dataset_place(name: Name, caller: Reads, services: UseServices) -> DatasetPlace:
    return await services.outside(services.datasets.find, name, caller)


Place = Annotated[DatasetPlace, Depends(dataset_place)]


@router.get("/{name}")
async def show(place: Place, services: UseServices) -> DatasetSummary:
    """A dataset with its versions."""
    (summary,) = await _summaries(services, [place])
    return summary


async def _summaries(services: Services, places: list[DatasetPlace]) -> list[DatasetSummary]:
    response = services.handles.search.summaries.remote(places)
    summaries: list[DatasetSummary] = await services.call(response, "the datasets")
    return summaries


@router.get("/{name}/compare")
async def compare(
    place: Place,
    services: UseServices,
    before: Annotated[str, Query(min_length=1, max_length=64)],
    after: Annotated[str, Query(min_length=1, max_length=64)],
) -> VersionComparison:
    """What became of the clips of one version in another."""
    compared: VersionComparison = await _ask(services, "compare", place, before, after)
    return compared


@router.get("/{name}/{version}")
async def show_version(place: Place, version: Version, services: UseServices) -> VersionDetails:
    """A version: its funnel, rejects, contents and settings."""
    details: VersionDetails = await _ask(services, "version", place, version)
    return details


@router.get("/{name}/{version}/clips")
async def clips(
    place: Place,
    version: Version,
    services: UseServices,
    q: Text = None,
    clip_id: Annotated[list[str] | None, Query(max_length=100)] = None,
    split: Split | None = None,
    label: Text = None,
    captioned: bool | None = None,
    transcribed: bool | None = None,
    min_duration_s: Seconds = None,
    max_duration_s: Seconds = None,
    offset: Annotated[int, Query(ge=0, le=10**9)] = 0,
    limit: Annotated[int, Query(ge=1, le=100)] = 24,
    thumbnails: Thumbnails = 0,
) -> ClipPage:
    """Clips that fit every filter that is given; all words of `q` must be found."""
    query = ClipQuery(
        q, tuple(clip_id or ()), split, label, captioned, transcribed, min_duration_s,
        max_duration_s,
    )  # fmt: skip
    page: ClipPage = await _ask(
        services, "clips", place, version, query, (offset, limit), thumbnails
    )
    return page


@router.get("/{name}/{version}/clips/{clip_id}")
async def clip(
    place: Place,
    version: Version,
    clip_id: ClipId,
    services: UseServices,
    thumbnails: Thumbnails = 0,
) -> ClipDetails:
    """A clip with its whole record."""
    details: ClipDetails = await _ask(services, "clip", place, version, clip_id, thumbnails)
    return details


@router.get(
    "/{name}/{version}/clips/{clip_id}/frames/{number}",
    response_class=Response,
    responses={200: {"content": {"image/jpeg": {}}}},
)
async def frame(
    place: Place,
    version: Version,
    clip_id: ClipId,
    number: Annotated[int, Path(ge=1, le=10**6)],
    services: UseServices,
) -> Response:
    """A stored frame, counted from 1."""
    data: bytes = await _ask(services, "frame", place, version, clip_id, number)
    return Response(data, media_type="image/jpeg", headers=_IMMUTABLE)


@router.get(
    "/{name}/{version}/clips/{clip_id}/audio",
    response_class=Response,
    responses={200: {"content": {"audio/flac": {}, "audio/wav": {}}}},
)
async def audio(place: Place, version: Version, clip_id: ClipId, services: UseServices) -> Response:
    """A clip's sound."""
    data: bytes = await _ask(services, "sound", place, version, clip_id)
    _, kind = media_type(data) or ("audio", "application/octet-stream")
    return Response(data, media_type=kind, headers=_IMMUTABLE)


async def _ask(services: Services, method: str, place: DatasetPlace, *arguments: Any) -> Any:
    response = getattr(services.handles.search, method).remote(place, *arguments)
    try:
        return await services.call(response, "the datasets")
    except ApiError as error:
        raise ApiError(
            error.status, error.code, without_location(place, str(error)),
            retry_after_s=error.retry_after_s,
        ) from error  # fmt: skip

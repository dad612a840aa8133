"""`/v1/captions`, `/v1/transcriptions` and `/v1/search`."""

import time

from fastapi import APIRouter, Request, Response

from spark_ray.core.anatomy import Task
from spark_ray.core.schema import Clip
from spark_ray.monitoring.metrics import PHASE_SECONDS
from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.catalog import Target
from spark_ray.serving.database import Asset
from spark_ray.serving.errors import ApiError
from spark_ray.serving.messages import Decoded, Embedded, ServedModel, Timing, Written
from spark_ray.serving.routes.media import media_body, media_request
from spark_ray.serving.schemas import (
    DEFAULT_TOKENS,
    CaptionAnswer,
    MediaRequest,
    SearchAnswer,
    SearchRequest,
    TranscriptionAnswer,
)
from spark_ray.serving.services import Services, together

router = APIRouter(prefix="/v1", tags=["inference"])

_HASH_CHARS = 12  # enough to know weights by, where they have no version


async def write(
    services: Services, decoded: Decoded, task: Task, target: Target, max_new_tokens: int | None
) -> Written:
    """A model's text about a clip.

    Raises:
        ApiError: too many tokens are asked for, or the call fails.
    """
    tokens = token_limit(services, max_new_tokens)
    written: Written = await services.ask(
        target.model.write.remote(decoded, task, tokens), target, decoded.seconds
    )
    return written


def token_limit(services: Services, wanted: int | None, name: str = "max_new_tokens") -> int:
    most = services.settings.limits.max_new_tokens
    if wanted is not None and wanted > most:
        raise ApiError(422, "invalid_request", f"{name}: at most {most}", param=name)
    return wanted or min(DEFAULT_TOKENS, most)


@router.post("/captions", openapi_extra=media_body(MediaRequest))
async def caption(
    request: Request, response: Response, caller: Infers, services: UseServices
) -> CaptionAnswer:
    """Say what is seen in a video or a picture."""
    async with media_request(request, services, caller, MediaRequest) as (asset, wanted):
        target = await services.catalog.find(wanted.model, "caption")
        decoded = await services.decode(asset, target)
        if not decoded.clip.frames:
            raise ApiError(422, "unusable_media", "the media have no pictures to describe")
        written = await write(services, decoded, "caption", target, wanted.max_new_tokens)
    say(response, written)
    return CaptionAnswer(
        **_answer(request, asset, written),
        caption=written.text,
        all_captions=written.all_captions,
        finish=written.finish,
    )


@router.post("/transcriptions", openapi_extra=media_body(MediaRequest))
async def transcribe(
    request: Request, response: Response, caller: Infers, services: UseServices
) -> TranscriptionAnswer:
    """Write down what is said in a video or a recording."""
    async with media_request(request, services, caller, MediaRequest) as (asset, wanted):
        target = await services.catalog.find(wanted.model, "transcribe")
        decoded = await services.decode(asset, target)
        if decoded.clip.audio is None:
            raise ApiError(422, "unusable_media", "the media have no sound to write down")
        written = await write(services, decoded, "transcript", target, wanted.max_new_tokens)
    say(response, written)
    return TranscriptionAnswer(
        **_answer(request, asset, written),
        text=written.text,
        language=written.language,
        segments=written.segments,
        finish=written.finish,
    )


@router.post("/search")
async def search(
    request: Request,
    response: Response,
    wanted: SearchRequest,
    caller: Infers,
    services: UseServices,
) -> SearchAnswer:
    """Find clips of a published dataset that fit a text, a picture or another clip."""
    place = services.datasets.searchable(wanted.dataset)
    if (wanted.text is None) == (wanted.asset is None):
        raise ApiError(422, "invalid_request", "give 'text' or 'asset', and not both")
    target = await services.catalog.find(wanted.model, "embed")
    if wanted.text is not None:
        query: Embedded = await services.ask(target.model.embed_texts.remote([wanted.text]), target)
    else:
        query = await embed_assets(services, caller.id, [str(wanted.asset)], target)
    started = time.perf_counter()
    found, version = await services.call(
        services.handles.search.find.remote(
            place.reference, target.name, target.reference, query.vectors[0], wanted.limit
        ),
        "the search",
    )
    query = query.after(Timing(postprocess=time.perf_counter() - started))
    say(response, query)
    return SearchAnswer(
        id=request.state.request_id,
        dataset=place.name,
        dataset_version=version,
        model=query.model,
        hits=found,
        timing_s=query.timing,
    )


async def embed_assets(
    services: Services, owner: str, asset_ids: list[str], target: Target
) -> Embedded:
    """Vectors of pictures and clips, in their order."""

    async def decoded(asset_id: str) -> Clip:
        return (await services.decode(await services.asset(owner, asset_id), target)).clip

    started = time.perf_counter()
    clips = await together(map(decoded, asset_ids))
    spent = Timing(preprocess=time.perf_counter() - started)
    embedded: Embedded = await services.ask(target.model.embed_clips.remote(clips), target)
    return embedded.after(spent)


def say(response: Response, written: Written | Embedded) -> None:
    """Who answered and how long each phase took, as headers."""
    observe_phases(written.model.name, written.timing)
    identify(response, written.model)
    tell_time(response, written.timing)


def tell_time(response: Response, timing: Timing) -> None:
    """How long each phase took, as a header."""
    response.headers["Server-Timing"] = ", ".join(
        f"{name};dur={1000 * seconds:.2f}" for name, seconds in timing
    )


def identify(response: Response, *models: ServedModel) -> None:
    """Who answers, and what they learned from, as headers; several are parted by commas."""
    versions = [
        f"{model.name}@{model.version or (model.weights_hash or '-')[:_HASH_CHARS]}"
        for model in models
    ]
    datasets = [f"{model.dataset}@{model.dataset_version}" for model in models if model.dataset]
    for name, said in (("X-Model-Version", versions), ("X-Dataset-Version", datasets)):
        if said:
            response.headers[name] = _header(", ".join(dict.fromkeys(said)))


def observe_phases(model: str, timing: Timing) -> None:
    """Record where the time of an answer went."""
    for phase, seconds in timing:
        PHASE_SECONDS.observe(seconds, model=model, phase=phase)


def _header(text: str) -> str:
    return text.encode("ascii", "backslashreplace").decode()


def _answer(request: Request, asset: Asset, written: Written) -> dict[str, object]:
    return {
        "id": request.state.request_id,
        "asset": asset.id,
        "model": written.model,
        "timing_s": written.timing,
    }

"""`/v1/analyze`: all that is known of a clip, as one answer or as it comes to be known."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from spark_ray.core.anatomy import Task
from spark_ray.datasets.contact_sheet import spread
from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.catalog import Target
from spark_ray.serving.database import Asset
from spark_ray.serving.errors import ApiError, body
from spark_ray.serving.library import small_pictures
from spark_ray.serving.messages import Decoded, Timing, Written
from spark_ray.serving.routes.inference import (
    identify,
    observe_phases,
    tell_time,
    token_limit,
    write,
)
from spark_ray.serving.routes.media import media_body, media_request
from spark_ray.serving.schemas import AnalyzeAnswer, AnalyzeRequest, ClipView
from spark_ray.serving.services import Services, together
from spark_ray.serving.settings import Ability

router = APIRouter(prefix="/v1", tags=["inference"])


@dataclass
class _Inquiry:
    """A clip, and who is to be asked what about it."""

    request_id: str
    asset: Asset
    wanted: AnalyzeRequest
    decoded: Decoded
    view: ClipView
    targets: dict[Task, Target]


@router.post(
    "/analyze",
    openapi_extra=media_body(AnalyzeRequest),
    response_model=AnalyzeAnswer,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def analyze(
    request: Request, response: Response, caller: Infers, services: UseServices
) -> AnalyzeAnswer | Response:
    """Everything at once: scenes, frames, subtitles, a caption and a transcript.

    As a stream, `clip` comes once it is decoded, `caption` and `transcript` with each piece of
    text, and in the end the whole `answer`, or an `error`.
    """
    async with media_request(request, services, caller, AnalyzeRequest) as (asset, wanted):
        token_limit(services, wanted.max_new_tokens)
        inquiry = await _inquire(services, request.state.request_id, asset, wanted)
        if wanted.stream:
            stream = StreamingResponse(_events(services, inquiry), media_type="text/event-stream")
            facts = [await services.facts(target) for target in inquiry.targets.values()]
            identify(stream, *(known.served for known in facts))
            return stream
        texts = await together(
            write(services, inquiry.decoded, task, target, wanted.max_new_tokens)
            for task, target in inquiry.targets.items()
        )
    written = dict(zip(inquiry.targets, texts, strict=True))
    for text in texts:
        observe_phases(text.model.name, text.timing)
    answer = _answer(inquiry, written)
    identify(response, *(text.model for text in texts))
    tell_time(response, answer.timing_s)
    return answer


async def _inquire(
    services: Services, request_id: str, asset: Asset, wanted: AnalyzeRequest
) -> _Inquiry:
    """
    Raises:
        ApiError: no model can answer, or the media can't be used.
    """
    seer = await _wish(services, wanted.caption_model, "caption")
    listener = await _wish(services, wanted.transcription_model, "transcribe")
    if seer is None and listener is None:
        raise ApiError(501, "no_model", "no model here can caption or transcribe")
    decoded = await services.decode(asset, cast(Target, seer or listener))
    clip = decoded.clip
    targets: dict[Task, Target] = {}
    if seer is not None and clip.frames:
        targets["caption"] = seer
    if listener is not None and clip.audio is not None:
        targets["transcript"] = listener
    numbers = spread(len(clip.frames), wanted.thumbnails) if wanted.thumbnails else []
    pictures = await asyncio.to_thread(
        small_pictures,
        [clip.frames[number] for number in numbers],
        [clip.frame_times[number] for number in numbers],
    )
    view = ClipView(
        id=request_id,
        asset=asset.id,
        duration_s=clip.duration_s,
        width=clip.video.width if clip.video else None,
        height=clip.video.height if clip.video else None,
        scenes=clip.scenes,
        frame_times=clip.frame_times,
        dropped=[sample for sample in clip.samples if sample.dropped_by is not None],
        thumbnails=pictures,
        subtitles=" ".join(s.text for s in clip.subtitles) or None,
        has_audio=clip.audio is not None,
    )
    return _Inquiry(request_id, asset, wanted, decoded, view, targets)


async def _wish(services: Services, name: str | None, ability: Ability) -> Target | None:
    """The model that was named, or the server's own; None where it has none for this."""
    if name is None and not services.catalog.names(ability):
        return None
    return await services.catalog.find(name, ability)


def _answer(inquiry: _Inquiry, written: dict[Task, Written]) -> AnalyzeAnswer:
    seconds = inquiry.decoded.seconds
    timing = Timing(preprocess=seconds)
    for text in written.values():
        timing += text.timing + Timing(preprocess=-seconds)  # both are counted from one decode
    caption, transcript = written.get("caption"), written.get("transcript")
    return AnalyzeAnswer(
        **inquiry.view.model_dump(),
        caption=caption.text if caption else None,
        caption_model=caption.model if caption else None,
        transcript=transcript.text if transcript else None,
        transcript_segments=transcript.segments if transcript else [],
        transcription_model=transcript.model if transcript else None,
        timing_s=timing,
    )


async def _events(services: Services, inquiry: _Inquiry) -> AsyncIterator[str]:
    """The texts as they are written, side by side. Where nobody reads on, both are broken off."""
    yield _event("clip", inquiry.view)
    pieces: asyncio.Queue[tuple[Task, str | Written | Exception]] = asyncio.Queue(64)
    limit = token_limit(services, inquiry.wanted.max_new_tokens)

    async def follow(task: Task, target: Target) -> None:
        stream = target.model.options(stream=True).stream.remote(inquiry.decoded, task, limit)
        try:
            async for piece in services.stream(stream, f"model {target.name!r}"):
                await pieces.put((task, piece))
        except Exception as error:  # noqa: BLE001 - told or raised by the one who reads
            await pieces.put((task, error))

    followers = [asyncio.create_task(follow(*target)) for target in inquiry.targets.items()]
    written: dict[Task, Written] = {}
    try:
        while len(written) < len(followers):
            task, piece = await pieces.get()
            if isinstance(piece, ApiError):
                yield _event("error", body(piece, inquiry.request_id))
                return
            if isinstance(piece, Exception):
                raise piece
            if isinstance(piece, Written):
                written[task] = piece
                observe_phases(piece.model.name, piece.timing)
            else:
                yield _event(task, {"text": piece})
        yield _event("answer", _answer(inquiry, written))
    finally:
        for follower in followers:
            follower.cancel()


def _event(name: str, data: BaseModel | dict[str, Any]) -> str:
    values = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
    return f"event: {name}\ndata: {json.dumps(values)}\n\n"

"""`/v1/chat/completions`, in OpenAI's shape.

With a model that follows instructions (backend vllm), a chat is a conversation about everything
that it shows. Other models have none to follow: they describe what the last message shows.
"""

import base64
import binascii
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import Field

from spark_ray.core.anatomy import Task
from spark_ray.core.schema import Clip
from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.catalog import Target, base_name
from spark_ray.serving.errors import ApiError, body
from spark_ray.serving.keys import Caller
from spark_ray.serving.messages import MOST_MEDIA, Decoded, Sampling, Timing, Turn, Written
from spark_ray.serving.routes.inference import identify, observe_phases, say, token_limit
from spark_ray.serving.schemas import DEFAULT_TOKENS, ModelName, OpenAiRequest, Text
from spark_ray.serving.services import Services, together
from spark_ray.serving.settings import Ability

router = APIRouter(prefix="/v1", tags=["openai"])

_DATA_URL = "data:"
_MOST_MESSAGES = 1024
_MOST_DATA_CHARS = 24 << 20


class MediaUrl(OpenAiRequest):
    url: Annotated[str, Field(min_length=1, max_length=_MOST_DATA_CHARS)]
    detail: str | None = None


class Part(OpenAiRequest):
    """Text, a picture, a video or sound. Media come as data: or https:// URLs, or by asset id."""

    type: Literal["text", "image_url", "video_url", "input_audio"]
    text: Text | None = None
    image_url: MediaUrl | None = None
    video_url: MediaUrl | None = None
    input_audio: dict[str, str] | None = None


class Message(OpenAiRequest):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Part]
    name: Text | None = None


class StreamOptions(OpenAiRequest):
    include_usage: bool = False


class TextFormat(OpenAiRequest):
    type: Literal["text"]


class ChatRequest(OpenAiRequest):
    """Of OpenAI's request, what a model here can honour; other fields are refused."""

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_tokens: int | None = Field(
        None, ge=1, description=f"where the text ends; unset: {DEFAULT_TOKENS}"
    )
    max_completion_tokens: int | None = Field(None, ge=1, description="new name of `max_tokens`")
    stream: bool = Field(False, description="server-sent events, a piece of text in each")
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=2, description="0: what is most likely")
    top_p: float | None = Field(None, gt=0, le=1, description="share of probability to draw from")
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, lt=1 << 63)
    stop: Text | Annotated[list[Text], Field(max_length=4)] | None = None
    n: int = Field(1, ge=1, le=1)
    response_format: TextFormat | None = None
    logprobs: Literal[False] = False
    store: Literal[False] = False
    metadata: dict[str, Text] | None = Field(None, description="of no effect, as is user")
    user: Text | None = None


_STEERING = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "seed", "stop")
# The most likely text is the same for every `seed`, and within every `top_p`.
_SWAYING = ("temperature", "presence_penalty", "frequency_penalty", "stop")


@router.post("/chat/completions")
async def chat(
    request: Request, wanted: ChatRequest, caller: Infers, services: UseServices
) -> Response:
    """Answer a conversation, or describe the media of its last message; whole or in pieces."""
    ability = _ability(services, wanted.model)
    target = await services.catalog.find(wanted.model, ability)
    given = "max_completion_tokens" if wanted.max_completion_tokens else "max_tokens"
    limit = token_limit(services, getattr(wanted, given), given)
    arguments: tuple[Any, ...]
    started = time.perf_counter()
    if ability == "chat":
        arguments = await _conversation(services, caller, wanted, target, limit)
        methods, decoding_s = ("reply", "reply_in_pieces"), 0.0  # its timing has none of it
        before = Timing(preprocess=time.perf_counter() - started)
    else:
        arguments = await _description(services, caller, wanted, target, limit)
        methods, decoding_s = ("write", "stream"), arguments[0].seconds
        before = Timing()
    identity = {
        "id": request.state.request_id,
        "created": int(time.time()),
        "model": wanted.model,
    }
    what = f"model {wanted.model!r}"
    if wanted.stream:
        streaming = getattr(target.model.options(stream=True), methods[1])
        usage = wanted.stream_options is not None and wanted.stream_options.include_usage
        served = (await services.facts(target)).served
        pieces = services.stream(streaming.remote(*arguments), what)
        # Before the status is sent, so that "try again" is one, and clients do.
        first = await anext(pieces)
        chunks = _chunks(first, pieces, identity, usage, before)
        stream = StreamingResponse(
            _until_error(chunks, identity["id"]), media_type="text/event-stream"
        )
        identify(stream, served)
        return stream
    written: Written = await services.ask(
        getattr(target.model, methods[0]).remote(*arguments), target, decoding_s
    )
    written = written.after(before)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": written.text},
        "finish_reason": written.finish,
    }
    answer = JSONResponse(
        {**identity, "object": "chat.completion", "choices": [choice], "usage": _usage(written)}
    )
    say(answer, written)
    return answer


def _ability(services: Services, name: str) -> Ability:
    """What a model is asked for: to converse, to describe, or at least to write down speech."""
    base = base_name(name)
    for ability in ("chat", "caption", "transcribe"):
        if base in services.catalog.names(ability):
            return ability
    return "caption"


async def _conversation(
    services: Services, caller: Caller, wanted: ChatRequest, target: Target, limit: int
) -> tuple[list[Turn], Sampling]:
    """All that was said and shown, for a model that follows it."""
    parts = [part for message in wanted.messages for part in _parts(message)]
    if sum(part.type != "text" for part in parts) > MOST_MEDIA:
        raise ApiError(
            422, "invalid_request", f"messages: at most {MOST_MEDIA} media", param="messages"
        )

    async def shown(part: Part) -> str | Clip:
        if part.type == "text":
            return part.text or ""
        decoded = await _decoded(services, caller, part, target)
        if not decoded.clip.frames:
            raise ApiError(
                422, "unusable_media", f"model {target.name!r} sees, and hears nothing",
                param="messages",
            )  # fmt: skip
        return decoded.clip

    seen = iter(await together(map(shown, parts)))
    turns = [
        Turn(
            role="system" if message.role == "developer" else message.role,
            parts=[next(seen) for _ in _parts(message)],
        )
        for message in wanted.messages
    ]
    steering = wanted.model_dump(include=set(_STEERING), exclude_none=True)
    if isinstance(wanted.stop, str):
        steering["stop"] = [wanted.stop]
    return turns, Sampling(max_tokens=limit, **steering)


async def _description(
    services: Services,
    caller: Caller,
    wanted: ChatRequest,
    target: Target,
    limit: int,
) -> tuple[Any, Task, int]:
    """The media of the last message, for a model that says what is most likely about them."""
    for name in _SWAYING:
        if getattr(wanted, name):
            raise ApiError(
                422,
                "invalid_request",
                f"{name}: model {target.name!r} can't be told this; it writes what is most likely. "
                "Leave it out",
                param=name,
            )
    media = [part for part in _parts(wanted.messages[-1]) if part.type != "text"]
    if len(media) != 1:
        raise ApiError(
            422,
            "media_missing",
            "the last message must bring one image_url, video_url or input_audio; it brings "
            + (str(len(media)) if media else "none"),
            param="messages",
        )
    decoded = await _decoded(services, caller, media[0], target)
    clip, able = decoded.clip, services.catalog.abilities(target.name)
    if clip.frames and "caption" in able:
        return decoded, "caption", limit
    if clip.audio is not None and "transcribe" in able:
        return decoded, "transcript", limit
    raise ApiError(
        422,
        "unusable_media",
        f"model {target.name!r} can't describe this: it can {' and '.join(able)}",
        param="messages",
    )


def _parts(message: Message) -> list[Part]:
    if isinstance(message.content, str):
        return [Part(type="text", text=message.content)]
    return message.content


async def _decoded(services: Services, caller: Caller, part: Part, target: Target) -> Decoded:
    """What a part of a message shows. Only what was an asset before is one after it."""
    if part.type == "input_audio":
        data = (part.input_audio or {}).get("data", "")
    else:
        named = part.image_url if part.type == "image_url" else part.video_url
        if named is None:
            raise ApiError(422, "invalid_request", f"{part.type} is missing", param="messages")
        if named.url.startswith("asset-"):
            return await services.decode(await services.asset(caller.id, named.url), target)
        if not named.url.startswith(_DATA_URL):
            async with services.borrowed(services.fetch(caller.id, named.url)) as asset:
                return await services.decode(asset, target)
        data = named.url.partition(",")[2]
    storing = services.store(caller.id, io.BytesIO(_from_base64(data)))
    async with services.borrowed(storing) as asset:
        return await services.decode(asset, target)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            422, "invalid_request", f"the data are no base64: {error}", param="messages"
        ) from error


async def _chunks(
    piece: str | Written,
    further: AsyncIterator[str | Written],
    identity: dict[str, Any],
    with_usage: bool,
    before: Timing,
) -> AsyncIterator[str]:
    def event(choices: list[dict[str, Any]], **more: Any) -> str:
        chunk = {**identity, "object": "chat.completion.chunk", "choices": choices, **more}
        return f"data: {json.dumps(chunk)}\n\n"

    def delta(said: dict[str, str], finish: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": said, "finish_reason": finish}]

    yield event(delta({"role": "assistant", "content": ""}))
    while isinstance(piece, str):
        yield event(delta({"content": piece}))
        piece = await anext(further)
    observe_phases(piece.model.name, piece.timing + before)
    yield event(delta({}, piece.finish))
    if with_usage:
        yield event([], usage=_usage(piece))
    yield "data: [DONE]\n\n"


async def _until_error(chunks: AsyncIterator[str], request_id: str) -> AsyncIterator[str]:
    """The stream; an error within it becomes its last event, as the status has long been sent."""
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        yield f"data: {json.dumps(body(error, request_id))}\n\n"


def _usage(written: Written) -> dict[str, int]:
    prompt, tokens = written.prompt_tokens or 0, written.tokens or 0
    return {
        "prompt_tokens": prompt,
        "completion_tokens": tokens,
        "total_tokens": prompt + tokens,
    }

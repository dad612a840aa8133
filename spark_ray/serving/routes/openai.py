"""OpenAI's shapes, so that its clients work unchanged: chat, audio transcription, embeddings.

A chat is about the pictures, videos and sound in its last message. Apotheon has no instructions to
follow: the words of the messages are for models that do.
"""

import base64
import binascii
import io
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from pydantic import Field

from spark_ray.core.anatomy import Task
from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.database import Asset
from spark_ray.serving.errors import ApiError, body
from spark_ray.serving.keys import Caller
from spark_ray.serving.messages import Decoded, Embedded, Written
from spark_ray.serving.routes.inference import observe_phases, say, token_limit, write
from spark_ray.serving.routes.media import read_form, validated
from spark_ray.serving.schemas import ModelName
from spark_ray.serving.schemas import Request as Body
from spark_ray.serving.services import Services
from spark_ray.serving.settings import Ability
from spark_ray.serving.subtitle_files import as_srt, as_vtt

router = APIRouter(prefix="/v1", tags=["openai"])

_DATA_URL = "data:"
_MOST_MESSAGES = 64
_MOST_DATA_CHARS = 24 << 20


class MediaUrl(Body):
    url: Annotated[str, Field(min_length=1, max_length=_MOST_DATA_CHARS)]
    detail: str | None = None


class Part(Body):
    """Text, a picture, a video or sound. Media come as data: or https:// URLs, or by asset id."""

    type: Literal["text", "image_url", "video_url", "input_audio"]
    text: str | None = None
    image_url: MediaUrl | None = None
    video_url: MediaUrl | None = None
    input_audio: dict[str, str] | None = None


class Message(Body):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None


class ChatRequest(Body):
    """Of OpenAI's request, what a model here can honour; other fields are refused."""

    model: ModelName
    messages: Annotated[list[Message], Field(min_length=1, max_length=_MOST_MESSAGES)]
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    temperature: float | None = Field(None, ge=0, le=0, description="0: what is most likely")
    n: int = Field(1, ge=1, le=1)
    user: str | None = None


class EmbeddingRequest(Body):
    model: ModelName
    input: str | Annotated[list[str], Field(min_length=1)]
    encoding_format: Literal["float", "base64"] = "float"
    user: str | None = None


class SpeechForm(Body):
    """The fields of `/v1/audio/transcriptions` besides its `file`."""

    model: ModelName
    language: str | None = None
    prompt: str | None = None
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=0)


@router.post("/chat/completions")
async def chat(
    request: Request, wanted: ChatRequest, caller: Infers, services: UseServices
) -> Response:
    """Describe the media of the last message, whole or token by token."""
    limit = token_limit(services, wanted.max_completion_tokens or wanted.max_tokens)
    able: Ability = "caption" if _sees(services, wanted.model) else "transcribe"
    target = await services.catalog.find(wanted.model, able)
    asset = await _asset_of(services, caller, wanted.messages[-1])
    decoded = await services.decode(asset, target)
    task: Task = "caption" if decoded.clip.frames and able == "caption" else "transcript"
    identity = {
        "id": request.state.request_id,
        "created": int(time.time()),
        "model": wanted.model,
    }
    if wanted.stream:
        pieces = target.model.options(stream=True).stream.remote(decoded, task, limit)
        chunks = _chunks(services.stream(pieces, f"model {wanted.model!r}"), identity)
        return StreamingResponse(
            _until_error(chunks, identity["id"]), media_type="text/event-stream"
        )
    written = await write(services, decoded, task, target, limit)
    answer = JSONResponse(
        {
            **identity,
            "object": "chat.completion",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": written.text},
                    "finish_reason": written.finish,
                }
            ],
            "usage": _usage(written),
        }
    )
    say(answer, written)
    return answer


def _sees(services: Services, name: str) -> bool:
    """Whether a model describes pictures; one that does not may still write down what is said."""
    base = name.partition("@")[0].partition("/")[0]
    return base not in services.catalog.names("transcribe") or base in services.catalog.names(
        "caption"
    )


async def _chunks(
    pieces: AsyncIterator[str | Written], identity: dict[str, Any]
) -> AsyncIterator[str]:
    def event(delta: dict[str, str], finish: str | None = None) -> str:
        chunk = {
            **identity,
            "object": "chat.completion.chunk",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        }
        return f"data: {json.dumps(chunk)}\n\n"

    yield event({"role": "assistant", "content": ""})
    async for piece in pieces:
        if isinstance(piece, str):
            yield event({"content": piece})
        else:
            observe_phases(piece.model.name, piece.timing)
            yield event({}, piece.finish)
    yield "data: [DONE]\n\n"


async def _until_error(chunks: AsyncIterator[str], request_id: str) -> AsyncIterator[str]:
    """The stream; an error within it becomes its last event, as the status has long been sent."""
    try:
        async for chunk in chunks:
            yield chunk
    except ApiError as error:
        yield f"data: {json.dumps(body(error, request_id))}\n\n"


async def _asset_of(services: Services, caller: Caller, message: Message) -> Asset:
    """The one picture, video or recording of a message."""
    parts = message.content if isinstance(message.content, list) else []
    media = [part for part in parts if part.type != "text"]
    if len(media) != 1:
        raise ApiError(
            422,
            "media_missing",
            "the last message must bring one image_url, video_url or input_audio",
            param="messages",
        )
    part = media[0]
    if part.type == "input_audio":
        data = (part.input_audio or {}).get("data", "")
        return await services.store(caller.id, io.BytesIO(_from_base64(data)))
    named = part.image_url if part.type == "image_url" else part.video_url
    if named is None:
        raise ApiError(422, "invalid_request", f"{part.type} is missing", param="messages")
    if named.url.startswith(_DATA_URL):
        data = named.url.partition(",")[2]
        return await services.store(caller.id, io.BytesIO(_from_base64(data)))
    if named.url.startswith("asset-"):
        return await services.media(caller, named.url, None)
    return await services.media(caller, None, named.url)


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise ApiError(
            422, "invalid_request", f"the data are no base64: {error}", param="messages"
        ) from error


@router.post("/embeddings")
async def embeddings(
    wanted: EmbeddingRequest, response: Response, caller: Infers, services: UseServices
) -> JSONResponse:
    """Vectors of texts, to be compared with each other and with those of clips."""
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    most = services.settings.limits.max_texts
    if len(texts) > most:
        raise ApiError(422, "invalid_request", f"input: at most {most} texts", param="input")
    if not all(text.strip() for text in texts):
        raise ApiError(422, "invalid_request", "input: a text is empty", param="input")
    target = await services.catalog.find(wanted.model, "embed")
    embedded: Embedded = await services.call(
        target.model.embed_texts.remote(texts), f"model {target.name!r}"
    )
    answer = JSONResponse(
        {
            "object": "list",
            "model": wanted.model,
            "data": [
                {"object": "embedding", "index": number, "embedding": _encoded(vector, wanted)}
                for number, vector in enumerate(embedded.vectors)
            ],
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
        }
    )
    say(answer, embedded)
    return answer


def _encoded(vector: list[float], wanted: EmbeddingRequest) -> list[float] | str:
    if wanted.encoding_format == "float":
        return vector
    return base64.b64encode(np.asarray(vector, "<f4").tobytes()).decode()


@router.post(
    "/audio/transcriptions",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        **SpeechForm.model_json_schema(),
                        "properties": {
                            **SpeechForm.model_json_schema()["properties"],
                            "file": {"type": "string", "format": "binary"},
                        },
                        "required": ["file", "model"],
                    }
                }
            },
        }
    },
)
async def speech(request: Request, caller: Infers, services: UseServices) -> Response:
    """Write down what is said, as JSON, text or subtitles."""
    file, fields = await read_form(request)
    wanted = validated(SpeechForm, fields)
    target = await services.catalog.find(wanted.model, "transcribe")
    asset = await services.store(caller.id, file.file)
    decoded = await services.decode(asset, target)
    if decoded.clip.audio is None:
        raise ApiError(422, "unusable_media", "the file has no sound to write down", param="file")
    written = await write(services, decoded, "transcript", target, None)
    answer = _speech_answer(written, decoded, wanted.response_format)
    say(answer, written)
    return answer


def _speech_answer(written: Written, decoded: Decoded, form: str) -> Response:
    if form == "text":
        return PlainTextResponse(written.text + "\n")
    if form == "srt":
        return PlainTextResponse(as_srt(written.segments), media_type="application/x-subrip")
    if form == "vtt":
        return PlainTextResponse(as_vtt(written.segments), media_type="text/vtt")
    if form == "json":
        return JSONResponse({"text": written.text})
    return JSONResponse(
        {
            "task": "transcribe",
            "language": written.language or "",
            "duration": decoded.clip.duration_s,
            "text": written.text,
            "segments": [
                {
                    "id": number,
                    "seek": 0,
                    "start": segment.start,
                    "end": segment.end,
                    "text": segment.text,
                    "tokens": [],
                    "temperature": 0.0,
                    "avg_logprob": 0.0,
                    "compression_ratio": 0.0,
                    "no_speech_prob": 0.0,
                }
                for number, segment in enumerate(written.segments)
            ],
        }
    )


def _usage(written: Written) -> dict[str, int]:
    tokens = written.tokens or 0
    return {"prompt_tokens": 0, "completion_tokens": tokens, "total_tokens": tokens}

"""OpenAI's shapes, so that its clients work unchanged: audio transcription and embeddings."""

import base64
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import Field, field_validator

from spark_ray.core.schema import Segment
from spark_ray.media.languages import LanguageCode, language_code
from spark_ray.models.transcription import SpokenClip
from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.catalog import Target
from spark_ray.serving.errors import ApiError
from spark_ray.serving.messages import MOST_MEDIA, Decoded, Embedded, Written
from spark_ray.serving.routes.inference import embed_assets, say, write
from spark_ray.serving.routes.media import read_form, validated
from spark_ray.serving.schemas import AssetId, ModelName, OpenAiRequest, Text
from spark_ray.serving.services import Services
from spark_ray.serving.subtitle_files import as_srt, as_vtt

router = APIRouter(prefix="/v1", tags=["openai"])

_UNMEASURED = (
    "seek", "tokens", "temperature", "avg_logprob", "compression_ratio", "no_speech_prob",
)  # fmt: skip


class EmbeddingRequest(OpenAiRequest):
    model: ModelName
    input: Text | Annotated[list[Text], Field(min_length=1)] | None = None
    assets: list[AssetId] | None = Field(
        None,
        min_length=1,
        max_length=MOST_MEDIA,
        description="pictures and clips in place of `input`, which OpenAI has no field for",
    )
    encoding_format: Literal["float", "base64"] = "float"
    user: Text | None = None

    @field_validator("input", mode="before")
    @classmethod
    def _has_no_tokens(cls, value: Any) -> Any:
        if isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise ValueError("send a text or a list of texts; another model's tokens mean nothing")
        return value


class SpeechForm(OpenAiRequest):
    """The fields of `/v1/audio/transcriptions` besides its `file`."""

    model: ModelName
    language: LanguageCode | None = Field(
        None, max_length=35, description="of what is said, for the models that can be told"
    )
    prompt: Text | None = Field(None, description="refused: no model here follows one")
    response_format: Literal["json", "text", "srt", "verbose_json", "vtt"] = "json"
    temperature: float = Field(0.0, ge=0, le=0)
    timestamp_granularities: Literal["segment"] = Field(
        "segment", alias="timestamp_granularities[]", description="words have no times here"
    )


@router.post("/embeddings")
async def embeddings(
    wanted: EmbeddingRequest, response: Response, caller: Infers, services: UseServices
) -> JSONResponse:
    """Vectors of texts, or of pictures and clips, to be compared with each other."""
    target = await services.catalog.find(wanted.model, "embed")
    embedded: Embedded
    if wanted.assets is not None and wanted.input is None:
        embedded = await embed_assets(services, caller.id, wanted.assets, target)
    else:
        texts = _texts(wanted, services.settings.limits.max_texts)
        embedded = await services.ask(target.model.embed_texts.remote(texts), target)
    answer = JSONResponse(
        {
            "object": "list",
            "model": wanted.model,
            "data": [
                {"object": "embedding", "index": number, "embedding": _encoded(vector, wanted)}
                for number, vector in enumerate(embedded.vectors)
            ],
            "usage": {"prompt_tokens": embedded.tokens, "total_tokens": embedded.tokens},
        }
    )
    say(answer, embedded)
    return answer


def _texts(wanted: EmbeddingRequest, most: int) -> list[str]:
    """
    Raises:
        ApiError: there is none, or an empty one, or too many, or media as well.
    """
    texts = [wanted.input] if isinstance(wanted.input, str) else wanted.input
    if texts is None or wanted.assets is not None:
        raise ApiError(
            422, "invalid_request", "input: give this, or 'assets' in its place", param="input"
        )
    if len(texts) > most:
        raise ApiError(422, "invalid_request", f"input: at most {most} texts", param="input")
    if not all(text.strip() for text in texts):
        raise ApiError(422, "invalid_request", "input: a text is empty", param="input")
    return texts


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
    language = _language(services, wanted, target)
    async with services.borrowed(services.store(caller.id, file.file)) as asset:
        decoded = await services.decode(asset, target)
    if decoded.clip.audio is None:
        raise ApiError(422, "unusable_media", "the file has no sound to write down", param="file")
    if language is not None:
        spoken = SpokenClip(**dict(decoded.clip), spoken_language=language)
        decoded = decoded.model_copy(update={"clip": spoken})
    # To the end: a client can't say here where it is, and would not hear that it was cut off.
    most = services.settings.limits.max_new_tokens
    written = await write(services, decoded, "transcript", target, most)
    answer = _speech_answer(written, decoded, wanted.response_format)
    say(answer, written)
    return answer


def _language(services: Services, wanted: SpeechForm, target: Target) -> str | None:
    """The language that the caller says is spoken, as two letters where it has them.

    Raises:
        ApiError: it, or a prompt, would have no effect on this model.
    """
    if wanted.prompt:
        raise ApiError(
            400, "invalid_request", "prompt: no model here follows one; leave it out",
            param="prompt",
        )  # fmt: skip
    if wanted.language is None:
        return None
    if not services.catalog.settings(target.name).takes_language:
        raise ApiError(
            400, "invalid_request",
            f"language: model {target.name!r} can't be told what is spoken; leave it out",
            param="language",
        )  # fmt: skip
    return language_code(wanted.language)


def _speech_answer(written: Written, decoded: Decoded, form: str) -> Response:
    segments = written.segments
    if not segments and written.text:  # the model tells no times: it was said within the whole
        segments = [Segment(start=0.0, end=decoded.clip.duration_s, text=written.text)]
    if form == "text":
        return PlainTextResponse(written.text + "\n")
    if form == "srt":
        return PlainTextResponse(as_srt(segments), media_type="application/x-subrip")
    if form == "vtt":
        return PlainTextResponse(as_vtt(segments), media_type="text/vtt")
    if form == "json":
        return JSONResponse({"text": written.text})
    # What nobody measured is null, which OpenAI's client takes as None.
    return JSONResponse(
        {
            "task": "transcribe",
            "language": written.language,
            "duration": decoded.clip.duration_s,
            "text": written.text,
            "segments": [
                {
                    "id": number,
                    "start": segment.start,
                    "end": segment.end,
                    "text": segment.text,
                    **dict.fromkeys(_UNMEASURED),
                }
                for number, segment in enumerate(segments)
            ],
        }
    )

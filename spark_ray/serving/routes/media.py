"""Reading a request for an answer about media: JSON that names it, or a form that brings it."""

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from spark_ray.serving.database import Asset
from spark_ray.serving.errors import ApiError
from spark_ray.serving.keys import Caller
from spark_ray.serving.services import Services

Body = TypeVar("Body", bound=BaseModel)

_MOST_FIELDS = 20
_MOST_FIELD_BYTES = 64 << 10


def media_body(body: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a request that may come in either form."""
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    form = {
        **schema,
        "properties": {
            **{k: v for k, v in schema["properties"].items() if k not in ("asset", "url")},
            "file": {"type": "string", "format": "binary"},
        },
        "required": ["file"],
    }
    content = {"application/json": {"schema": schema}, "multipart/form-data": {"schema": form}}
    return {"requestBody": {"required": True, "content": content}}


@asynccontextmanager
async def media_request(
    request: Request, services: Services, caller: Caller, body: type[Body]
) -> AsyncIterator[tuple[Asset, Body]]:
    """The asset that is asked about, and the rest of the request.

    Of a request that fails no new asset is left: its client does not hear of it, and tries again.

    Raises:
        ApiError: it can't be read, or names no media, or the media can't be used.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        file, fields = await read_form(request)
        parsed = validated(body, fields)
        async with services.kept(services.store(caller.id, file.file)) as asset:
            yield asset, parsed
        return
    if kind not in ("application/json", ""):
        raise ApiError(
            415,
            "unsupported_content_type",
            f"{kind}: send application/json, or multipart/form-data with a 'file'",
        )
    parsed = validated(body, await read_json(request, services.settings.limits.max_json_depth))
    named = parsed.model_dump()
    if (named["asset"] is None) == (named["url"] is None):
        raise ApiError(
            400,
            "media_missing",
            "give the media once: as 'asset', as 'url', or as 'file' in a multipart form",
        )
    if named["asset"] is not None:
        yield await services.asset(caller.id, named["asset"]), parsed
        return
    async with services.kept(services.fetch(caller.id, named["url"])) as asset:
        yield asset, parsed


async def read_form(request: Request) -> tuple[UploadFile, dict[str, str]]:
    """The file of a form, and its other fields."""
    try:
        form = await request.form(
            max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES
        )
    except (MultiPartException, UnicodeError) as error:
        raise ApiError(400, "invalid_form", f"the form can't be read: {error}") from error
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise ApiError(400, "media_missing", "the form has no 'file'", param="file")
    names = [name for name, _ in form.multi_items()]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise ApiError(
            400, "invalid_form", f"the form gives {doubled!r} more than once", param=doubled
        )
    return file, {name: value for name, value in form.items() if isinstance(value, str)}


async def read_json(request: Request, max_depth: int) -> Any:
    """
    Raises:
        ApiError: it is no JSON, or nested too deeply.
    """
    try:
        value = json.loads(await request.body())
    except (ValueError, RecursionError) as error:
        raise ApiError(400, "invalid_json", f"the body is no JSON: {error}") from error
    level = [value]
    for _ in range(max_depth + 1):
        if not level:
            return value
        level = [inner for outer in level for inner in _inside(outer)]
    raise ApiError(400, "invalid_json", f"the JSON is nested deeper than {max_depth}")


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def validated(body: type[Body], values: Any) -> Body:
    """
    Raises:
        ApiError: a field is unknown, missing or wrong; the first is named.
    """
    try:
        return body.model_validate(values)
    except ValidationError as error:
        raise invalid(error.errors()) from error


def invalid(details: Any) -> ApiError:
    """The mistakes that pydantic found, in one sentence."""
    places = [_place(detail) for detail in details]
    said = [f"{place}: {_said(d)}" for place, d in zip(places, details, strict=True)]
    return ApiError(422, "invalid_request", "; ".join(said[:5]), param=places[0])


def _said(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return "this server has no such field; leave it out"
    return str(detail["msg"]).removeprefix("Value error, ")


def _place(detail: Any) -> str:
    """The field, without what pydantic calls the types that it might have had."""
    if detail["type"] == "json_invalid":  # it tells the character
        return "body"
    parts = [str(part) for part in detail["loc"]]
    named = [part for part in parts if part.removesuffix("[]").isidentifier() or part.isdigit()]
    return ".".join(named).removeprefix("body.") or "body"

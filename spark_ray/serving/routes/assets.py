"""`/v1/assets`: media uploaded in one form, resumably after the tus protocol, or fetched.

tus 1.0.0 with the extensions creation, termination and expiration (https://tus.io/protocols).
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from email.utils import formatdate
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from spark_ray.serving.access import Infers, UseServices
from spark_ray.serving.database import Asset
from spark_ray.serving.errors import TUS_VERSION, ApiError
from spark_ray.serving.routes.media import read_form, read_json, validated
from spark_ray.serving.schemas import AssetInfo, FetchRequest
from spark_ray.serving.services import Services

router = APIRouter(prefix="/v1/assets", tags=["assets"])

Write = Callable[[bytes], Awaitable[None]]

_MOST_DIGITS = 18
_CHUNK_TYPE = "application/offset+octet-stream"
_UPLOAD = {
    "requestBody": {
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                    "required": ["file"],
                }
            },
            "application/json": {"schema": FetchRequest.model_json_schema()},
        }
    }
}


def info(asset: Asset) -> AssetInfo:
    return AssetInfo.model_validate(
        {name: getattr(asset, name) for name in AssetInfo.model_fields if name != "size_bytes"}
        | {"size_bytes": None if asset.size_bytes < 0 else asset.size_bytes}
    )


@router.post("", status_code=201, openapi_extra=_UPLOAD, response_model=AssetInfo)
async def create(
    request: Request, response: Response, caller: Infers, services: UseServices
) -> AssetInfo | Response:
    """Upload a `file` in a form, name a `url` in JSON, or begin a resumable upload (tus)."""
    if "tus-resumable" in request.headers:
        return await _begin_upload(request, services, caller.id)
    if request.headers.get("content-type", "").startswith("multipart/form-data"):
        file, _ = await read_form(request)
        asset = await services.store(caller.id, file.file)
    else:
        wanted = validated(
            FetchRequest, await read_json(request, services.settings.limits.max_json_depth)
        )
        asset = await services.fetch(caller.id, wanted.url)
    response.headers["Location"] = f"/v1/assets/{asset.id}"
    return info(asset)


async def _begin_upload(request: Request, services: Services, owner: str) -> Response:
    _check_version(request)
    length = _bytes(request, "Upload-Length", "the file's bytes")
    asset = await asyncio.to_thread(services.assets.begin, owner, length)
    return Response(
        status_code=201,
        headers={**_tus_headers(services, asset), "Location": f"/v1/assets/{asset.id}"},
    )


@router.options("", status_code=204, response_class=Response, openapi_extra={"security": []})
async def capabilities(services: UseServices) -> Response:
    """What of tus this server can do."""
    return Response(
        status_code=204,
        headers={
            "Tus-Resumable": TUS_VERSION,
            "Tus-Version": TUS_VERSION,
            "Tus-Extension": "creation,termination,expiration",
            "Tus-Max-Size": str(services.settings.limits.max_upload_bytes),
        },
    )


@router.head("/{asset_id}", response_class=Response)
async def offset(asset_id: str, caller: Infers, services: UseServices) -> Response:
    """Where an upload goes on."""
    asset = await asyncio.to_thread(services.assets.get, asset_id, caller.id)
    if not asset.complete and asset.received_bytes == asset.size_bytes:
        # All had come when the replica that took the last of it was lost.
        asset = await asyncio.to_thread(services.assets.complete, asset)
    return Response(headers={**_tus_headers(services, asset), "Cache-Control": "no-store"})


@router.patch("/{asset_id}", status_code=204, response_class=Response)
async def append(
    asset_id: str, request: Request, caller: Infers, services: UseServices
) -> Response:
    """Send the next bytes of an upload. What arrived is kept also if the connection breaks."""
    _check_version(request)
    if request.headers.get("content-type") != _CHUNK_TYPE:
        raise ApiError(415, "unsupported_content_type", f"Content-Type must be {_CHUNK_TYPE}")
    at = _bytes(request, "Upload-Offset", "the first byte")
    asset = await asyncio.to_thread(services.assets.get, asset_id, caller.id)
    async with _part(services, asset, at) as write:
        async for chunk in request.stream():
            await write(chunk)
    if asset.received_bytes == asset.size_bytes:
        asset = await asyncio.to_thread(services.assets.complete, asset)
    return Response(status_code=204, headers=_tus_headers(services, asset))


@asynccontextmanager
async def _part(services: Services, asset: Asset, at: int) -> AsyncIterator[Write]:
    """`AssetStore.part` in one thread, where a piece that is being written when the client goes
    away is written before the part is closed."""
    loop = asyncio.get_running_loop()
    thread = ThreadPoolExecutor(1, thread_name_prefix="part")
    part = services.assets.part(asset, at)
    try:
        writer = await loop.run_in_executor(thread, part.__enter__)

        async def write(chunk: bytes) -> None:
            await loop.run_in_executor(thread, writer.write, chunk)

        try:
            yield write
        except BaseException as error:
            await loop.run_in_executor(thread, part.__exit__, type(error), error, None)
            raise
        await loop.run_in_executor(thread, part.__exit__, None, None, None)
    finally:
        thread.shutdown(wait=False)


@router.get("")
async def show_all(
    caller: Infers, services: UseServices, limit: Annotated[int, Query(ge=1, le=1000)] = 100
) -> list[AssetInfo]:
    """The newest assets of this key."""
    return [info(one) for one in await asyncio.to_thread(services.assets.list, caller.id, limit)]


@router.get("/{asset_id}")
async def show(asset_id: str, caller: Infers, services: UseServices) -> AssetInfo:
    """What is known of an asset."""
    return info(await asyncio.to_thread(services.assets.get, asset_id, caller.id))


@router.delete("/{asset_id}", status_code=204, response_class=Response)
async def delete(asset_id: str, caller: Infers, services: UseServices) -> Response:
    """Remove an asset and its bytes."""
    asset = await asyncio.to_thread(services.assets.get, asset_id, caller.id)
    await asyncio.to_thread(services.assets.delete, asset)
    remember: Callable[..., None] = services.database.audit
    await asyncio.to_thread(remember, "asset.delete", key=caller.id, subject=asset_id)
    return Response(status_code=204, headers={"Tus-Resumable": TUS_VERSION})


def _bytes(request: Request, name: str, what: str) -> int:
    """A count of bytes in a header."""
    given = request.headers.get(name, "")
    # Python itself refuses numbers of some thousand digits, with an error of its own.
    if not given.isdecimal() or len(given) > _MOST_DIGITS:
        raise ApiError(400, "invalid_upload", f"{name}: give {what} as a number")
    return int(given)


def _check_version(request: Request) -> None:
    if request.headers.get("tus-resumable") != TUS_VERSION:
        raise ApiError(412, "unsupported_tus", f"Tus-Resumable: this server speaks {TUS_VERSION}")


def _tus_headers(services: Services, asset: Asset) -> dict[str, str]:
    headers = {
        "Tus-Resumable": TUS_VERSION,
        "Upload-Offset": str(asset.received_bytes),
        "Upload-Expires": formatdate(asset.expires, usegmt=True),
    }
    if asset.size_bytes >= 0:
        headers["Upload-Length"] = str(asset.size_bytes)
    return headers

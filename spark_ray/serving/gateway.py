"""The gateway: the one deployment that speaks HTTP. It authenticates, validates and routes."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from ray import serve
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp

from spark_ray import __version__
from spark_ray.core.errors import SparkRayError
from spark_ray.core.logging import configure_logging
from spark_ray.monitoring.logs import serve_ids
from spark_ray.serving.access import Admission
from spark_ray.serving.envelope import Envelope
from spark_ray.serving.errors import ApiError, as_api_error, body, headers_of
from spark_ray.serving.handles import by_grpc
from spark_ray.serving.routes import (
    analysis,
    assets,
    chat,
    datasets,
    inference,
    jobs,
    models,
    openai,
    system,
)
from spark_ray.serving.routes.media import invalid
from spark_ray.serving.services import Handles, Services
from spark_ray.serving.settings import ServeSettings

ROUTES = (assets, inference, analysis, chat, openai, jobs, datasets, models, system)
# What a page of another origin may read of an answer; without these it can't upload by parts.
_EXPOSED = (
    "Location", "Retry-After", "Server-Timing", "Tus-Extension", "Tus-Max-Size", "Tus-Resumable",
    "Tus-Version", "Upload-Expires", "Upload-Length", "Upload-Offset", "X-Dataset-Version",
    "X-Model-Version", "X-Request-Id",
)  # fmt: skip
_TAKE_FILES = re.compile(r"/v1/(assets|captions|transcriptions|analyze|audio/transcriptions)(/.*)?")
_CODES = {400: "invalid_request", 404: "not_found", 405: "method_not_allowed", 413: "too_large"}


def create_app(services: Services) -> ASGIApp:
    """The HTTP interface over these services."""
    app = FastAPIOffline(  # FastAPI's own pages load their scripts from a CDN
        title="SparkRay",
        version=__version__,
        description="Captions, transcripts, embeddings and datasets of video.",
    )
    app.state.services = services
    for module in ROUTES:
        app.include_router(module.router)
    _declare_keys(app)
    app.add_exception_handler(SparkRayError, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _defect)
    app.add_middleware(Admission, services=services)
    enveloped = Envelope(app, services.settings.limits, _TAKE_FILES)
    if not services.settings.cors_origins:
        return enveloped
    # Outermost, so that pages can read also what the envelope itself refuses.
    return CORSMiddleware(
        enveloped,
        allow_origins=services.settings.cors_origins,
        allow_methods=["*"],
        allow_headers=["*"],
        expose_headers=_EXPOSED,
    )


def _declare_keys(app: FastAPI) -> None:
    """Clients and `/docs` learn from the OpenAPI document that a key is sent, and how.

    Routes that need none say so in their own entry.
    """
    document = app.openapi()  # made once, and kept by the app
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}]


async def _known(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SparkRayError)
    return _json(request, as_api_error(error))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    return _json(request, invalid(error.errors()))


async def _http(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    code = _CODES.get(error.status_code, "http_error")
    answer = _json(request, ApiError(error.status_code, code, str(error.detail)))
    answer.headers.update(error.headers or {})
    return answer


async def _gone(request: Request, error: Exception) -> Response:
    """For metrics alone: nobody hears it, and it is no failure of ours."""
    return Response(status_code=499)


async def _defect(request: Request, error: Exception) -> JSONResponse:
    """What is no mistake of the caller's. The error goes on to the envelope, which logs it."""
    return _json(request, ApiError(500, "internal_error", "something failed here; it is logged"))


def _json(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(
        body(error, request.state.request_id), error.status, headers=headers_of(error)
    )


@serve.ingress()
class Gateway:
    """A replica of the gateway."""

    def __init__(
        self,
        settings: ServeSettings,
        decoder: Any,
        models: Mapping[str, Any],
        search: Any,
        keeper: Any,
    ) -> None:
        configure_logging(ids=serve_ids)
        self._keeper = keeper  # bound so that it belongs to the application; it is never called
        handles = Handles(
            decoder=by_grpc(decoder),
            models={name: by_grpc(model) for name, model in models.items()},
            search=by_grpc(search),
        )
        self._services = Services(settings, handles)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return create_app(self._services)

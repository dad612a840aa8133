"""Who gets in, and who may do what: the dependencies that routes declare."""

from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Annotated

from fastapi import Depends, Request
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from spark_ray.core.errors import SparkRayError
from spark_ray.serving.envelope import route_path
from spark_ray.serving.errors import as_api_error, forbidden, messages, unauthorized
from spark_ray.serving.keys import Caller
from spark_ray.serving.keys import Scope as KeyScope
from spark_ray.serving.services import Services

_BEARER = "bearer "


class Admission:
    """Turns away who has no key or asks for too much with it, and remembers whose it is.

    Not a dependency: FastAPI reads and parses a body before it asks those, and nobody without a key
    shall have a body held in memory, nor one key more of them at a time than it may.
    """

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app, self._services = app, services

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with ExitStack() as admitted:
            if scope["type"] == "http" and _is_guarded(scope):
                try:
                    caller = await self._caller(scope)
                    admitted.enter_context(self._services.throttle.admit(caller))
                except SparkRayError as error:
                    for message in messages(as_api_error(error), scope["state"]["request_id"]):
                        await send(message)
                    return
                scope["state"]["caller"] = caller
            await self._app(scope, receive, send)

    async def _caller(self, scope: Scope) -> Caller:
        authorization = Headers(scope=scope).get("authorization", "")
        secret = authorization[len(_BEARER) :].strip()
        if not authorization.lower().startswith(_BEARER) or not secret:
            raise unauthorized()
        found = await self._services.caller(secret)
        if found is None:
            raise unauthorized()
        return found


def _is_guarded(scope: Scope) -> bool:
    """All but health and documentation; what a protocol or CORS asks first comes without a key."""
    path = route_path(scope)
    return (path.startswith("/v1/") or path == "/metrics") and scope["method"] != "OPTIONS"


async def services_of(request: Request) -> Services:
    """Not a plain function: FastAPI would run that in a thread, for every request."""
    services: Services = request.app.state.services
    return services


UseServices = Annotated[Services, Depends(services_of)]


def _requires(*scopes: KeyScope) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency that lets in who has one of the scopes; where there are none, any key."""

    async def caller(request: Request) -> Caller:
        found: Caller = request.state.caller
        if scopes and not any(found.may(scope) for scope in scopes):
            raise forbidden(*scopes)
        return found

    return caller


Infers = Annotated[Caller, Depends(_requires("infer"))]
RunsJobs = Annotated[Caller, Depends(_requires("jobs"))]
Reads = Annotated[Caller, Depends(_requires("infer", "jobs"))]
Administers = Annotated[Caller, Depends(_requires("admin"))]
HasKey = Annotated[Caller, Depends(_requires())]

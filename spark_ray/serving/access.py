"""Who may do what: the dependencies that routes declare."""

from collections.abc import AsyncIterator, Callable
from typing import Annotated

from fastapi import Depends, Request

from spark_ray.serving.errors import forbidden, unauthorized
from spark_ray.serving.keys import Caller, Scope
from spark_ray.serving.services import Services

_BEARER = "bearer "


async def services_of(request: Request) -> Services:
    """Not a plain function: FastAPI would run that in a thread, for every request."""
    services: Services = request.app.state.services
    return services


UseServices = Annotated[Services, Depends(services_of)]


def _requires(*scopes: Scope) -> Callable[..., AsyncIterator[Caller]]:
    """A dependency that lets in who has one of the scopes; where there are none, any key."""

    async def caller(request: Request, services: UseServices) -> AsyncIterator[Caller]:
        authorization = request.headers.get("authorization", "")
        secret = authorization[len(_BEARER) :].strip()
        if not authorization.lower().startswith(_BEARER) or not secret:
            raise unauthorized()
        found = await services.caller(secret)
        if found is None:
            raise unauthorized()
        if scopes and not any(found.may(scope) for scope in scopes):
            raise forbidden(*scopes)
        request.state.key = found.id
        with services.throttle.admit(found):
            yield found

    return caller


Infers = Annotated[Caller, Depends(_requires("infer"))]
RunsJobs = Annotated[Caller, Depends(_requires("jobs"))]
Reads = Annotated[Caller, Depends(_requires("infer", "jobs"))]
Administers = Annotated[Caller, Depends(_requires("admin"))]
HasKey = Annotated[Caller, Depends(_requires())]

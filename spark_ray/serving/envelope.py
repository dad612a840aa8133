"""What surrounds every request: an id, bounds on its body, and an answer whatever happens.

Plain ASGI, since Starlette's own base class for middleware costs a task and a queue a request.
"""

import asyncio
import re
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bound_contextvars

from spark_ray.core.logging import get_logger
from spark_ray.monitoring.metrics import HTTP_REQUEST_SECONDS, HTTP_REQUESTS
from spark_ray.serving.errors import REQUEST_ID, ApiError, messages, too_large
from spark_ray.serving.settings import RequestLimits

log = get_logger(__name__)

_UPLOADS = (b"multipart/form-data", b"application/offset+octet-stream")
_EVENTS = b"text/event-stream"
_FORM_BYTES = 64 << 10  # of a form's fields and boundaries, besides the file


class Envelope:
    """Outermost of the gateway's layers. Only paths that match `take_files` take large bodies."""

    def __init__(self, app: ASGIApp, limits: RequestLimits, take_files: re.Pattern[str]) -> None:
        self._app, self._limits, self._take_files = app, limits, take_files

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        headers = dict(scope["headers"])
        given = headers.get(b"x-request-id", b"")
        request_id = f"req-{secrets.token_hex(8)}"
        if REQUEST_ID.fullmatch(given):
            request_id = given.decode()
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0
        bounded: _Bounded | None = None
        refused = False

        async def send_with_id(message: Message) -> None:
            nonlocal status, refused
            if refused:
                return
            if message["type"] == "http.response.start":
                if bounded is not None and bounded.refusal is not None:
                    # Whatever became of it on its way through those who parse bodies.
                    message, last = messages(bounded.refusal, request_id)
                    refused = True
                status = message["status"]
                added = [(b"x-content-type-options", b"nosniff")]
                if dict(message["headers"]).get(b"content-type", b"").startswith(_EVENTS):
                    added.append((b"x-accel-buffering", b"no"))  # or nginx holds them back
                if not given:  # Serve's proxy sends one along, and puts it on the answer itself
                    added.append((b"x-request-id", request_id.encode()))
                message["headers"] = [*message["headers"], *added]
            await send(message)
            if refused:
                await send(last)

        try:
            takes_files = self._take_files.fullmatch(route_path(scope)) is not None
            bounded = _Bounded(receive, headers, self._limits, takes_files)
            with bound_contextvars(request_id=request_id):
                await self._app(scope, bounded, send_with_id)
        except ApiError as error:
            if status:
                raise  # the answer has begun; all that is left is to break it off
            await _answer(send_with_id, error, request_id)
        except Exception:
            log.exception("request failed", request_id=request_id, path=scope["path"])
            if not status:
                defect = ApiError(500, "internal_error", "something failed here; it is logged")
                await _answer(send_with_id, defect, request_id)
        finally:
            route = scope.get("route")
            tags = {
                "method": scope["method"],
                # Not the path: every asset would become a time series of its own.
                "route": getattr(route, "path", "unknown"),
                "status": str(status or 499),
            }
            HTTP_REQUESTS.inc(**tags)
            HTTP_REQUEST_SECONDS.observe(time.perf_counter() - started, **tags)


def route_path(scope: Scope) -> str:
    """The path as routes know it: below the application's `route_prefix`, if it has one."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class _Bounded:
    """A request's body, up to the bytes and within the seconds that its kind may take."""

    def __init__(
        self,
        receive: Receive,
        headers: dict[bytes, bytes],
        limits: RequestLimits,
        takes_files: bool,
    ) -> None:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        uploads = takes_files and kind in _UPLOADS
        self._most_bytes = (
            limits.max_upload_bytes + _FORM_BYTES if uploads else limits.max_body_bytes
        )
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._most_bytes:
            raise too_large("the body", self._most_bytes)
        self._receive = receive
        self._end = time.monotonic() + limits.upload_timeout_s
        self._received_bytes = 0
        self._complete = False
        self.refusal: ApiError | None = None
        """Why the rest of the body was not read."""

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()  # a disconnect, for which one may wait for long
        try:
            async with asyncio.timeout(max(0.0, self._end - time.monotonic())):
                message = await self._receive()
        except TimeoutError:
            self.refusal = ApiError(408, "upload_timeout", "the body took too long to arrive")
            raise self.refusal from None
        if message["type"] == "http.request":
            self._received_bytes += len(message.get("body", b""))
            if self._received_bytes > self._most_bytes:
                self.refusal = too_large("the body", self._most_bytes)
                raise self.refusal
            self._complete = not message.get("more_body", False)
        return message


async def _answer(send: Send, error: ApiError, request_id: str) -> None:
    for message in messages(error, request_id):
        await send(message)

"""What Serve's own HTTP proxy does around each request: a gateway that is lost says when to retry.

Left to itself the proxy says 500 and nothing else where the gateway's replica dies at a request,
and breaks a stream off without a word. The proxy of each node takes this in where the variables
of `PROXY_ENVIRONMENT` are set as Ray starts; it asks the gateway by gRPC then, as that does models.

Nor do clients give that proxy orders: by headers of its own it can be told to wait for ever, and to
let go on what nobody waits for, and one of them that is no UTF-8 is a 500.
"""

import json
from typing import Any

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from spark_ray.serving.errors import REQUEST_ID, ApiError, body, headers_of, messages
from spark_ray.serving.handles import MESSAGES_ENVIRONMENT

PROXY_ENVIRONMENT = {
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "spark_ray.serving.proxy:middlewares",
    "RAY_SERVE_PROXY_USE_GRPC": "1",
    **MESSAGES_ENVIRONMENT,
}

_ID = b"x-request-id"
_ORDERS = (
    b"x-request-timeout-seconds", b"x-request-disconnect-disabled", b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id", b"x-session-id",
)  # fmt: skip
_EVENTS = b"text/event-stream"
_RETRYABLE = (429, 503)


def middlewares() -> list[Middleware]:
    """For Serve, which calls it in each proxy."""
    return [Middleware(LostGateway)]


class LostGateway:
    """Ends an answer that the application behind it began and did not end, or never began."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope = {**scope, "headers": [each for each in scope["headers"] if not _is_order(*each)]}
        began = ended = streams = False

        async def watched(message: Message) -> None:
            nonlocal began, ended, streams
            if message["type"] == "http.response.start":
                began = True
                streams = dict(message["headers"]).get(b"content-type", b"").startswith(_EVENTS)
                message = _with_retry_after(message)
            elif message["type"] == "http.response.body":
                ended = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive, watched)
        request_id = _request_id(scope)
        if not began:
            start, last = messages(_lost(), request_id)
            await send({**start, "headers": [*start["headers"], (_ID, request_id.encode())]})
            await send(last)
        elif streams and not ended:
            event = f"event: error\ndata: {json.dumps(body(_lost(), request_id))}\n\n"
            await send({"type": "http.response.body", "body": event.encode()})


def _is_order(name: bytes, value: bytes) -> bool:
    """Whether it is for Serve's proxy, or an id that it could not read, for which it makes one."""
    return name in _ORDERS or (name == _ID and REQUEST_ID.fullmatch(value) is None)


def _lost() -> ApiError:
    return ApiError(
        503, "replica_lost", "the gateway was lost while it answered; try again", retry_after_s=1.0
    )


def _with_retry_after(message: Message) -> Message:
    """The proxy says 503 without it where there is no gateway at all."""
    headers: list[Any] = list(message["headers"])
    if message["status"] in _RETRYABLE and b"retry-after" not in dict(headers):
        added = headers_of(_lost())["Retry-After"].encode()
        return {**message, "headers": [*headers, (b"retry-after", added)]}
    return message


def _request_id(scope: Scope) -> str:
    """That of the client, or the one that the proxy has put among the headers."""
    return dict(scope["headers"]).get(_ID, b"").decode("latin-1")

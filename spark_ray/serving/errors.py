"""Errors of the HTTP interface: a status, a code for programs, a sentence for people."""

import json
import re
from typing import Any

from spark_ray.core.errors import (
    ConfigError,
    DatasetError,
    MediaError,
    MediaLimitExceeded,
    MediaTimeout,
    ModelError,
    NothingSaid,
    RegistryUnavailable,
    SparkRayError,
    StorageError,
)
from spark_ray.core.logging import get_logger
from spark_ray.serving.shown import without_paths

log = get_logger(__name__)

TUS_VERSION = "1.0.0"
"""Of the protocol for resumable uploads."""

REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""What clients may call their requests."""


class ApiError(SparkRayError):
    """An answer other than success."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param
        self.retry_after_s = retry_after_s

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuilt, (self.status, self.code, str(self), self.param, self.retry_after_s)


def _rebuilt(
    status: int, code: str, message: str, param: str | None, retry_after_s: float | None
) -> ApiError:
    return ApiError(status, code, message, param=param, retry_after_s=retry_after_s)


def unauthorized() -> ApiError:
    return ApiError(
        401,
        "invalid_api_key",
        "no valid API key; send 'Authorization: Bearer KEY' with one that 'spark-ray keys create' "
        "made and nobody has revoked",
    )


def forbidden(*scopes: str) -> ApiError:
    wanted = " or ".join(map(repr, scopes))
    return ApiError(403, "missing_scope", f"this key lacks the scope {wanted}")


def not_found(kind: str, name: str) -> ApiError:
    """Also for what belongs to somebody else: that it exists is not the caller's to know."""
    return ApiError(404, f"{kind}_not_found", f"there is no {kind} {name!r}")


def too_large(what: str, limit: int) -> ApiError:
    return ApiError(413, "too_large", f"{what} is larger than the {limit:,} bytes allowed here")


def overloaded(what: str) -> ApiError:
    return ApiError(
        503, "overloaded", f"{what} has no room for more requests; try again", retry_after_s=1.0
    )


_STATUS: tuple[tuple[type[SparkRayError], int, str], ...] = (
    (MediaLimitExceeded, 413, "media_too_large"),
    (MediaTimeout, 422, "media_timeout"),
    (MediaError, 422, "unusable_media"),
    (ModelError, 404, "model_not_found"),
    (DatasetError, 404, "dataset_not_found"),
    (ConfigError, 400, "invalid_request"),
)
# Their own words are for operators: they tell addresses inside, to whoever asks, even without key.
_OUTAGES: tuple[tuple[type[SparkRayError], str, str], ...] = (
    (RegistryUnavailable, "registry_unavailable", "the model registry does not answer; try again"),
    (StorageError, "storage_unavailable", "the server can't reach its storage now; try again"),
)


def as_api_error(error: SparkRayError) -> ApiError:
    """What a mistake of the user's, found deep in the house, is called over HTTP."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, NothingSaid):
        # Its own words are for who builds a dataset, and can change the model's settings.
        return ApiError(422, "nothing_said", "the model has no words for this clip")
    for kind, code, said in _OUTAGES:
        if isinstance(error, kind):
            log.error("outage", code=code, error=str(error))
            return ApiError(503, code, said, retry_after_s=1.0)
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return ApiError(status, code, without_paths(str(error)))
    return ApiError(400, "invalid_request", without_paths(str(error)))


def body(error: ApiError, request_id: str) -> dict[str, Any]:
    """In the shape of OpenAI's errors, which its clients know how to raise."""
    kind = "invalid_request_error" if error.status < 500 else "server_error"
    return {
        "error": {
            "message": str(error),
            "type": kind,
            "code": error.code,
            "param": error.param,
            "request_id": request_id,
        }
    }


def headers_of(error: ApiError) -> dict[str, str]:
    """Headers that go with an error."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if error.status == 412:
        headers["Tus-Version"] = TUS_VERSION
    return headers


def messages(error: ApiError, request_id: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The whole answer as ASGI sends it: its start, and its body."""
    headers = {**headers_of(error), "Content-Type": "application/json"}
    start = {
        "type": "http.response.start",
        "status": error.status,
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    data = json.dumps(body(error, request_id)).encode()
    return start, {"type": "http.response.body", "body": data}

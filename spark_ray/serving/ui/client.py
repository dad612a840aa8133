"""The HTTP interface as the pages use it: as any other client would, with the visitor's key."""

import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2 as httpx

from spark_ray.core.errors import SparkRayError

Params = Mapping[str, Any]

_MOST_EVENT_CHARS = 4 << 20


class ApiProblem(SparkRayError):
    """The server said no, or nothing. `status` is 0 where it could not be reached."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Api:
    """The server, asked with one key."""

    def __init__(self, client: httpx.AsyncClient, key: str) -> None:
        self._client = client
        self._headers = {"Authorization": f"Bearer {key}"}

    async def get(self, path: str, params: Params | None = None) -> Any:
        """
        Raises:
            ApiProblem: the server said no.
        """
        return (await self._send("GET", path, params=_given(params))).json()

    async def text(self, path: str, params: Params | None = None) -> str:
        """
        Raises:
            ApiProblem: the server said no.
        """
        return (await self._send("GET", path, params=_given(params))).text

    async def data(self, path: str) -> bytes:
        """
        Raises:
            ApiProblem: the server said no.
        """
        return (await self._send("GET", path)).content

    async def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """
        Raises:
            ApiProblem: the server said no.
        """
        return (await self._send("POST", path, json=body)).json()

    async def delete(self, path: str) -> None:
        """
        Raises:
            ApiProblem: the server said no.
        """
        await self._send("DELETE", path)

    async def upload(self, file: Path) -> dict[str, Any]:
        """A file as an asset.

        Raises:
            ApiProblem: the server said no.
        """
        with file.open("rb") as opened:
            files = {"file": ("file", opened, "application/octet-stream")}
            answer = await self._send("POST", "/v1/assets", files=files)
        asset: dict[str, Any] = answer.json()
        return asset

    async def events(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> AsyncIterator[tuple[str, Any]]:
        """Server-sent events: name and data of each, until the stream ends.

        Raises:
            ApiProblem: the server said no, before or within the stream.
        """
        try:
            async with self._client.stream(
                method, path, headers=self._headers, json=body
            ) as answer:
                if answer.status_code >= 400:
                    await answer.aread()
                    raise _problem(answer)
                name = "message"
                async for line in answer.aiter_lines():
                    if len(line) > _MOST_EVENT_CHARS:
                        raise ApiProblem(0, "the server sent an event that is too long")
                    if line.startswith("event: "):
                        name = line.removeprefix("event: ")
                    elif line.startswith("data: "):
                        data = json.loads(line.removeprefix("data: "))
                        if name == "error":
                            raise ApiProblem(0, data["error"]["message"])
                        yield name, data
                        name = "message"
        except httpx.HTTPError as error:
            raise _unreachable(error) from error

    async def _send(self, method: str, path: str, **sent: Any) -> httpx.Response:
        try:
            answer = await self._client.request(method, path, headers=self._headers, **sent)
        except httpx.HTTPError as error:
            raise _unreachable(error) from error
        if answer.status_code >= 400:
            raise _problem(answer)
        return answer


def _given(params: Params | None) -> dict[str, Any]:
    return {name: value for name, value in (params or {}).items() if value is not None}


def _problem(answer: httpx.Response) -> ApiProblem:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"the server answered with status {answer.status_code}"
    return ApiProblem(answer.status_code, message)


def _unreachable(error: httpx.HTTPError) -> ApiProblem:
    return ApiProblem(0, f"the server can't be reached ({type(error).__name__}); try again")

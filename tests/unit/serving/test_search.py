"""Indices of embeddings: made once, in the background, and held in a bounded number."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError

from spark_ray.serving import search
from spark_ray.serving.messages import Embedded, ServedModel
from spark_ray.serving.search import SearchServer
from spark_ray.serving.settings import ServeSettings

REQUEST: ContextVar[str] = ContextVar("request", default="none")
Scenario = Callable[[SearchServer], Coroutine[Any, Any, Any]]


@cache
def samples(dataset: str) -> Any:
    """As the library does: the same object for as long as the version is the same."""
    return SimpleNamespace(version=SimpleNamespace(location=f"/sets/{dataset}/v1"))


class Made:
    """Stands for the making of indices; records in which request's context each was made."""

    def __init__(self) -> None:
        self.requests: list[str] = []

    async def __call__(self, samples: Any, model: str, reference: str | None) -> Any:
        self.requests.append(REQUEST.get())
        await asyncio.sleep(0)
        return SimpleNamespace(nearest=lambda query, limit: [], samples=samples)


def played(folder: Path, made: Made, scenario: Scenario) -> Any:
    async def play() -> Any:
        server = SearchServer(ServeSettings.from_values(state=str(folder)).located(), {})
        server._make = made  # type: ignore[method-assign, assignment]
        server._library = SimpleNamespace(index=samples)  # type: ignore[assignment]
        return await scenario(server)

    return asyncio.run(play())


async def ask(server: SearchServer, dataset: str) -> None:
    assert await server.find(dataset, "seer", None, [1.0], 3) == ([], "v1")


def test_an_index_that_was_broken_off_is_made_anew(tmp_path: Path) -> None:
    async def scenario(server: SearchServer) -> None:
        task = server._index(samples("films"), "seer", None)
        task.cancel()
        await asyncio.wait([task])
        await ask(server, "films")
        await ask(server, "films")

    made = Made()
    played(tmp_path, made, scenario)
    assert len(made.requests) == 1, "the first was broken off before it began"


def test_an_index_does_not_end_with_the_request_that_was_first(tmp_path: Path) -> None:
    async def scenario(server: SearchServer) -> None:
        REQUEST.set("first")
        await ask(server, "films")

    made = Made()
    played(tmp_path, made, scenario)
    assert made.requests == ["none"]


def test_a_version_that_was_removed_and_published_anew_is_embedded_anew(tmp_path: Path) -> None:
    async def scenario(server: SearchServer) -> None:
        await ask(server, "films")
        await ask(server, "films")
        samples.cache_clear()
        await ask(server, "films")

    made = Made()
    played(tmp_path, made, scenario)
    assert len(made.requests) == 2


def test_the_indices_asked_for_last_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "_MOST_HELD", 2)

    async def scenario(server: SearchServer) -> list[str]:
        for dataset in ("films", "news", "films", "ads", "ads"):
            await ask(server, dataset)
        return [location for location, _ in server._making]

    assert played(tmp_path, Made(), scenario) == ["/sets/films/v1", "/sets/ads/v1"]


def test_a_busy_model_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the embedding of a large dataset would begin anew each time."""
    monkeypatch.setattr(search, "_BUSY_S", 0.0)
    asked: list[int] = []
    right = Embedded(vectors=[[1.0]], model=ServedModel(name="seer"))

    async def embed(clips: list[Any]) -> Embedded:
        asked.append(len(clips))
        if len(asked) < 3:
            raise BackPressureError(num_queued_requests=9, max_queued_requests=8)
        return right

    handle = SimpleNamespace(embed_clips=SimpleNamespace(remote=embed))
    assert asyncio.run(search._embedded(handle, [])) == right
    assert len(asked) == 3

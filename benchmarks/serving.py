"""What the gateway adds to a model that does nothing, and what LitServe takes for the same."""

import asyncio
import logging
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import ray
from ray import serve
from starlette.requests import Request

from benchmarks.harness import Result, ratio_result
from benchmarks.served import litserve_served
from spark_ray.serving.app import REPLICA_ENVIRONMENT
from spark_ray.serving.database import Database
from spark_ray.serving.gateway import Gateway
from spark_ray.serving.handles import by_grpc
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import Embedded, ServedModel
from spark_ray.serving.proxy import PROXY_ENVIRONMENT
from spark_ray.serving.settings import ServeSettings

_PORT = 18_437
_LITSERVE_PORT = 18_447
_GOAL_ADDED_S = 0.0015
_AT_ONCE = 16
_VECTOR = [[1.0]]


class Nothing:
    """A model whose answer is known before it is asked."""

    async def embed_texts(self, texts: list[str]) -> Embedded:
        return Embedded(vectors=_VECTOR * len(texts), model=ServedModel(name="nothing"))


class Bare:
    """The same without a gateway: a deployment that answers HTTP by itself."""

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        return {"data": [{"embedding": [1.0]}], "model": body["model"]}


class Chain:
    """What Serve itself takes where one deployment asks another, as a gateway asks a model."""

    def __init__(self, model: Any) -> None:
        self._embed = by_grpc(model).embed_texts

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await request.json()
        embedded = await self._embed.remote([body["input"]])
        return {"data": [{"embedding": embedded.vectors[0]}], "model": body["model"]}


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Interleaved: one after the other for latency, sixteen at a time for throughput."""
    rounds, requests = (2, 50) if quick else (7, 600)
    with tempfile.TemporaryDirectory() as folder, litserve_served(_LITSERVE_PORT) as peer:
        secret = _serve(Path(folder))
        try:
            urls = {
                "gateway": f"http://127.0.0.1:{_PORT}/v1/embeddings",
                "bare": f"http://127.0.0.1:{_PORT}/bare",
                "chain": f"http://127.0.0.1:{_PORT}/chain",
            }
            if peer is not None:
                urls["litserve"] = peer
            latency: dict[str, list[float]] = {name: [] for name in urls}
            seconds: dict[str, list[float]] = {name: [] for name in urls}
            for turn in range(rounds + 1):
                for name, url in urls.items():
                    one = asyncio.run(_latency_s(url, secret, requests // 4))
                    many = asyncio.run(_seconds_each(url, secret, requests))
                    if turn:  # the first warms up
                        latency[name].append(one)
                        seconds[name].append(many)
        finally:
            serve.shutdown()
            ray.shutdown()
    yield from _results(latency, seconds)


def _results(latency: dict[str, list[float]], seconds: dict[str, list[float]]) -> Iterator[Result]:
    added = [g - b for g, b in zip(latency["gateway"], latency["bare"], strict=True)]
    latency_ms = {name: [round(1000 * s, 3) for s in found] for name, found in latency.items()}
    rates = {name: [round(1 / s, 1) for s in found] for name, found in seconds.items()}
    yield ratio_result(
        "serving-latency", "a bare Serve deployment, and 1.5 ms", 1.0,
        latency["gateway"], [b + _GOAL_ADDED_S for b in latency["bare"]],
        latency_ms=latency_ms, added_ms=round(1000 * statistics.median(added), 3),
    )  # fmt: skip
    yield ratio_result(
        "serving-throughput", "a bare Serve deployment (seconds a request)", 1.25,
        seconds["gateway"], seconds["bare"],
        at_once=_AT_ONCE, requests_a_second=rates,
    )  # fmt: skip
    peers = {"chain": "two bare Serve deployments, one asking the other"}
    if "litserve" in latency:
        peers["litserve"] = "LitServe, which asks for no key"
    for name, peer in peers.items():
        yield ratio_result(
            f"serving-{name}-latency", peer, None, latency["gateway"], latency[name],
            latency_ms=latency_ms,
        )  # fmt: skip
        yield ratio_result(
            f"serving-{name}-throughput", f"{peer} (seconds a request)", None,
            seconds["gateway"], seconds[name],
            at_once=_AT_ONCE, requests_a_second=rates,
        )  # fmt: skip


def _serve(folder: Path) -> str:
    """Bring all up, with Serve set as our application sets it; the secret of a key."""
    os.environ.update(PROXY_ENVIRONMENT)
    ray.init(
        "local", num_cpus=2, log_to_driver=False, logging_level=logging.ERROR,
        include_dashboard=False,
    )  # fmt: skip
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    quiet = {"enable_access_log": False, "log_level": "ERROR"}
    serve.start(http_options={"host": "127.0.0.1", "port": _PORT}, logging_config=quiet)
    settings = ServeSettings.from_values(
        state=str(folder), models={"nothing": {"reference": "/nothing"}}
    ).located()
    _, secret = KeyStore(Database(settings.database)).create(
        "benchmark", ["infer"], requests_per_minute=10_000_000, max_concurrent=1000, lifetime_s=None
    )
    actor = {"num_cpus": 0.1, "runtime_env": {"env_vars": REPLICA_ENVIRONMENT}}
    small: dict[str, Any] = {"ray_actor_options": actor, "max_ongoing_requests": 256}
    nothing, gateway, bare, chain = (
        serve.deployment(kind).options(**small) for kind in (Nothing, Gateway, Bare, Chain)
    )
    model = nothing.bind()
    application = gateway.bind(settings, model, {"nothing": model}, model, None)
    serve.run(application, name="gateway", route_prefix="/")
    serve.run(bare.bind(), name="bare", route_prefix="/bare")
    serve.run(chain.bind(nothing.bind()), name="chain", route_prefix="/chain")
    return secret


def _client(secret: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(headers={"Authorization": f"Bearer {secret}"}, timeout=60)


async def _ask(client: httpx.AsyncClient, url: str) -> None:
    answer = await client.post(url, json={"model": "nothing", "input": "nothing at all"})
    answer.raise_for_status()
    assert answer.json()["data"][0]["embedding"] == [1.0]


async def _latency_s(url: str, secret: str, requests: int) -> float:
    """The median of requests one after the other."""
    found = []
    async with _client(secret) as client:
        for _ in range(requests):
            started = time.perf_counter()
            await _ask(client, url)
            found.append(time.perf_counter() - started)
    return statistics.median(found)


async def _seconds_each(url: str, secret: str, requests: int) -> float:
    """Seconds a request where sixteen are on their way at any time."""
    async with _client(secret) as client:
        left = iter(range(requests))

        async def ask_on() -> None:
            for _ in left:
                await _ask(client, url)

        started = time.perf_counter()
        await asyncio.gather(*(ask_on() for _ in range(_AT_ONCE)))
        return (time.perf_counter() - started) / requests

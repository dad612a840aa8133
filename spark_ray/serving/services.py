"""What the routes of the gateway share: who asks, which media, which model, and how calls fail."""

import asyncio
import io
import threading
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeVar

import httpx2 as httpx
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.serve.exceptions import (
    BackPressureError,
    DeploymentUnavailableError,
    RequestCancelledError,
)

from spark_ray.core.errors import SparkRayError
from spark_ray.core.logging import get_logger
from spark_ray.serving.assets import AssetStore
from spark_ray.serving.catalog import Catalog, Target
from spark_ray.serving.database import Asset, Database
from spark_ray.serving.dataset_names import DatasetNames
from spark_ray.serving.errors import ApiError, as_api_error, overloaded
from spark_ray.serving.fetch import Fetcher
from spark_ray.serving.jobs import JobBook
from spark_ray.serving.keys import PREFIX, Caller, KeyStore
from spark_ray.serving.messages import Decoded, MediaFile, ModelFacts, Timing
from spark_ray.serving.schemas import Health
from spark_ray.serving.settings import ServeSettings
from spark_ray.serving.throttle import Throttle
from spark_ray.serving.tokens import TokenVerifier

log = get_logger(__name__)

Result = TypeVar("Result")

NOT_STARTED = "not_started"
_END = object()
_TRANSFERS = 32
_OUTSIDE = 16
_NODE_TIMEOUT_S = 5.0


@dataclass
class Handles:
    """The deployments behind the gateway."""

    decoder: Any
    models: Mapping[str, Any]
    search: Any = None


class Services:
    """One replica's connections and counters."""

    def __init__(self, settings: ServeSettings, handles: Handles) -> None:
        self.settings, self.handles = settings, handles
        self.database = Database(settings.database)
        self.keys = KeyStore(self.database)
        self.tokens: TokenVerifier | None = None
        if settings.tokens is not None:
            self.tokens = TokenVerifier(settings.tokens, self.database)
        self.throttle = Throttle(settings.gateway_replicas)
        self.assets = AssetStore(settings.state, self.database, settings.limits)
        self.fetcher = Fetcher(
            settings.allowed_hosts,
            settings.allowed_buckets,
            settings.limits.max_upload_bytes,
            settings.limits.upload_timeout_s,
        )
        self.catalog = Catalog(settings.models, handles.models, settings.alias_lifetime_s)
        self.jobs = JobBook(settings, self.database)
        self.datasets = DatasetNames(settings.datasets, str(settings.jobs_output))
        # One for all times: each would load the certificates of the machine anew, for plain HTTP.
        self.nodes = httpx.AsyncClient(timeout=_NODE_TIMEOUT_S, trust_env=False)
        """Asks the cluster's nodes, which no proxy stands before."""
        # A slow host must not hold the threads that look up keys.
        self._transfers = ThreadPoolExecutor(_TRANSFERS, thread_name_prefix="transfer")
        # Nor must a registry, a bucket or a node that does not answer.
        self._outside = ThreadPoolExecutor(_OUTSIDE, thread_name_prefix="outside")
        self._facts: dict[tuple[str, str | None], ModelFacts] = {}
        self.looking: asyncio.Task[Health] | None = None
        """For models that do not answer; one look for all who ask, since they need no key."""

    async def caller(self, secret: str) -> Caller | None:
        """Whose key or token this is; what has to be asked is asked in a thread, now and then."""
        store: KeyStore | TokenVerifier = self.keys
        if self.tokens is not None and not secret.startswith(PREFIX):
            store = self.tokens
        known = store.remembered(secret)
        if known is not None:
            return known[0]
        return await asyncio.to_thread(store.caller, secret)

    async def store(self, owner: str, file: io.IOBase | Any) -> Asset:
        """A complete asset of an open file."""
        return await self._copied(owner, iter(lambda: file.read(1 << 20), b""))

    async def fetch(self, owner: str, url: str) -> Asset:
        """A complete asset of what is at an address."""
        return await self._copied(owner, self.fetcher.chunks(url))

    @asynccontextmanager
    async def borrowed(self, arriving: Awaitable[Asset]) -> AsyncIterator[Asset]:
        """What `store` or `fetch` makes, for the block alone: the answer does not name it."""
        asset = await arriving
        try:
            yield asset
        finally:
            await asyncio.to_thread(self.assets.delete, asset)

    @asynccontextmanager
    async def kept(self, arriving: Awaitable[Asset]) -> AsyncIterator[Asset]:
        """What `store` or `fetch` makes, unless the block fails: nobody would hear of it."""
        asset = await arriving
        try:
            yield asset
        except BaseException:
            await asyncio.to_thread(self.assets.delete, asset)
            raise

    async def _copied(self, owner: str, chunks: Iterator[bytes]) -> Asset:
        """Nothing is kept of what breaks off: nobody has heard of its asset."""
        gone = threading.Event()

        def copy() -> Asset:
            first = next(chunks, b"")  # so that nothing is begun for a place that is not allowed
            asset = self.assets.begin(owner)
            try:
                with self.assets.part(asset, 0) as part:
                    for chunk in chain((first,), chunks):
                        _check_wanted(gone)
                        part.write(chunk)
                asset = self.assets.complete(asset)
                _check_wanted(gone)
            except BaseException:
                self.assets.delete(asset)
                raise
            return asset

        try:
            return await asyncio.get_running_loop().run_in_executor(self._transfers, copy)
        except asyncio.CancelledError:
            gone.set()
            raise

    async def outside(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """What a function returns that asks others, which may be slow to say that they are gone."""
        loop = asyncio.get_running_loop()
        run = copy_context().run  # what it logs bears the request's id
        return await loop.run_in_executor(self._outside, run, function, *arguments)

    async def asset(self, owner: str, asset_id: str) -> Asset:
        """
        Raises:
            ApiError: the owner has no such asset.
        """
        return await asyncio.to_thread(self.assets.get, asset_id, owner)

    async def decode(self, asset: Asset, target: Target) -> Decoded:
        """The clip of an asset, sampled as that model's own clips were.

        Raises:
            ApiError: it can't be used.
        """
        location = self.assets.location(asset)
        assert asset.sha256 is not None
        file = MediaFile.model_validate(
            {
                "location": location,
                "kind": asset.kind,
                "sha256": asset.sha256,
                "decoding": (await self.facts(target)).decoding,
            }
        )
        started = time.perf_counter()
        decoded: Decoded = await self.call(self.handles.decoder.decode.remote(file), "the decoder")
        # What was not decoding was waiting, here or in the queue of the deployment.
        return decoded.model_copy(update={"seconds": time.perf_counter() - started})

    async def facts(self, target: Target) -> ModelFacts:
        """What is known of a model; a version is asked once."""
        key = (target.name, target.reference)
        if key not in self._facts:
            facts: ModelFacts = await self.call(
                target.model.facts.remote(), f"model {target.name!r}"
            )
            self._facts[key] = facts
        return self._facts[key]

    async def ask(self, response: Any, target: Target, before_s: float = 0.0) -> Any:
        """What a model answers, with the time for which nobody in it can account as waiting for it.

        Its timing also counts `before_s` seconds of calls that went before.

        Raises:
            ApiError: as of `call`.
        """
        started = time.perf_counter()
        answer = await self.call(response, f"model {target.name!r}")
        passed_s = before_s + time.perf_counter() - started
        return answer.after(Timing(queue=max(0.0, passed_s - answer.timing.total)))

    async def call(self, response: Any, what: str, timeout_s: float | None = None) -> Any:
        """What a deployment answers, in time. Where nobody waits for it any more, it is stopped.

        Raises:
            ApiError: it has no room, is gone, takes too long, or found a mistake of the caller's.
        """
        try:
            async with asyncio.timeout(timeout_s or self.settings.limits.request_timeout_s):
                return await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        except Exception as error:
            response.cancel()
            raise self.failure(error, what) from error

    async def stream(self, pieces: Any, what: str) -> AsyncIterator[Any]:
        """What a deployment streams; errors as of `call`. Where nobody reads on, it is stopped."""
        end = asyncio.get_running_loop().time() + self.settings.limits.request_timeout_s
        complete = False
        try:
            while not complete:
                # Around one piece at a time: another task may read the next, and a timeout
                # interrupts the task that it began in.
                async with asyncio.timeout_at(end):
                    piece = await anext(pieces, _END)
                complete = piece is _END
                if not complete:
                    yield piece
        except Exception as error:
            raise self.failure(error, what) from error
        finally:
            if not complete:
                pieces.cancel()

    def failure(self, error: Exception, what: str) -> Exception:
        """An error of Ray's as one of ours; others, which are defects, as they are."""
        cause = error.cause if isinstance(error, RayTaskError) else error
        if isinstance(cause, SparkRayError):
            return as_api_error(cause)
        if isinstance(error, TimeoutError):
            seconds = self.settings.limits.request_timeout_s
            return ApiError(504, "timeout", f"{what} did not answer within {seconds:g} s")
        if isinstance(cause, BackPressureError):
            return overloaded(what)
        if isinstance(cause, DeploymentUnavailableError):
            return ApiError(
                503, NOT_STARTED, f"{what} could not be started; the server's log says why",
                retry_after_s=30.0,
            )  # fmt: skip
        lost = (RayActorError, RequestCancelledError)
        if isinstance(error, lost) or (
            isinstance(error, RayError) and not isinstance(error, RayTaskError)
        ):
            log.warning("lost", what=what, error=type(error).__name__)
            return ApiError(
                503, "replica_lost", f"{what} was lost while it answered; try again",
                retry_after_s=1.0,
            )  # fmt: skip
        return error


def _check_wanted(gone: threading.Event) -> None:
    if gone.is_set():
        raise RuntimeError("its caller has gone")  # for the thread alone; nobody is told


async def together(work: Iterable[Coroutine[Any, Any, Result]]) -> list[Result]:
    """All results, in their order. Where one fails, the others are broken off."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()

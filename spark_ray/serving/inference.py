"""The deployment that holds Apotheon.

A replica runs one forward pass at a time, in a thread, so that its event loop goes on taking
requests, notices those whose caller has gone, and answers health checks meanwhile.
"""

import asyncio
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from ray import serve
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from spark_ray.apotheon.processing import PreparedClip
from spark_ray.core.anatomy import Task
from spark_ray.core.logging import configure_logging
from spark_ray.core.schema import Clip
from spark_ray.models.apotheon import Apotheon, find_weights
from spark_ray.models.registered import SCHEME, pinned_reference
from spark_ray.models.training_record import TRAINING_RECORD, TrainingRecord
from spark_ray.models.weights import Weights
from spark_ray.monitoring.logs import serve_ids
from spark_ray.monitoring.metrics import observe_call
from spark_ray.serving.catalog import DEFAULT_ALIAS
from spark_ray.serving.errors import ApiError
from spark_ray.serving.messages import (
    Decoded,
    Embedded,
    ModelFacts,
    ServedModel,
    Timing,
    Written,
)
from spark_ray.serving.settings import ModelSettings

Result = TypeVar("Result")

SILENT_S = 60.0
"""A model that has answered nobody for so long is asked by its health check."""

_GONE = RuntimeError("its caller has gone")


@dataclass
class Pending:
    """A request on its way through a batch. `cancelled` once its caller has gone."""

    clip: PreparedClip
    task: Task
    max_new_tokens: int
    received: float = field(default_factory=time.perf_counter)
    cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def shape(self) -> tuple[Any, ...]:
        """Requests of one shape go through one forward pass: nothing of it is padding."""
        return (self.task, self.clip.pixels.shape, self.clip.mel.shape)


class Worker:
    """One thread for one model's arithmetic, and a door at which requests wait for their batch.

    Serve forms a batch soon after its first request came, even while the batch before is being
    worked on: requests that trickle in would be worked on by ones and twos. Those that wait at the
    door until the thread is free go into one batch.
    """

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._door = asyncio.Lock()

    async def free(self) -> None:
        """Returns when no batch is being worked on."""
        async with self._door:
            pass

    async def run_batch(self, function: Callable[[], Result]) -> Result:
        async with self._door:
            return await self.run(function)

    async def run(self, function: Callable[[], Result]) -> Result:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)


class _StopWhere(StoppingCriteria):
    """Ends the texts whose caller has gone, or that are as long as they may be."""

    def __init__(self, requests: Sequence[Pending]) -> None:
        self._requests = requests

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        written = input_ids.shape[1] - 1  # the start token
        done = [r.cancelled.is_set() or written >= r.max_new_tokens for r in self._requests]
        return torch.tensor(done, device=input_ids.device)


@dataclass
class _Loaded:
    """A model with what answers say of it."""

    apotheon: Apotheon
    facts: ModelFacts
    size_bytes: int

    @property
    def served(self) -> ServedModel:
        return self.facts.served


class ApotheonServer:
    """Captions, transcripts and embeddings of Apotheon, in any of its versions."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self, name: str, settings: ModelSettings
    ) -> None:
        configure_logging(ids=serve_ids)
        self._name = name
        self._memory_bytes = settings.memory_bytes
        self._worker = Worker("apotheon")
        self._answered = float("-inf")
        size_batches(self._write, settings)
        assert settings.reference is not None
        self._usual = settings.reference
        if self._usual.startswith(SCHEME):
            self._usual = await asyncio.to_thread(
                pinned_reference, f"{self._usual}@{DEFAULT_ALIAS}", "model"
            )
        # A replica counts as started once its usual model has answered.
        await self.check_health()

    @serve.multiplexed(max_num_models_per_replica=-1)  # as many as `_make_room` has room for
    async def model(self, reference: str) -> _Loaded:
        weights = await asyncio.to_thread(find_weights, reference, setting="model")
        await self._make_room(weights.size_bytes)
        return await asyncio.to_thread(_load_apotheon, self._name, weights)

    async def _make_room(self, size_bytes: int) -> None:
        """Give up models until one of that size fits, first those that were asked longest ago.

        Requests on their way keep the one that they began with until they are answered. Serve
        bounds a number of models alone, so this reaches for its cache, which is locked meanwhile.

        Raises:
            ApiError: it would not fit by itself.
        """
        cache = getattr(self, "__serve_multiplex_wrapper")
        sizes = [loaded.size_bytes for loaded in cache.models.values()]
        # A new version is loaded beside the one that still answers.
        most_bytes = self._memory_bytes or 2 * max(size_bytes, *sizes, 0)
        if size_bytes > most_bytes:
            raise ApiError(
                422,
                "model_too_large",
                f"this version of {self._name!r} takes {size_bytes:,} bytes, more than the "
                f"{most_bytes:,} of its memory_bytes",
                param="model",
            )
        while sum(loaded.size_bytes for loaded in cache.models.values()) > most_bytes - size_bytes:
            await cache.unload_model_lru()
            cache._push_multiplexed_replica_info = True  # so that it is asked of others

    async def check_health(self) -> None:
        """Ask the version that was asked last for a real answer, unless one was given lately.

        Behind many long texts the question would wait until a busy replica looks like a dead one.
        It is not always the version that it began with: that one may have been replaced, even
        deleted, and would be loaded again and again in place of one that somebody asks for.
        """
        if time.monotonic() - self._answered <= SILENT_S:
            return
        loaded = await self.model(self._usual)
        grey = loaded.apotheon.processor.prepare([np.full((64, 64, 3), 128, np.uint8)], [0.0], None)
        await self._worker.run(
            partial(_write_group, loaded, [Pending(grey, "caption", max_new_tokens=1)])
        )

    async def _loaded(self) -> _Loaded:
        """The version that the request names; only those of registered models do."""
        reference = serve.get_multiplexed_model_id() or self._usual
        loaded = await self.model(reference)
        self._usual = reference
        return loaded

    async def write(self, decoded: Decoded, task: Task, max_new_tokens: int) -> Written:
        """A caption or a transcript of a clip."""
        loaded = await self._loaded()
        started = time.perf_counter()
        clip = decoded.clip
        prepare = partial(loaded.apotheon.prepare, clip.frames, clip.frame_times, clip.audio)
        prepared = await asyncio.to_thread(prepare)
        pending = Pending(prepared, task, max_new_tokens)
        preprocess = decoded.seconds + pending.received - started
        try:
            await self._worker.free()
            written = await self._write(pending)
        except asyncio.CancelledError:
            pending.cancelled.set()
            raise
        if isinstance(written, Exception):
            raise written
        return written.after(Timing(preprocess=preprocess))

    @serve.batch()
    async def _write(self, requests: list[Pending]) -> list[Written | Exception]:
        loaded = await self._loaded()
        groups: dict[tuple[Any, ...], list[Pending]] = defaultdict(list)
        for request in requests:
            groups[request.shape].append(request)
        answers: dict[int, Written | Exception] = {}
        for group in groups.values():
            answers |= await self._worker.run_batch(partial(_answers, loaded, group))
        if any(isinstance(answer, Written) for answer in answers.values()):
            self._answered = time.monotonic()
        return [answers.get(id(request), _GONE) for request in requests]

    async def stream(
        self, decoded: Decoded, task: Task, max_new_tokens: int
    ) -> AsyncIterator[str | Written]:
        """The text as it is written, piece by piece, and at the end the whole."""
        loaded = await self._loaded()
        started = time.perf_counter()
        clip = decoded.clip
        prepared = await asyncio.to_thread(
            loaded.apotheon.prepare, clip.frames, clip.frame_times, clip.audio
        )
        pending = Pending(prepared, task, max_new_tokens)
        preprocess = decoded.seconds + pending.received - started
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        streamer = _QueueStreamer(loaded.apotheon, pieces)
        writing = asyncio.ensure_future(
            self._worker.run(partial(_write_group, loaded, [pending], streamer))
        )
        writing.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (piece := await pieces.get()) is not None:
                if piece:
                    yield piece
            (written,) = await writing
            self._answered = time.monotonic()
            _observe([written], task)
            yield written.after(Timing(preprocess=preprocess))
        finally:
            pending.cancelled.set()
            writing.cancel()  # if it still waits for the thread, nothing of it is begun

    async def embed_texts(self, texts: list[str]) -> Embedded:
        """
        Raises:
            ApiError: a text is longer than the model reads.
        """
        loaded = await self._loaded()
        processor = loaded.apotheon.processor
        tokens = await asyncio.to_thread(lambda: list(map(processor.count_tokens, texts)))
        if max(tokens) > processor.max_text_tokens:
            raise ApiError(
                400,
                "context_length_exceeded",
                f"a text has {max(tokens):,} tokens, and model {self._name!r} reads "
                f"{processor.max_text_tokens:,}; shorten it",
            )
        embedded = await self._embed(loaded, partial(loaded.apotheon.embed_texts, texts))
        return embedded.model_copy(update={"tokens": sum(tokens)})

    async def embed_clips(self, clips: list[Clip]) -> Embedded:
        loaded = await self._loaded()

        def embed() -> np.ndarray:
            prepared = [loaded.apotheon.prepare(c.frames, c.frame_times, c.audio) for c in clips]
            return loaded.apotheon.embed_clips(prepared)

        return await self._embed(loaded, embed)

    async def _embed(self, loaded: _Loaded, embed: Callable[[], np.ndarray]) -> Embedded:
        received = time.perf_counter()

        def run() -> tuple[np.ndarray, float, float]:
            started = time.perf_counter()
            vectors = embed()
            model_s = time.perf_counter() - started
            observe_call(loaded.served.name, "embed", len(vectors), model_s)
            return vectors, started - received, model_s

        vectors, queue, model = await self._worker.run(run)
        self._answered = time.monotonic()
        return Embedded(
            vectors=vectors.tolist(), model=loaded.served, timing=Timing(queue=queue, model=model)
        )

    async def facts(self) -> ModelFacts:
        """Load the model that the request names, and say what it is."""
        return (await self._loaded()).facts


def size_batches(batched: Any, settings: ModelSettings) -> None:
    """Set at run time: the decorator is applied before there are settings."""
    batched.set_max_batch_size(settings.max_batch_size)
    batched.set_batch_wait_timeout_s(settings.batch_wait_s)


class _QueueStreamer(TextIteratorStreamer):
    """Hands finished pieces of text from the generating thread to the event loop.

    Together they are the text as it is told whole, which has no blanks before and after it.
    """

    def __init__(self, apotheon: Apotheon, pieces: "asyncio.Queue[str | None]") -> None:
        super().__init__(apotheon.processor.tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._pieces, self._loop = pieces, asyncio.get_running_loop()
        self._begun, self._blanks = False, ""

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        text = self._blanks + text if self._begun else text.lstrip()
        said = text.rstrip()
        self._begun, self._blanks = self._begun or said != "", text[len(said) :]
        self._loop.call_soon_threadsafe(self._pieces.put_nowait, said)


def _load_apotheon(name: str, weights: Weights) -> _Loaded:
    apotheon = Apotheon.from_weights(weights, setting="model")
    info = weights.info()
    # By the name that requests know it by: where its files lie is not theirs to see.
    served = ServedModel(name=name, version=info.revision, weights_hash=info.weights_hash)
    if not (weights.folder / TRAINING_RECORD).is_file():
        return _Loaded(apotheon, ModelFacts(served=served), weights.size_bytes)
    dataset = TrainingRecord.read(weights.folder).dataset
    served = served.model_copy(update={"dataset": dataset.name, "dataset_version": dataset.version})
    facts = ModelFacts(served=served, decoding=dataset.decoding)
    return _Loaded(apotheon, facts, weights.size_bytes)


def _answers(loaded: _Loaded, requests: Sequence[Pending]) -> dict[int, Written | Exception]:
    """Texts by the identity of their requests. What breaks one does not break the others.

    Those whose callers went away while the batch waited for the thread get none.
    """
    requests = [request for request in requests if not request.cancelled.is_set()]
    if not requests:
        return {}
    try:
        written = _write_group(loaded, requests)
        _observe(written, requests[0].task)
        return dict(zip(map(id, requests), written, strict=True))
    except Exception as error:  # noqa: BLE001 - raised in the request that it belongs to
        if len(requests) == 1:
            return {id(requests[0]): error}
        alone = [_answers(loaded, [request]) for request in requests]
        return {key: answer for answers in alone for key, answer in answers.items()}


def _write_group(
    loaded: _Loaded, requests: Sequence[Pending], streamer: Any = None
) -> list[Written]:
    """Texts for requests of one shape, in one forward pass."""
    started = time.perf_counter()
    apotheon = loaded.apotheon
    tokens = apotheon.generate(
        [request.clip for request in requests],
        requests[0].task,
        max_new_tokens=max(request.max_new_tokens for request in requests),
        stopping_criteria=StoppingCriteriaList([_StopWhere(requests)]),
        streamer=streamer,
    )
    decoded = time.perf_counter()
    ended = (tokens == apotheon.model.config.eos_token_id).any(dim=1).tolist()
    texts = apotheon.processor.decode_texts(tokens)
    model_s, post_s = decoded - started, time.perf_counter() - decoded
    return [
        Written(
            text=text,
            tokens=int((row != apotheon.model.config.pad_token_id).sum()) - 1,
            finish="stop" if stopped else "length",
            model=loaded.served,
            timing=Timing(queue=started - request.received, model=model_s, postprocess=post_s),
        )
        for request, row, text, stopped in zip(requests, tokens, texts, ended, strict=True)
    ]


def _observe(written: Sequence[Written], task: Task) -> None:
    """Record the forward pass of these texts; not those of health checks."""
    observe_call(written[0].model.name, task, len(written), written[0].timing.model)

"""What a replica does with a batch: one forward pass, in which each request has its own end."""

import asyncio
import dataclasses
import io
import threading
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import trained
from PIL import Image
from ray import serve
from ray.serve import multiplex

from spark_ray.core.errors import CorruptMedia, ModelError, NothingSaid
from spark_ray.core.schema import Caption, Clip
from spark_ray.media.audio_codec import decode_audio
from spark_ray.models.apotheon import Apotheon, find_weights
from spark_ray.serving import inference
from spark_ray.serving.backends import BackendServer, _test_clip
from spark_ray.serving.errors import ApiError
from spark_ray.serving.inference import (
    ApotheonServer,
    Pending,
    Worker,
    _answers,
    _load_apotheon,
    _Loaded,
    _QueueStreamer,
    _write_group,
)
from spark_ray.serving.messages import Decoded, ServedModel, Written


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> _Loaded:
    folder = tmp_path_factory.mktemp("model")
    trained.save_tiny(folder)
    trained.record().write(folder)
    return _load_apotheon("mine", find_weights(str(folder), setting="model"))


def pending(apotheon: Apotheon, seed: int, max_new_tokens: int) -> Pending:
    rng = np.random.default_rng(seed)
    frames = list(rng.integers(0, 255, (3, 64, 64, 3), dtype=np.uint8))
    return Pending(
        apotheon.processor.prepare(frames, [0.0, 0.5, 1.0], None), "caption", max_new_tokens
    )


def test_each_request_of_a_batch_ends_where_it_should(loaded: _Loaded) -> None:
    limits = [3, 9, 6]
    requests = [pending(loaded.apotheon, seed, limit) for seed, limit in enumerate(limits)]
    together = _write_group(loaded, requests)
    for request, written, limit in zip(requests, together, limits, strict=True):
        (alone,) = loaded.apotheon.write([request.clip], "caption", limit)
        assert written.text == alone
        assert written.tokens is not None
        assert written.tokens <= limit
        assert written.timing.queue >= 0
        assert written.timing.model > 0
    assert {written.finish for written in together} <= {"stop", "length"}


def test_a_request_whose_caller_has_gone_is_not_written_on(loaded: _Loaded) -> None:
    stays, gone = pending(loaded.apotheon, 1, 20), pending(loaded.apotheon, 2, 20)
    gone.cancelled.set()
    written, broken_off = _write_group(loaded, [stays, gone])
    assert written.text == loaded.apotheon.write([stays.clip], "caption", 20)[0]
    assert broken_off.tokens == 1
    (alone,) = _write_group(loaded, [gone])
    assert alone.tokens == 1


def test_a_batch_whose_callers_went_away_while_it_waited_is_not_begun(
    loaded: _Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = pending(loaded.apotheon, 2, 20)
    gone.cancelled.set()
    monkeypatch.setattr(inference, "_write_group", None)  # a call of it fails
    assert _answers(loaded, [gone]) == {}


def test_a_stream_that_nobody_reads_any_more_is_not_begun(
    loaded: _Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it waits for the thread that others hold."""
    server = object.__new__(ApotheonServer)
    server._usual, server._worker = "models:/apotheon/1", Worker("test")
    begun: list[str] = []

    async def model(reference: str) -> _Loaded:
        return loaded

    async def leave() -> None:
        free = threading.Event()
        busy = asyncio.create_task(server._worker.run(free.wait))
        await asyncio.sleep(0.1)
        stream = server.stream(Decoded(clip=_test_clip(), seconds=0.0), "caption", 5)
        reading = asyncio.ensure_future(anext(stream))
        await asyncio.sleep(0.5)
        reading.cancel()
        await asyncio.wait([reading])
        free.set()
        await busy
        await server._worker.run(lambda: None)  # all that was before it has been done

    monkeypatch.setattr(server, "model", model)
    monkeypatch.setattr(inference, "_write_group", lambda *_: begun.append("written"))
    asyncio.run(leave())
    assert begun == []


def test_the_pieces_of_a_text_are_the_whole() -> None:
    """Without the blanks at its ends, which are not told of the whole."""

    async def handed_on(*finalized: str) -> list[str]:
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        tokenizer = SimpleNamespace(processor=SimpleNamespace(tokenizer=None))
        streamer = _QueueStreamer(tokenizer, pieces)  # type: ignore[arg-type]
        for text in finalized:
            streamer.on_finalized_text(text)
        await asyncio.sleep(0)
        return [piece for _ in range(pieces.qsize()) if (piece := pieces.get_nowait())]

    told = asyncio.run(handed_on(" ", "\na ", "red  ", " ", "circle\n", "", " "))
    assert told == ["a", " red", "   circle"]
    assert asyncio.run(handed_on(" ", " ")) == []


def test_what_breaks_one_request_does_not_break_the_others(loaded: _Loaded) -> None:
    sound, broken = pending(loaded.apotheon, 1, 5), pending(loaded.apotheon, 2, 5)
    broken.clip.pixels[:] = 0
    broken.clip = dataclasses.replace(broken.clip, frame_times=np.zeros(7, np.float32))
    answers = _answers(loaded, [sound, broken])
    written = answers[id(sound)]
    assert isinstance(written, Written)
    assert written.text == loaded.apotheon.write([sound.clip], "caption", 5)[0]
    assert isinstance(answers[id(broken)], Exception)


def test_only_what_has_one_shape_shares_a_batch(loaded: _Loaded) -> None:
    one, other = pending(loaded.apotheon, 1, 5), pending(loaded.apotheon, 2, 5)
    assert one.shape == other.shape
    fewer = Pending(
        loaded.apotheon.processor.prepare([np.zeros((64, 64, 3), np.uint8)], [0.0], None),
        "caption",
        5,
    )
    assert fewer.shape != one.shape
    assert Pending(one.clip, "transcript", 5).shape != one.shape


def test_a_model_says_where_it_comes_from(loaded: _Loaded, tmp_path: Path) -> None:
    served = loaded.served
    assert (served.name, served.dataset, served.dataset_version) == ("mine", "street", "v3")
    assert loaded.served.weights_hash == loaded.apotheon.weights.info().weights_hash
    trained.save_tiny(tmp_path)
    other = _load_apotheon("other", find_weights(str(tmp_path), setting="model"))
    assert other.served.dataset is None
    assert other.size_bytes == (tmp_path / "model.safetensors").stat().st_size


def test_health_is_asked_of_the_version_that_answers_now(
    loaded: _Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one that it began with may have been deleted since."""
    server = object.__new__(ApotheonServer)
    server._usual, server._worker = "models:/apotheon/1", Worker("test")
    server._answered = float("-inf")
    asked: list[str] = []

    async def model(reference: str) -> _Loaded:
        asked.append(reference)
        if reference == "models:/apotheon/1" and len(asked) > 1:
            raise ModelError("it was deleted")
        return loaded

    monkeypatch.setattr(server, "model", model)

    async def replace() -> None:
        await server.check_health()
        monkeypatch.setattr(serve, "get_multiplexed_model_id", lambda: "models:/apotheon/2")
        await server._loaded()
        await server.check_health()

    asyncio.run(replace())
    assert asked[-1] == "models:/apotheon/2"


def test_a_replica_that_has_just_answered_is_healthy_behind_whatever_waits(
    loaded: _Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its health check would wait behind many long texts, and time out."""
    server = object.__new__(ApotheonServer)
    server._usual, server._worker = "mine", Worker("test")
    server._answered = float("-inf")

    async def model(reference: str) -> _Loaded:
        return loaded

    monkeypatch.setattr(server, "model", model)
    go_on = threading.Event()

    async def press() -> None:
        await server.embed_texts(["a boat"])
        waiting = asyncio.create_task(server._worker.run(lambda: go_on.wait(20)))
        await asyncio.sleep(0)
        await asyncio.wait_for(server.check_health(), 5)
        server._answered -= 61
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(server.check_health(), 0.2)
        go_on.set()
        await waiting

    asyncio.run(press())


class Sized:
    """Stands for a model on disk, of so many bytes."""

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes


@pytest.mark.parametrize(
    ("memory_bytes", "asked", "held"),
    [
        (100, "a40 b40", "a40 b40"),
        (100, "a40 b40 c40", "b40 c40"),
        (100, "a40 b40 a40 c40", "a40 c40"),
        (100, "a40 b40 c100", "c100"),
        (100, "a20 b40 c40 d60", "c40 d60"),
        (None, "a40 b40 c40", "b40 c40"),
        (None, "a40 b10 c10 d20", "a40 b10 c10 d20"),
        (None, "a40 b10 c10 d30", "b10 c10 d30"),
        (None, "a10 b300", "a10 b300"),
    ],
)
def test_models_are_held_up_to_a_bound_of_bytes(
    monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None, asked: str, held: str
) -> None:
    server = holding(monkeypatch, memory_bytes)

    async def ask() -> list[str]:
        for reference in asked.split():
            assert (await server.model(reference)).size_bytes == int(reference[1:])
        return list(getattr(server, "__serve_multiplex_wrapper").models)

    assert sorted(asyncio.run(ask())) == held.split()


def test_a_model_that_would_not_fit_by_itself_is_refused_and_the_others_stay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = holding(monkeypatch, 100)

    async def ask() -> list[str]:
        await server.model("a40")
        with pytest.raises(ApiError, match="'mine' takes 101 bytes, more than the 100 of") as told:
            await server.model("b101")
        assert (told.value.status, told.value.code) == (422, "model_too_large")
        return list(getattr(server, "__serve_multiplex_wrapper").models)

    assert asyncio.run(ask()) == ["a40"]


def holding(monkeypatch: pytest.MonkeyPatch, memory_bytes: int | None) -> ApotheonServer:
    """A server of models whose references tell their sizes, with Serve's own cache."""
    monkeypatch.setattr(inference, "find_weights", lambda name, setting: Sized(int(name[1:])))
    monkeypatch.setattr(inference, "_load_apotheon", lambda name, weights: weights)
    context = SimpleNamespace(app_name="app", deployment="model", replica_id="1")
    monkeypatch.setattr(multiplex, "_get_internal_replica_context", lambda: context)
    monkeypatch.setattr(multiplex.ServeUsageTag, "record", lambda *given: None)
    # Without a controller to be told, Serve would start a Ray to look for one.
    controller = SimpleNamespace(record_request_routing_info=lambda info: None)
    monkeypatch.setattr(multiplex, "_get_global_client", lambda: controller)
    server = object.__new__(ApotheonServer)
    server._name, server._memory_bytes = "mine", memory_bytes
    return server


def test_embeddings_count_the_tokens_of_their_texts(
    loaded: _Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = object.__new__(ApotheonServer)
    server._usual, server._worker = "mine", Worker("test")

    async def model(reference: str) -> _Loaded:
        return loaded

    monkeypatch.setattr(server, "model", model)
    texts = ["a red circle grows", "a boat"]
    embedded = asyncio.run(server.embed_texts(texts))
    assert len(embedded.vectors) == 2
    assert embedded.tokens == sum(len(loaded.apotheon.processor.tokenize(t)) for t in texts) > 4

    server._name = "mine"
    with pytest.raises(ApiError, match=r"tokens, and model 'mine' reads") as refused:
        asyncio.run(server.embed_texts(["a boat", "a red circle grows " * 500]))
    assert (refused.value.status, refused.value.code) == (400, "context_length_exceeded")


class Captioner:
    """A backend that breaks at one picture, and finds no words for another."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def caption(self, clips: Sequence[Clip]) -> dict[str, Caption]:
        self.calls.append(len(clips))
        if any(clip.frames == [b"broken"] for clip in clips):
            raise CorruptMedia("this picture is none")
        if any(clip.source_path == "test" for clip in clips):
            raise NothingSaid("nothing was said")
        return {clip.clip_id: Caption(text="a boat", all_captions=["a boat"]) for clip in clips}


@pytest.fixture
def backend() -> BackendServer:
    server = object.__new__(BackendServer)
    server._backend, server._worker = Captioner(), Worker("test")
    server._is_captioner, server._answered = True, float("-inf")
    server._served = ServedModel(name="seer")
    return server


def clip_of(frame: bytes) -> Clip:
    return Clip(clip_id="c", video_id="v", unit_id="v", source_path="x", frames=[frame])


def test_what_breaks_one_clip_of_a_backend_does_not_break_the_others(
    backend: BackendServer,
) -> None:
    first, broken, last = backend._answers([clip_of(f) for f in (b"one", b"broken", b"two")])
    assert isinstance(first[0], Caption)
    assert isinstance(broken[0], CorruptMedia)
    assert isinstance(last[0], Caption)


def test_a_backend_that_is_silent_is_asked_whether_it_still_answers(
    backend: BackendServer,
) -> None:
    asyncio.run(backend.check_health())
    assert backend._backend.calls == [1]
    backend._answers([clip_of(b"one")])
    asyncio.run(backend.check_health())
    assert backend._backend.calls == [1, 1], "it has just answered"
    backend._answered = float("-inf")
    backend._backend.caption = None
    with pytest.raises(TypeError):
        asyncio.run(backend.check_health())


def test_the_clip_of_health_checks_can_be_seen_and_heard() -> None:
    clip = _test_clip()
    assert clip.audio is not None
    assert decode_audio(clip.audio).shape == (16_000,)
    assert Image.open(io.BytesIO(clip.frames[0])).size == (64, 64)

"""Answers that come in pieces: how they begin, end, and are broken off."""

import asyncio
import io
import wave
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from spark_ray.core.errors import StorageError
from spark_ray.core.schema import Clip
from spark_ray.serving.errors import ApiError
from spark_ray.serving.gateway import create_app
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import Decoded, ModelFacts, ServedModel, Timing, Written
from spark_ray.serving.schemas import JobRequest
from spark_ray.serving.services import Handles, Services, together
from spark_ray.serving.settings import ServeSettings

SERVED = ServedModel(name="talker", version="3", dataset="films", dataset_version="v2")
WHOLE = Written(text="a boat", tokens=2, model=SERVED, timing=Timing())


class Pieces:
    """Stands for what a handle of Serve returns for a stream."""

    def __init__(self, pieces: AsyncIterator[Any]) -> None:
        self._pieces = pieces
        self.cancelled = False

    async def __anext__(self) -> Any:
        return await anext(self._pieces)

    def cancel(self) -> None:
        self.cancelled = True


async def whole() -> AsyncIterator[Any]:
    for piece in ("a ", "boat", WHOLE):
        yield piece


async def full() -> AsyncIterator[Any]:
    raise BackPressureError(num_queued_requests=9, max_queued_requests=8)
    yield ""


async def slow() -> AsyncIterator[Any]:
    yield "a "
    await asyncio.sleep(30)


class Talker:
    """A model that answers every chat with the same stream."""

    def __init__(self, answer: Callable[[], AsyncIterator[Any]]) -> None:
        self._answer = answer
        self.facts = SimpleNamespace(remote=self._facts)
        self.reply_in_pieces = SimpleNamespace(remote=lambda *_: Pieces(self._answer()))

    async def _facts(self) -> ModelFacts:
        return ModelFacts(served=SERVED)

    def options(self, **_: Any) -> "Talker":
        return self


def services(folder: Path, answer: Callable[[], AsyncIterator[Any]] = whole) -> Services:
    settings = ServeSettings.from_values(
        state=str(folder),
        limits={"request_timeout_s": 0.2},
        models={"talker": {"backend": "vllm", "reference": "/nowhere"}},
    )
    return Services(settings.located(), Handles(decoder=None, models={"talker": Talker(answer)}))


def chat(services: Services) -> Any:
    _, key = KeyStore(services.database).create(
        "test", ["infer"], requests_per_minute=6000, max_concurrent=1, lifetime_s=None
    )
    asked = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    with TestClient(create_app(services)) as client:
        headers = {"Authorization": f"Bearer {key}"}
        return client.post("/v1/chat/completions", json=asked, headers=headers)


def test_a_stream_says_who_answers(tmp_path: Path) -> None:
    answer = chat(services(tmp_path))
    assert answer.status_code == 200
    assert answer.headers["x-model-version"] == "talker@3"
    assert answer.headers["x-dataset-version"] == "films@v2"
    assert answer.headers["x-accel-buffering"] == "no", "or nginx sends it whole"
    assert answer.text.count('"content": "boat"') == 1
    assert answer.text.endswith("data: [DONE]\n\n")


def test_a_body_on_its_way_is_one_of_the_requests_that_a_key_may_have(tmp_path: Path) -> None:
    """Or one key could have the server hold as many bodies as it has places for requests."""
    served = services(tmp_path)
    app = create_app(served)
    _, key = KeyStore(served.database).create(
        "test", ["infer"], requests_per_minute=6000, max_concurrent=1, lifetime_s=None
    )

    async def ask(method: str, path: str, arriving: asyncio.Event) -> int:
        async def receive() -> Any:
            await arriving.wait()
            return {"type": "http.request", "body": b"{}", "more_body": False}

        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        statuses: list[int] = []
        headers = [(b"authorization", f"Bearer {key}".encode())]
        headers += [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "query_string": b""}
        await app({**scope, "headers": headers}, receive, send)
        return statuses[0]

    async def play() -> tuple[int, int, int]:
        arriving, arrived = asyncio.Event(), asyncio.Event()
        arrived.set()
        slow = asyncio.create_task(ask("POST", "/v1/search", arriving))
        while not any(usage.running for usage in served.throttle._usage.values()):
            assert not slow.done()
            await asyncio.sleep(0.01)
        second = await ask("GET", "/v1/me", arrived)
        arriving.set()
        return second, await slow, await ask("GET", "/v1/me", arrived)

    assert asyncio.run(asyncio.wait_for(play(), 5)) == (429, 404, 200)


@pytest.mark.parametrize("stream", [True, False])
def test_an_analysis_says_who_answers(tmp_path: Path, stream: bool) -> None:
    """Its two models as well, and before the first event."""
    learned = SERVED.model_copy(update={"name": "listener", "version": None})
    models = {"seer": analyst(SERVED), "listener": analyst(learned)}
    clip = Clip(
        clip_id="c", video_id="v", unit_id="v", source_path="x", end_s=1.0,
        frames=[b"picture"], audio=b"sound",
    )  # fmt: skip
    decoder = SimpleNamespace(
        decode=SimpleNamespace(remote=lambda _: Answer(Decoded(clip=clip, seconds=0.5)))
    )
    settings = ServeSettings.from_values(
        state=str(tmp_path),
        models={"seer": {"backend": "blip"}, "listener": {"backend": "whisper"}},
    )
    services = Services(settings.located(), Handles(decoder=decoder, models=models))
    _, key = KeyStore(services.database).create(
        "test", ["infer"], requests_per_minute=6000, max_concurrent=1, lifetime_s=None
    )
    sound = io.BytesIO()
    with wave.open(sound, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        file.writeframes(bytes(3200))
    with TestClient(create_app(services)) as client:
        answer = client.post(
            "/v1/analyze", files={"file": sound.getvalue()}, data={"stream": str(stream)},
            headers={"Authorization": f"Bearer {key}"},
        )  # fmt: skip
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-model-version"] == "talker@3, listener@-"
    assert answer.headers["x-dataset-version"] == "films@v2"
    assert answer.headers["x-request-id"] in answer.text
    assert ("server-timing" in answer.headers) != stream


def test_events_of_a_job_end_with_what_went_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And are not just broken off: whoever follows it knows to ask again."""
    served = services(tmp_path)
    key, text = KeyStore(served.database).create(
        "test", ["jobs"], requests_per_minute=6000, max_concurrent=1, lifetime_s=None
    )
    with served.database.session() as session:
        job = served.jobs.create(session, key.id, JobRequest(name="set"), ["/films/a.mp4"])
    get, left = served.jobs.get, [1]

    def get_once(job_id: str, owner: str) -> Any:
        if not left:
            raise StorageError("the database can't be used")
        left.pop()
        return get(job_id, owner)

    monkeypatch.setattr(served.jobs, "get", get_once)
    with TestClient(create_app(served)) as client:
        headers = {"Authorization": f"Bearer {text}"}
        answer = client.get(f"/v1/jobs/{job.id}/events", headers=headers)
    assert answer.status_code == 200
    first, last = answer.text.strip().split("\n\n")
    assert first.startswith("event: job\n")
    assert last.startswith("event: error\ndata: ")
    assert '"code": "storage_unavailable"' in last


class Answer:
    """Stands for what a handle of Serve returns for one answer."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return asyncio.sleep(0, self._answer).__await__()

    def cancel(self) -> None: ...


def analyst(served: ServedModel) -> Any:
    said = WHOLE.model_copy(update={"model": served})

    async def pieces() -> AsyncIterator[Any]:
        yield said

    model = SimpleNamespace(
        facts=SimpleNamespace(remote=lambda: Answer(ModelFacts(served=served))),
        write=SimpleNamespace(remote=lambda *_: Answer(said)),
        stream=SimpleNamespace(remote=lambda *_: Pieces(pieces())),
    )
    model.options = lambda **_: model
    return model


def test_a_model_without_room_says_so_before_the_stream_begins(tmp_path: Path) -> None:
    answer = chat(services(tmp_path, full))
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "overloaded"
    assert int(answer.headers["retry-after"]) >= 1


def test_what_nobody_reads_on_is_stopped(tmp_path: Path) -> None:
    async def read(pieces: Pieces, count: int) -> list[Any]:
        stream = services(tmp_path).stream(pieces, "it")
        read = [await anext(stream) for _ in range(count)]
        # As Starlette does: the rest in a task of its own.
        await asyncio.create_task(stream.aclose())  # type: ignore[attr-defined]
        return read

    broken_off = Pieces(whole())
    assert asyncio.run(read(broken_off, 1)) == ["a "]
    assert broken_off.cancelled


def test_what_takes_too_long_is_stopped_in_whatever_task_it_is_read(tmp_path: Path) -> None:
    async def read(pieces: Pieces) -> Any:
        stream = services(tmp_path).stream(pieces, "it")
        assert await anext(stream) == "a "

        async def read_on() -> Any:
            return await anext(stream)

        with pytest.raises(ApiError) as raised:
            await asyncio.create_task(read_on())
        return raised.value

    pieces = Pieces(slow())
    assert asyncio.run(read(pieces)).code == "timeout"
    assert pieces.cancelled


def test_what_came_to_its_end_is_left_alone(tmp_path: Path) -> None:
    async def read(pieces: Pieces) -> list[Any]:
        return [piece async for piece in services(tmp_path).stream(pieces, "it")]

    pieces = Pieces(whole())
    assert asyncio.run(read(pieces)) == ["a ", "boat", WHOLE]
    assert not pieces.cancelled


def test_where_one_of_several_fails_the_others_are_broken_off() -> None:
    ended: list[str] = []

    async def long() -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            ended.append("broken off")
            raise

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ApiError(503, "overloaded", "no room")

    async def ask() -> None:
        with pytest.raises(ApiError):
            await together([long(), failing()])
        await asyncio.sleep(0)

    asyncio.run(ask())
    assert ended == ["broken off"]

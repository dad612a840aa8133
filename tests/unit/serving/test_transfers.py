"""Bytes on their way into assets: what of them is kept, and which thread they take."""

import asyncio
import base64
import io
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import func, select
from starlette.testclient import TestClient

from spark_ray.core.errors import MediaError
from spark_ray.serving.assets import PartWriter
from spark_ray.serving.database import Asset
from spark_ray.serving.errors import ApiError
from spark_ray.serving.gateway import create_app
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import ModelFacts, ServedModel
from spark_ray.serving.routes.assets import _part
from spark_ray.serving.services import Handles, Services
from spark_ray.serving.settings import ServeSettings

SOUND = b"fLaC" + bytes(range(256))
PATCH = {
    "Tus-Resumable": "1.0.0",
    "Upload-Offset": "0",
    "Content-Type": "application/offset+octet-stream",
}


async def _decode(file: Any) -> Any:
    raise MediaError("it can't be decoded")


async def _facts() -> ModelFacts:
    return ModelFacts(served=ServedModel(name="seer"))


class Response:
    """Stands for what a handle of Serve returns."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None: ...


@pytest.fixture
def services(tmp_path: Path) -> Services:
    settings = ServeSettings.from_values(
        state=str(tmp_path),
        limits={"max_upload_bytes": 1 << 20},
        models={"seer": {"reference": "/nowhere"}},
    )
    decoder = SimpleNamespace(decode=SimpleNamespace(remote=lambda file: Response(_decode(file))))
    seer = SimpleNamespace(facts=SimpleNamespace(remote=lambda: Response(_facts())))
    return Services(settings.located(), Handles(decoder=decoder, models={"seer": seer}))


@pytest.fixture
def client(services: Services) -> Iterator[TestClient]:
    _, key = KeyStore(services.database).create(
        "test", ["infer"], requests_per_minute=6000, max_concurrent=4, lifetime_s=None
    )
    headers = {"Authorization": f"Bearer {key}"}
    with TestClient(create_app(services), headers=headers) as made:
        yield made


def held(services: Services) -> int:
    with services.database.session() as session:
        return session.scalar(select(func.count()).select_from(Asset)) or 0


def test_pictures_within_a_message_are_not_kept(services: Services, client: TestClient) -> None:
    png = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(100)).decode()
    shown = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{png}"}}
    asked = {"model": "seer", "messages": [{"role": "user", "content": [shown]}]}
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.json()["error"]["code"] == "unusable_media"
    assert held(services) == 0


def test_a_recording_to_write_down_is_not_kept(services: Services, client: TestClient) -> None:
    answer = client.post("/v1/audio/transcriptions", files={"file": SOUND}, data={"model": "seer"})
    assert answer.json()["error"]["code"] == "unusable_media"
    assert held(services) == 0


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/transcriptions", "/v1/analyze"])
@pytest.mark.parametrize("named", [False, True])
def test_a_request_that_fails_leaves_no_asset(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch, path: str, named: bool
) -> None:
    monkeypatch.setattr(services.fetcher, "chunks", lambda url: iter([SOUND]))
    sent: dict[str, Any] = {"files": {"file": SOUND}}
    if named:
        sent = {"json": {"url": "https://example.com/a"}}
    assert client.post(path, **sent).json()["error"]["code"] == "unusable_media"
    assert held(services) == 0
    asset = client.post("/v1/assets", files={"file": SOUND}).json()["id"]
    assert client.post(path, json={"asset": asset}).status_code == 422
    assert held(services) == 1, "the client's own stays"


def test_what_a_message_points_to_is_not_kept(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services.fetcher, "chunks", lambda url: iter([SOUND]))
    shown = {"type": "video_url", "video_url": {"url": "https://example.com/a"}}
    asked = {"model": "seer", "messages": [{"role": "user", "content": [shown]}]}
    answer = client.post("/v1/chat/completions", json=asked)
    assert answer.json()["error"]["code"] == "unusable_media"
    assert held(services) == 0


def test_what_is_too_large_or_breaks_off_is_not_kept(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(url: str) -> Iterator[bytes]:
        yield SOUND
        raise ApiError(422, "fetch_failed", url)

    monkeypatch.setattr(services.fetcher, "chunks", broken)
    with pytest.raises(ApiError, match="larger"):
        asyncio.run(services.store("me", io.BytesIO(bytes((1 << 20) + 1))))
    with pytest.raises(ApiError, match="https"):
        asyncio.run(services.fetch("me", "https://example.com/a"))
    assert held(services) == 0


def test_what_nobody_waits_for_is_not_kept(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, gone, ended = threading.Event(), threading.Event(), threading.Event()

    def slow(url: str) -> Iterator[bytes]:
        yield SOUND
        begun.set()
        gone.wait(10)
        yield SOUND

    remove = services.assets.delete
    monkeypatch.setattr(services.fetcher, "chunks", slow)
    monkeypatch.setattr(services.assets, "delete", lambda asset: (remove(asset), ended.set()))

    async def leave() -> None:
        fetching = asyncio.create_task(services.fetch("me", "https://example.com/a"))
        await asyncio.to_thread(begun.wait, 10)
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        gone.set()

    asyncio.run(leave())
    assert ended.wait(10)
    assert held(services) == 0


def test_a_slow_host_does_not_hold_the_threads_that_others_need(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = threading.Event()

    def slow(url: str) -> Iterator[bytes]:
        gone.wait(10)
        yield SOUND

    monkeypatch.setattr(services.fetcher, "chunks", slow)

    async def look_up() -> None:
        asyncio.get_running_loop().set_default_executor(services._transfers.__class__(1))
        fetching = asyncio.create_task(services.fetch("me", "https://example.com/a"))
        await asyncio.sleep(0.05)
        try:
            assert await asyncio.wait_for(services.caller("sk-spark-unknown"), 5) is None
        finally:
            gone.set()
            await fetching

    asyncio.run(look_up())


def test_an_upload_does_not_stop_the_event_loop(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(SOUND))}
    place = client.post("/v1/assets", headers=begun).headers["location"]
    receive = services.assets._received

    def received(*given: Any) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        receive(*given)

    monkeypatch.setattr(services.assets, "_received", received)
    assert client.patch(place, headers=PATCH, content=SOUND).status_code == 204
    assert client.get(place).json()["complete"]


def test_a_piece_that_is_being_written_is_part_of_what_came(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    writing = threading.Event()
    write = PartWriter.write

    def slowly(self: PartWriter, data: bytes) -> None:
        writing.set()
        time.sleep(0.1)
        write(self, data)

    monkeypatch.setattr(PartWriter, "write", slowly)

    async def upload(asset: Asset) -> None:
        async with _part(services, asset, 0) as send:
            await send(SOUND)

    async def leave(asset: Asset) -> None:
        uploading = asyncio.create_task(upload(asset))
        await asyncio.to_thread(writing.wait, 10)
        uploading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await uploading

    asset = services.assets.begin("me", 1000)
    asyncio.run(leave(asset))
    assert services.assets.get(asset.id, "me").received_bytes == len(SOUND)

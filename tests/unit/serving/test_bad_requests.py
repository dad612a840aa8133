"""Requests that are refused before any model is asked, and what is said of a defect of ours.

The gateway's own application, over a real database and a real store of assets.
"""

import asyncio
import gzip
import io
import threading
import zipfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import create_engine
from starlette.testclient import TestClient

from spark_ray.core.errors import ModelError
from spark_ray.serving.gateway import create_app
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.routes import models, system
from spark_ray.serving.services import Handles, Services
from spark_ray.serving.settings import ServeSettings

JSON = {"Content-Type": "application/json"}
TUS = {"Tus-Resumable": "1.0.0"}


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Services:
    settings = ServeSettings.from_values(
        state=str(tmp_path_factory.mktemp("state")),
        limits={"max_upload_bytes": 1 << 20, "max_json_depth": 16},
        models={
            "seer": {"reference": "/nowhere"},
            "talker": {"backend": "vllm", "reference": "/nowhere"},
        },
    )
    return Services(
        settings.located(), Handles(decoder=None, models={"seer": None, "talker": None})
    )


@pytest.fixture(scope="module")
def client(services: Services) -> Iterator[TestClient]:
    key = secret(services)
    headers = {"Authorization": f"Bearer {key}"}
    app = create_app(services)
    with TestClient(app, headers=headers, raise_server_exceptions=False) as made:
        yield made


def secret(services: Services, *, lifetime_s: float | None = None) -> str:
    return KeyStore(services.database).create(
        "test",
        ["infer", "jobs"],
        requests_per_minute=1_000_000,
        max_concurrent=16,
        lifetime_s=lifetime_s,
    )[1]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


def field(name: str, value: str) -> str:
    return f'{{"{name}": {value}}}'


def a_job(settings: str) -> dict[str, Any]:
    content = f'{{"name": "a", "urls": ["s3://bucket/x"], "settings": {settings}}}'
    return {"content": content, "headers": JSON}


def said(text: str, **more: str) -> dict[str, Any]:
    return {"content": text, "headers": {**JSON, **more}}


def a_chat(model: str, **more: Any) -> dict[str, Any]:
    return {"json": {"model": model, "messages": [{"role": "user", "content": "hi"}], **more}}


def shown(count: int, url: str) -> list[dict[str, Any]]:
    picture = {"type": "image_url", "image_url": {"url": url}}
    return [{"role": "user", "content": [picture] * count}]


def upload(**headers: str) -> dict[str, Any]:
    return {"headers": {**TUS, **headers}}


def archive() -> bytes:
    """50 MB of nothing in 50 kB, as a .docx could be."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("word/document.xml", bytes(50_000_000))
    return file.getvalue()


@pytest.mark.parametrize(
    ("path", "send", "status", "code"),
    [
        # Nested as deep as goes: in typed fields, in free ones, and beyond what Python can parse.
        ("/v1/captions", said(field("asset", nested(17))), 400, "invalid_json"),
        ("/v1/search", said(field("text", nested(900))), 422, "invalid_request"),
        ("/v1/jobs", a_job(field("fps", nested(500))), 422, "invalid_request"),
        ("/v1/jobs", a_job(field("fps", nested(100_000))), 400, "invalid_request"),
        ("/v1/jobs", said('{"name": "a"}', **{"Idempotency-Key": ""}), 422, "invalid_request"),
        # Texts that are no Unicode, and numbers that are none.
        ("/v1/jobs", a_job(r'{"fps": "\ud800"}'), 422, "invalid_request"),
        ("/v1/jobs", a_job('{"fps": NaN}'), 422, "invalid_request"),
        ("/v1/jobs", a_job(field("fps", "9" * 400)), 422, "invalid_request"),
        ("/v1/search", said('{"text": "a", "limit": 1e999}'), 422, "invalid_request"),
        ("/v1/captions", said(field("max_new_tokens", "9" * 5000)), 400, "invalid_json"),
        ("/v1/embeddings", said(r'{"model": "seer", "input": "\ud800"}'), 422, "invalid_request"),
        ("/v1/embeddings", said('{"model": "seer", "input": [[1, 2]]}'), 422, "invalid_request"),
        ("/v1/embeddings", said(r'{"model": "seer", "input": ["\ud800"]}'), 422,
         "invalid_request"),
        ("/v1/search", said(r'{"text": "\ud800"}'), 422, "invalid_request"),
        # Who is asked for what does not exist says what does.
        ("/v1/embeddings", said('{"model": "gpt", "input": "a"}'), 404, "model_not_found"),
        ("/v1/embeddings", said(r'{"model": "../seer", "input": "a"}'), 404, "model_not_found"),
        ("/v1/embeddings", said(r'{"model": "seer@x", "input": "a"}'), 404, "model_not_found"),
        ("/v1/captions", said('{"model": "talker/3", "asset": "x"}'), 404, "asset_not_found"),
        ("/v1/embeddings", said('{"model": "talker", "input": "a"}'), 400, "model_lacks_ability"),
        # Chats: what only some models can honour, and more than any takes.
        ("/v1/chat/completions", a_chat("seer", temperature=0.5), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("seer", stop=["."]), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("seer", logprobs=True), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("seer", response_format={"type": "json_object"}), 422,
         "invalid_request"),
        ("/v1/chat/completions", a_chat("seer"), 422, "media_missing"),
        ("/v1/chat/completions", a_chat("talker", temperature=3), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", n=2), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", tools=[]), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", max_tokens=257), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", messages=[]), 422, "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", messages=shown(17, "asset-x")), 422,
         "invalid_request"),
        ("/v1/chat/completions", a_chat("talker", messages=shown(1, "asset-x")), 404,
         "asset_not_found"),
        ("/v1/chat/completions", a_chat("talker", messages=shown(1, "http://[::1]/")), 400,
         "invalid_url"),
        ("/v1/chat/completions", a_chat("talker", messages=shown(1, "data:image/png;base64,?")),
         422, "invalid_request"),
        # Ids that are paths.
        ("/v1/captions", said(r'{"asset": "asset-\u0000"}'), 404, "asset_not_found"),
        ("/v1/captions", said('{"asset": "asset-../../../../etc/passwd"}'), 404,
         "asset_not_found"),
        ("/v1/search", said('{"asset": "x", "dataset": "../../etc"}'), 404, "dataset_not_found"),
        ("/v1/jobs", said('{"name": "../a", "assets": []}'), 422, "invalid_request"),
        ("/v1/jobs", said('{"name": "a", "assets": ["../../a"]}'), 404, "asset_not_found"),
        # Uploads that are longer than any file, or than they said.
        ("/v1/assets", upload(**{"Upload-Length": "9" * 5000}), 400, "invalid_upload"),
        ("/v1/assets", upload(**{"Upload-Length": "9" * 18}), 413, "too_large"),
        ("/v1/assets", upload(**{"Upload-Length": "-1"}), 400, "invalid_upload"),
        ("/v1/assets", upload(), 400, "invalid_upload"),
        ("/v1/assets", {"headers": {"Tus-Resumable": "9.9.9"}}, 412, "unsupported_tus"),
        ("/v1/assets", {"files": {"file": bytes((1 << 20) + 1)}}, 413, "too_large"),
        ("/v1/assets", {"content": b"--", "headers": {"Content-Type": "multipart/form-data"}}, 400,
         "invalid_request"),
        ("/v1/captions", {"files": [("file", b"x"), ("file", b"y")]}, 400, "invalid_request"),
        ("/v1/captions", {"files": {"file": b"x"}, "data": {f"{n}": "1" for n in range(21)}}, 400,
         "invalid_request"),
        # Archives are not opened, however they come.
        ("/v1/captions", {"files": {"file": archive()}}, 415, "unsupported_media"),
        ("/v1/captions", {"files": {"file": gzip.compress(bytes(50_000_000))}}, 415,
         "unsupported_media"),
        ("/v1/captions", {"content": gzip.compress(b" " * 50_000_000 + b"{}"),
                          "headers": {**JSON, "Content-Encoding": "gzip"}}, 400, "invalid_json"),
        # Files that name other files.
        ("/v1/captions", {"files": {"file": b"#EXTM3U\n#EXTINF:1\nfile:///etc/passwd\n"}}, 415,
         "unsupported_media"),
        ("/v1/captions", {"files": {"file": b"ffconcat version 1.0\nfile /etc/passwd\n"}}, 415,
         "unsupported_media"),
        ("/v1/captions", {"files": {"file": b"<svg xmlns='http://www.w3.org/2000/svg'/>"}}, 415,
         "unsupported_media"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said(
    client: TestClient, path: str, send: dict[str, Any], status: int, code: str
) -> None:
    refused(client.post(path, **send), status, code)


def refused(answer: Any, status: int, code: str) -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code, error
    assert error["request_id"] == answer.headers["x-request-id"]
    assert len(answer.content) < 10_000, "an answer does not repeat what it was sent"


def test_an_unknown_model_lists_the_known_ones(client: TestClient) -> None:
    answer = client.post("/v1/embeddings", json={"model": "gpt", "input": "a"})
    assert answer.json()["error"]["message"].endswith("choose one of: seer, talker")


def test_what_a_chat_cannot_have_is_said(client: TestClient) -> None:
    for chat, said in (
        (a_chat("talker", tools=[]), "tools: this server has no such field; leave it out"),
        (a_chat("seer", messages=shown(4, "asset-x")), "input_audio; it brings 4"),
        (a_chat("seer"), "input_audio; it brings none"),
    ):
        answer = client.post("/v1/chat/completions", **chat)
        assert answer.json()["error"]["message"].endswith(said), answer.text


def test_an_upload_takes_no_more_than_was_announced(client: TestClient) -> None:
    place = client.post("/v1/assets", **upload(**{"Upload-Length": "10"})).headers["location"]
    patch = {**TUS, "Content-Type": "application/offset+octet-stream"}
    for offset, status, code in (("9" * 5000, 400, "invalid_upload"), ("7", 409, "wrong_offset")):
        headers = {**patch, "Upload-Offset": offset}
        refused(client.patch(place, headers=headers, content=b"x"), status, code)
    headers = {**patch, "Upload-Offset": "0"}
    refused(client.patch(place, headers=headers, content=b"x" * 11), 413, "too_large")
    assert client.head(place, headers=TUS).headers["upload-offset"] == "0"


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/search", "/v1/embeddings"])
def test_json_without_an_end_is_too_large_and_not_malformed(client: TestClient, path: str) -> None:
    pieces = (b" " * (1 << 20) for _ in range(9))  # in chunks, so that no length is announced
    refused(client.post(path, content=pieces, headers=JSON), 413, "too_large")


def test_an_upload_whose_replica_was_lost_at_its_end_is_completed(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = b"fLaC" + bytes(range(256))
    place = client.post("/v1/assets", **upload(**{"Upload-Length": str(len(sound))}))
    place = place.headers["location"]
    patch = {**TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"}
    with monkeypatch.context() as patched:
        patched.setattr(services.assets, "complete", None)  # a call of it fails
        assert client.patch(place, headers=patch, content=sound).status_code == 500
    assert not client.get(place).json()["complete"]
    known = client.head(place, headers=TUS)
    assert known.headers["upload-offset"] == str(len(sound))
    assert client.get(place).json()["complete"]


def test_a_key_that_is_out_of_date_is_no_key(services: Services, client: TestClient) -> None:
    headers = {"Authorization": f"Bearer {secret(services, lifetime_s=-1)}"}
    refused(client.get("/v1/models", headers=headers), 401, "invalid_api_key")


def test_what_is_anothers_does_not_exist(services: Services, client: TestClient) -> None:
    place = client.post("/v1/assets", **upload(**{"Upload-Length": "10"})).headers["location"]
    assert client.get(place).status_code == 200
    other = {"Authorization": f"Bearer {secret(services)}"}
    patch = {**TUS, **other, "Content-Type": "application/offset+octet-stream"}
    refused(client.get(place, headers=other), 404, "asset_not_found")
    refused(client.delete(place, headers=other), 404, "asset_not_found")
    assert client.get("/v1/assets", params={"limit": 1}).json()[0]["id"] in place
    assert client.get("/v1/assets", headers=other).json() == []
    sent = client.patch(place, headers={**patch, "Upload-Offset": "0"}, content=b"x")
    refused(sent, 404, "asset_not_found")
    job = {"name": "a", "assets": [place.rpartition("/")[2]]}
    refused(client.post("/v1/jobs", json=job, headers=other), 404, "asset_not_found")


@pytest.fixture
def one_connection(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    """As where all others of the pool are held by requests like this one."""
    engine = create_engine(
        services.settings.database, pool_size=1, max_overflow=0, pool_timeout=0.5
    )
    monkeypatch.setattr(services.database, "_engine", engine)


@pytest.mark.usefixtures("one_connection")
def test_a_request_with_an_idempotency_key_needs_no_second_connection(client: TestClient) -> None:
    """Where as many came at once as there are connections, each would wait for another's."""
    asset = client.post("/v1/assets", files={"file": b"fLaC" + bytes(99)}).json()["id"]
    job = {"name": "pooled", "assets": [asset]}
    answer = client.post("/v1/jobs", json=job, headers={"Idempotency-Key": "pooled"})
    assert answer.status_code == 201, answer.text


@pytest.mark.usefixtures("one_connection")
def test_a_database_without_a_free_connection_says_when_to_retry(
    services: Services, client: TestClient
) -> None:
    assert client.get("/v1/jobs").status_code == 200  # its key is remembered from here on
    with services.database.session() as session:
        session.connection()
        answer = client.get("/v1/jobs")
    refused(answer, 503, "storage_unavailable")
    assert "Retry-After" in answer.headers


def test_what_does_not_answer_holds_no_thread_that_looks_up_keys(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cores have six of those, and a registry takes a quarter of a minute to be gone."""
    threads: list[str] = []

    def look(*_: Any) -> list[Any]:
        threads.append(threading.current_thread().name)
        return []

    monkeypatch.setattr(models, "model_versions", look)
    monkeypatch.setattr(models, "model_card", look)
    monkeypatch.setattr(services.datasets, "all", look)
    monkeypatch.setattr(services.datasets, "find", look)
    for path in ("models/seer", "models/seer/card", "datasets/mine:x"):
        client.get(f"/v1/{path}")
    assert len(threads) == 3
    assert not [name for name in threads if not name.startswith("outside")]


def test_a_defect_says_nothing_of_itself(client: TestClient) -> None:
    # There is no deployment behind this model: whatever fails then is for the log alone.
    answer = client.post("/v1/embeddings", json={"model": "seer", "input": "a"})
    refused(answer, 500, "internal_error")
    assert "AttributeError" not in answer.text


def test_asking_whether_it_is_ready_leaves_nothing_in_the_queue_of_a_model(
    services: Services, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a model that is slow to start would be kept busy by those who ask."""

    class Waiting:
        cancelled = False

        def __await__(self) -> Any:
            return asyncio.sleep(60).__await__()

        def cancel(self) -> None:
            self.cancelled = True

    asked: list[Waiting] = []

    def ask() -> Waiting:
        asked.append(Waiting())
        return asked[-1]

    model = SimpleNamespace(facts=SimpleNamespace(remote=ask))
    monkeypatch.setattr(system, "_READY_TIMEOUT_S", 0.05)
    monkeypatch.setattr(services.catalog, "_handles", {"seer": model, "talker": model})
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["waiting_for"]) == (503, ["seer", "talker"])
    assert [waiting.cancelled for waiting in asked] == [True, True]


def test_a_model_whose_version_is_gone_is_not_ready(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, services: Services
) -> None:
    async def gone(name: str, ability: str) -> Any:
        raise ModelError("model: models:/seer@champion is not registered")

    monkeypatch.setattr(services.catalog, "find", gone)
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()["waiting_for"]) == (503, ["seer", "talker"])


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/v1/chat/completions", "/v1/captions"])
def test_no_body_is_read_of_who_has_no_key(services: Services, path: str, kind: str) -> None:
    read, status = post_without_end(services, path, {"content-type": kind})
    assert (read, status) == (0, 401)


@pytest.mark.parametrize(
    ("path", "most"),
    [("/v1/embeddings", 8 << 20), ("/v1/search", 8 << 20), ("/v1/assets", 1 << 20)],
)
def test_only_where_files_are_taken_a_body_may_be_as_large_as_one(
    services: Services, path: str, most: int
) -> None:
    headers = {
        "authorization": f"Bearer {secret(services)}",
        "content-type": "multipart/form-data; boundary=x",
    }
    read, status = post_without_end(services, path, headers)
    assert status in (400, 413)
    assert read <= most + (2 << 20)


@pytest.mark.parametrize("path", ["/v1/assets", "/v1/captions", "/v1/search"])
@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=b"])
def test_a_client_that_leaves_in_the_middle_of_its_body_is_no_failure_of_ours(
    services: Services, path: str, kind: str
) -> None:
    messages = [
        {"type": "http.request", "body": b"--b", "more_body": True},
        {"type": "http.disconnect"},
    ]
    statuses: list[int] = []

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        statuses.extend([message["status"]] if "status" in message else [])

    headers = [(b"authorization", f"Bearer {secret(services)}".encode())]
    headers += [(b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": path, "query_string": b""}
    asyncio.run(create_app(services)({**scope, "headers": headers}, receive, send))
    assert all(status < 500 for status in statuses)


def post_without_end(services: Services, path: str, headers: dict[str, str]) -> tuple[int, int]:
    """Send 64 MiB unless somebody says no; the bytes that were read, and the status."""
    read, statuses = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal read
        read += 1 << 20
        return {"type": "http.request", "body": bytes(1 << 20), "more_body": read < 64 << 20}

    async def send(message: Any) -> None:
        statuses.append(message.get("status"))

    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(),
        "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1",
        "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
    }  # fmt: skip
    asyncio.run(create_app(services)(scope, receive, send))
    return read, statuses[0]


def test_an_application_below_a_route_prefix_asks_for_keys_as_well(services: Services) -> None:
    app = create_app(services)
    with TestClient(app, root_path="/team", raise_server_exceptions=False) as client:
        key = {"Authorization": f"Bearer {secret(services)}"}
        assert client.get("/team/v1/models").status_code == 401
        assert client.get("/team/v1/models", headers=key).status_code == 200


def test_a_mistake_is_told_by_the_name_of_its_field(client: TestClient) -> None:
    broken = client.post("/v1/embeddings", **said('{"model": "seer" "input"')).json()["error"]
    assert (broken["param"], broken["message"]) == ("body", "body: JSON decode error")

    wrong = client.post("/v1/embeddings", json={"model": "seer", "input": 7}).json()["error"]
    assert wrong["param"] == "input"
    assert "constrained" not in wrong["message"]

"""What the proxy says when the gateway behind it is lost, before its answer or within it."""

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from spark_ray.serving.proxy import LostGateway, middlewares

Messages = list[dict[str, Any]]


def start(status: int = 200, content_type: bytes = b"application/json", **more: bytes) -> Any:
    headers = [(b"content-type", content_type)]
    headers += [(name.replace("_", "-").encode(), value) for name, value in more.items()]
    return {"type": "http.response.start", "status": status, "headers": headers}


def piece(text: bytes, *, more: bool = False) -> Any:
    return {"type": "http.response.body", "body": text, "more_body": more}


def client(*messages: Any) -> TestClient:
    """Of a proxy whose gateway sends these and no more."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    (middleware,) = middlewares()
    return TestClient(middleware.cls(app), raise_server_exceptions=False)


def test_an_answer_that_never_began_says_when_to_ask_again() -> None:
    answer = client().get("/", headers={"X-Request-ID": "mine"})
    assert answer.status_code == 503
    assert int(answer.headers["retry-after"]) >= 1
    error = answer.json()["error"]
    assert (error["code"], error["request_id"]) == ("replica_lost", "mine")
    assert answer.headers["x-request-id"] == "mine"


def test_a_stream_that_breaks_off_says_so_in_its_last_event() -> None:
    begun = piece(b'data: {"a": 1}\n\n', more=True)
    answer = client(start(content_type=b"text/event-stream; charset=utf-8"), begun).get("/")
    *_, kind, last = answer.text.strip().splitlines()
    assert kind == "event: error"
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "replica_lost"


@pytest.mark.parametrize("status", [429, 503])
def test_what_may_be_retried_says_when(status: int) -> None:
    answer = client(start(status), piece(b"{}")).get("/")
    assert int(answer.headers["retry-after"]) >= 1
    kept = client(start(status, retry_after=b"7"), piece(b"{}")).get("/")
    assert kept.headers.get_list("retry-after") == ["7"]


def test_whole_answers_pass_as_they_are() -> None:
    for kind in (b"application/json", b"text/event-stream"):
        answer = client(start(201, kind), piece(b"a", more=True), piece(b"b")).get("/")
        assert (answer.status_code, answer.text) == (201, "ab")
        assert "retry-after" not in answer.headers


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"x-request-id", b"\xff"),
        (b"x-request-id", b"a b"),
        (b"x-request-timeout-seconds", b"0"),
        (b"x-request-disconnect-disabled", b"?1"),
        (b"Serve-Multiplexed-Model-Id", b"/etc"),
        (b"x-session-id", b"\xff"),
    ],
)
def test_serves_own_proxy_takes_no_orders_from_clients(name: bytes, value: bytes) -> None:
    """It reads them before anybody has looked at the key, some by a decoding that may fail."""
    got: list[tuple[bytes, bytes]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        got.extend(scope["headers"])
        await send(start())
        await send(piece(b"{}"))

    asked = TestClient(LostGateway(app))
    asked.get("/", headers=[(name, value), (b"x-other", b"kept")])  # type: ignore[arg-type]
    names = [each for each, _ in got]
    assert name.lower() not in names
    assert b"x-other" in names


def test_an_answer_of_known_length_stays_broken() -> None:
    sent: Messages = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(content_length=b"10"))
        await send(piece(b"half", more=True))

    async def send(message: Any) -> None:
        sent.append(message)

    coroutine = LostGateway(app)({"type": "http", "headers": []}, lambda: None, send)  # type: ignore[arg-type]
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert [message.get("body") for message in sent] == [None, b"half"]

"""What a server may be told to fetch, and what not."""

import contextlib
import http.client
import socket
import threading
from typing import Any

import pytest

from spark_ray.serving import fetch
from spark_ray.serving.errors import ApiError
from spark_ray.serving.fetch import Fetcher, public_address


def fetcher(*hosts: str, buckets: tuple[str, ...] = (), max_bytes: int = 100) -> Fetcher:
    return Fetcher(hosts, buckets, max_bytes, 10.0)


def code_of(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(ApiError) as raised:
        list(fetcher.chunks(url))
    return raised.value.code


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    def answer(*_: Any, **__: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, 443)) for a in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", answer)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/a.mp4",
        "https://example.com:8443/a.mp4",
        "https://user:secret@example.com/a.mp4",
        "https://",
        "https://[::1",
        "file:///etc/passwd",
        "https://example.com/a b.mp4",
        "https://example.com/\r\nHost: inside",
    ],
)
def test_odd_addresses_are_refused(url: str) -> None:
    assert code_of(fetcher("*"), url) == "invalid_url"


def test_hosts_must_be_on_the_list() -> None:
    assert code_of(fetcher(), "https://example.com/a.mp4") == "address_not_allowed"
    assert code_of(fetcher("*.example.com"), "https://example.org/a") == "address_not_allowed"
    assert code_of(fetcher("example.com"), "https://evil-example.com/") == "address_not_allowed"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "0.0.0.0", "224.0.0.1", "::1",
     "fe80::1%eth0", "::ffff:10.0.0.1", "2002:0a00:0001::1", "fd00::1", "64:ff9b::a9fe:a9fe",
     "fec0::1", "::10.0.0.1"],
)  # fmt: skip
def test_names_that_lead_inside_are_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "93.184.216.34", address)
    assert code_of(fetcher("*"), "https://example.com/a.mp4") == "address_not_allowed"


def test_the_connection_goes_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A second lookup might answer otherwise."""
    resolve_to(monkeypatch, "93.184.216.34")
    assert public_address("example.com") == "93.184.216.34"
    asked: list[tuple[str, int]] = []

    def connect(address: tuple[str, int], *_: Any) -> socket.socket:
        asked.append(address)
        raise OSError("no network here")

    monkeypatch.setattr(socket, "create_connection", connect)
    assert code_of(fetcher("example.com"), "https://example.com/a.mp4") == "fetch_failed"
    assert asked == [("93.184.216.34", 443)]


class _Answers:
    """Stands for the connection: one canned response for each request."""

    def __init__(self, *responses: tuple[int, dict[str, str], bytes]) -> None:
        self.responses = list(responses)
        self.hosts: list[str] = []

    def __call__(self, host: str, address: str, timeout_s: float) -> "_Answers":
        self.hosts.append(host)
        self.status, self.headers, self.body = self.responses.pop(0)
        self.length = int(self.headers.get("Content-Length", len(self.body)))
        return self

    def request(self, *_: Any, **__: Any) -> None: ...

    def getresponse(self) -> "_Answers":
        return self

    def getheader(self, name: str) -> str | None:
        return self.headers.get(name)

    def read1(self, size: int) -> bytes:
        data, self.body = self.body[:size], self.body[size:]
        return data

    def close(self) -> None: ...


def test_a_redirect_is_checked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    answers = _Answers((302, {"Location": "https://inside.local/a"}, b""))
    monkeypatch.setattr(fetch, "_PinnedConnection", answers)
    assert code_of(fetcher("example.com"), "https://example.com/a") == "address_not_allowed"
    answers = _Answers((302, {"Location": "http://example.com/a"}, b""))
    monkeypatch.setattr(fetch, "_PinnedConnection", answers)
    assert code_of(fetcher("example.com"), "https://example.com/a") == "invalid_url"
    answers = _Answers(*[(302, {"Location": "/again"}, b"")] * 4)
    monkeypatch.setattr(fetch, "_PinnedConnection", answers)
    assert code_of(fetcher("example.com"), "https://example.com/a") == "fetch_failed"


def test_what_comes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    monkeypatch.setattr(fetch, "_PinnedConnection", _Answers((200, {}, bytes(100))))
    assert b"".join(fetcher("example.com").chunks("https://example.com/a")) == bytes(100)
    monkeypatch.setattr(fetch, "_PinnedConnection", _Answers((200, {}, bytes(101))))
    assert code_of(fetcher("example.com"), "https://example.com/a") == "too_large"
    monkeypatch.setattr(fetch, "_PinnedConnection", _Answers((404, {}, b"")))
    assert code_of(fetcher("example.com"), "https://example.com/a") == "fetch_failed"


def test_half_a_file_is_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "93.184.216.34")
    answers = _Answers((200, {"Content-Length": "60"}, bytes(30)))
    monkeypatch.setattr(fetch, "_PinnedConnection", answers)
    assert code_of(fetcher("example.com"), "https://example.com/a") == "fetch_failed"


def test_who_sends_a_byte_now_and_then_is_too_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over a real socket, since it is the reading from it that could wait for more."""
    resolve_to(monkeypatch, "93.184.216.34")
    ours, theirs = socket.socketpair()
    ended = threading.Event()
    sent: list[bytes] = []

    def drip() -> None:
        theirs.recv(1 << 16)
        theirs.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 90\r\n\r\n")
        with contextlib.suppress(OSError):
            while len(sent) < 90 and not ended.wait(0.05):
                theirs.sendall(b"x")
                sent.append(b"x")

    def connect(self: http.client.HTTPConnection) -> None:
        self.sock = ours

    monkeypatch.setattr(fetch._PinnedConnection, "connect", connect)
    dripping = threading.Thread(target=drip)
    dripping.start()
    slow = Fetcher(["example.com"], [], 100, 0.3)
    try:
        assert code_of(slow, "https://example.com/a") == "fetch_timeout"
        assert len(sent) < 45, "it was waited for to its end"
    finally:
        ended.set()
        dripping.join()
        theirs.close()


@pytest.mark.parametrize(
    "url", ["s3://other/a.mp4", "s3://mine-too/a.mp4", "s3://mine/../other/a", "s3://mine//a"]
)
def test_buckets_must_be_on_the_list(url: str) -> None:
    assert code_of(fetcher(buckets=("s3://mine",)), url) == "address_not_allowed"


def test_a_line_break_does_not_lead_out_of_the_bucket() -> None:
    """A job's inputs are lines of a file, where this would be a folder of the server's own."""
    with pytest.raises(ApiError) as raised:
        fetcher(buckets=("s3://mine",)).check_bucket("s3://mine/a\n/etc/private")
    assert raised.value.code == "invalid_url"

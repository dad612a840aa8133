"""What is small when it is sent and large when it is believed, and uploads that never end.

Each is a refusal in a sentence, within bounds of time and memory, and the server goes on.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bombs
import httpx2 as httpx
import psutil
import pytest
from serving_world import UPLOAD_TIMEOUT_S, client_of, refused, secret, upload

from spark_ray.serving.keys import KeyStore

MOST_S = 100.0
MOST_MIB = 400
"""What a process of the server may grow by meanwhile. The picture alone is 536 MB at a bit each."""

_SERVER = ("ServeReplica:spark-ray:Decoder", "ServeReplica:spark-ray:Gateway", "ProxyActor")


@pytest.fixture
def small(client: httpx.Client, folder: Path, head: dict[str, Any]) -> Iterator[None]:
    """No process of the server grows or goes, and a healthy request is answered as before."""
    asset = upload(client, folder / "videos" / "clip_001.mp4")["id"]
    healthy = {"asset": asset, "max_new_tokens": 8}
    expected = client.post("/v1/captions", json=healthy).json()["caption"]
    processes = server_processes(head)
    assert len(processes) >= len(_SERVER)
    before = {process.pid: process.memory_info().rss for process in processes}
    grown_mib, ended = 0.0, threading.Event()

    def watch() -> None:
        nonlocal grown_mib
        while not ended.wait(0.02):
            for process in processes:
                with contextlib.suppress(psutil.NoSuchProcess):
                    grown = process.memory_info().rss - before[process.pid]
                    grown_mib = max(grown_mib, grown / 2**20)

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    try:
        yield
    finally:
        took_s = time.monotonic() - started
        ended.set()
        watcher.join()
    assert took_s < MOST_S
    assert grown_mib < MOST_MIB
    answer = client.post("/v1/captions", json=healthy)
    assert (answer.status_code, answer.json().get("caption")) == (200, expected), answer.text
    assert {process.pid for process in server_processes(head)} >= before.keys(), "one was lost"


def server_processes(head: dict[str, Any]) -> list[psutil.Process]:
    found = []
    for process in head["node"].processes():
        with contextlib.suppress(psutil.Error):
            if any(part in " ".join(process.cmdline()) for part in _SERVER):
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("make", "status", "code", "said"),
    [
        (bombs.huge_picture, 413, "media_too_large", "more than max_pixels"),
        (bombs.profile_picture, 422, "unusable_media", "too large"),
        (lambda: bombs.archive(1), 415, "unsupported_media", "send MP4"),
        (lambda: bombs.archive(3), 415, "unsupported_media", "send MP4"),
        (bombs.tar, 415, "unsupported_media", "send MP4"),
        (bombs.archive_in_disguise, 422, "unusable_media", ""),
    ],
    ids=["picture", "profile", "archive", "nested", "tar", "disguised"],
)
@pytest.mark.usefixtures("small")
def test_a_bomb_is_refused(
    client: httpx.Client, make: Callable[[], bytes], status: int, code: str, said: str
) -> None:
    file = ("film.mp4", make(), "video/mp4")  # a name and a type that say nothing
    refused(client.post("/v1/captions", files={"file": file}), status, code, said)


@pytest.mark.parametrize(
    ("make", "status", "code", "said"),
    [
        (bombs.wide_video, 413, "media_too_large", "8192×8192"),
        (bombs.fast_video, 413, "media_too_large", "1000000 frames/s"),
        (bombs.long_video, 413, "media_too_large", "clip_max_s=60"),
        (bombs.many_frames, 413, "media_too_large", "clip_max_s=60"),
        (bombs.lying_video, 422, "unusable_media", "damaged"),
    ],
)
@pytest.mark.usefixtures("small")
def test_a_video_that_asks_for_too_much_is_refused(
    client: httpx.Client,
    tmp_path: Path,
    make: Callable[[Path], bytes],
    status: int,
    code: str,
    said: str,
) -> None:
    video = make(tmp_path)
    for path in ("/v1/captions", "/v1/analyze"):
        refused(client.post(path, files={"file": video}), status, code, said)


@pytest.mark.parametrize("path", ["/v1/captions", "/v1/search", "/v1/jobs", "/v1/embeddings"])
@pytest.mark.parametrize("nested", [b"[", b'{"a":'], ids=["lists", "objects"])
@pytest.mark.usefixtures("small")
def test_json_of_any_depth_is_refused(client: httpx.Client, path: str, nested: bytes) -> None:
    body = nested * (4_000_000 // len(nested))
    kind = {"Content-Type": "application/json"}
    answer = client.post(path, content=body, headers=kind)
    assert answer.status_code in (400, 422), answer.text
    assert answer.json()["error"]["message"]


FORM = (
    "Content-Type: multipart/form-data; boundary=b",
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="f"\r\n\r\n',
)
JSON = ("Content-Type: application/json", b" ")
FAST = 0.001
"""Seconds between two pieces of 64 KiB: half a gigabit a second. Serve's own proxy reads ahead of
the gateway without a bound, so what it holds depends on how fast a client's network is."""


@pytest.mark.parametrize(
    ("kind", "piece", "every_s", "status", "code"),
    [
        (FORM, bytes(1 << 16), FAST, 413, "too_large"),
        (JSON, b" " * (1 << 16), FAST, 413, "too_large"),
        (FORM, b"x", 0.2, 408, "upload_timeout"),
        (JSON, b" ", 0.2, 408, "upload_timeout"),
    ],
    ids=["form", "json", "slow-form", "slow-json"],
)
@pytest.mark.usefixtures("small")
def test_an_upload_that_never_ends_is_ended(
    server: str,
    keys: KeyStore,
    kind: tuple[str, bytes],
    piece: bytes,
    every_s: float,
    status: int,
    code: str,
) -> None:
    key = secret(keys, "infer", max_concurrent=1)
    began = time.monotonic()
    answer, sent = send_for_ever(server, "POST /v1/captions", key, kind, piece, every_s)
    assert answer.startswith(f"HTTP/1.1 {status} "), answer[:500]
    assert f'"{code}"' in answer
    assert sent < MOST_MIB << 20
    if status == 408:
        assert UPLOAD_TIMEOUT_S - 1 < time.monotonic() - began < MOST_S / 2
    with client_of(server, key) as mine:
        assert mine.get("/v1/models").status_code == 200, "the only slot of the key is free again"


@pytest.mark.usefixtures("small")
def test_a_part_of_an_upload_that_never_ends_keeps_what_came(server: str, keys: KeyStore) -> None:
    key = secret(keys, "infer")
    tus = {"Tus-Resumable": "1.0.0"}
    with client_of(server, key) as mine:
        begun = mine.post("/v1/assets", headers={**tus, "Upload-Length": "100000"})
        place = begun.headers["location"]
        head = "Tus-Resumable: 1.0.0\r\nUpload-Offset: 0\r\n"
        head += "Content-Type: application/offset+octet-stream"
        answer, _ = send_for_ever(server, f"PATCH {place}", key, (head, b"first"), b"x", 0.2)
        assert answer.startswith("HTTP/1.1 408 "), answer[:500]
        assert int(mine.head(place, headers=tus).headers["upload-offset"]) >= 5


def send_for_ever(
    server: str, line: str, key: str, kind: tuple[str, bytes], piece: bytes, every_s: float
) -> tuple[str, int]:
    """Send pieces until the server says something; what it says, and how many bytes it got."""
    address = httpx.URL(server)
    headers, first = kind
    sent = 0
    end = time.monotonic() + MOST_S
    with socket.create_connection((address.host, address.port), timeout=MOST_S) as connection:
        head = (
            f"{line} HTTP/1.1\r\nHost: {address.host}\r\nAuthorization: Bearer {key}\r\n"
            f"{headers}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        connection.sendall(head.encode())
        data = first
        while time.monotonic() < end and not select.select([connection], [], [], every_s)[0]:
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.sendall(f"{len(data):x}\r\n".encode() + data + b"\r\n")
                sent += len(data)
            data = piece
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(1 << 16):
                answer += part
                if b"}}" in answer:
                    break
    return answer.decode(), sent

import hashlib
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from spark_ray.core.errors import ConfigError, ModelError
from spark_ray.models.weights import SAFETENSORS, Weights, hash_weights, resolve_weights

COMMIT = "0123456789abcdef0123456789abcdef01234567"
FILES = {
    "config.json": b'{"model_type": "blip"}',
    "model.safetensors": b"\x00" * 1_500_000,
    "pytorch_model.bin": b"pickled",
    "onnx/model.safetensors": b"not ours",
}


def resolve(reference: str, revision: str | None = None) -> Weights:
    return resolve_weights(
        reference,
        setting="caption_model",
        revision=revision,
        kind=SAFETENSORS,
        instead="use a folder",
    )


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    return folder


class SmallHub(BaseHTTPRequestHandler):
    """One model, `org/model`, in as much of the hub's HTTP API as its client asks for."""

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = urlsplit(self.path).path
        _, _, name = path.partition(f"/org/model/resolve/{COMMIT}/")
        if name in FILES:
            self.send(FILES[name], name)
        elif path.startswith("/api/models/org/model/tree/"):
            tree = [
                {"type": "file", "path": path, "size": len(data), "oid": self.etag(path)}
                for path, data in FILES.items()
            ]
            self.send(json.dumps(tree).encode())
        elif path.startswith("/api/models/org/model"):
            self.send(json.dumps({"id": "org/model", "sha": COMMIT, "siblings": []}).encode())
        else:
            self.send_error(404)

    def send(self, data: bytes, name: str = "answer.json") -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Content-Type", "application/json")
        self.send_header("ETag", f'"{self.etag(name)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data)

    @staticmethod
    def etag(name: str) -> str:
        return hashlib.sha1(name.encode()).hexdigest()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), SmallHub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE",
        address + "/{repo_id}/resolve/{revision}/{filename}",
    )
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_model_is_announced_fetched_once_and_pinned(
    hub: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "spark_ray.models.weights"):
        weights = resolve("org/model")
    (announced,) = [r.getMessage() for r in caplog.records if r.name == "spark_ray.models.weights"]
    assert announced == (
        "caption_model: downloading org/model from the Hugging Face hub: 2 files, 2 MB. "
        "To do without, use a folder."
    )
    assert weights.revision == COMMIT
    names = {p.relative_to(weights.folder).as_posix() for p in weights.folder.rglob("*")}
    assert names == {"config.json", "model.safetensors"}
    expected = hashlib.sha256(FILES["model.safetensors"]).hexdigest()
    assert weights.info("prompt").weights_hash == expected

    caplog.clear()
    assert resolve("org/model") == weights
    assert not [r for r in caplog.records if r.name == "spark_ray.models.weights"]


def test_what_was_fetched_once_is_found_offline(hub: None, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = resolve("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("org/model") == fetched


def test_offline_names_the_setting_and_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError) as caught:
        resolve("org/model")
    assert str(caught.value) == (
        "caption_model: org/model is not on this machine and HF_HUB_OFFLINE=1 forbids downloading "
        "it; unset HF_HUB_OFFLINE, or use a folder"
    )


def test_a_model_that_the_hub_does_not_have_is_an_error(hub: None) -> None:
    with pytest.raises(ModelError, match=r"org/other can't be fetched .* or use a"):
        resolve("org/other")


def test_a_hub_out_of_reach_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelError, match="caption_model: org/model can't be fetched"):
        resolve("org/model")


@pytest.mark.parametrize("reference", ["/no/such/folder", "./models/blip", "s3://a/b", "blip"])
def test_neither_folder_nor_hub_id(reference: str) -> None:
    with pytest.raises(ModelError, match="neither a folder on this machine nor a hub id"):
        resolve(reference)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no revisions"):
        resolve(str(tmp_path), revision="main")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        resolve(str(tmp_path))


def test_the_hash_covers_all_shards_in_order_and_sees_changes(tmp_path: Path) -> None:
    second, first = tmp_path / "b.safetensors", tmp_path / "a.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    expected = hashlib.sha256(b"onetwo").hexdigest()
    assert hash_weights((second, first)) == hash_weights((first, second)) == expected
    second.write_bytes(b"three")
    assert hash_weights((first, second)) == hashlib.sha256(b"onethree").hexdigest()

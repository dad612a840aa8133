import hashlib
import json
import logging
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from spark_ray.core.errors import ConfigError, MissingDependency, ModelError, RegistryUnavailable
from spark_ray.models.weights import (
    SAFETENSORS,
    Weights,
    check_reference,
    check_weights,
    hash_weights,
    resolve_weights,
)

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


def test_missing_weights_are_noticed_before_they_are_loaded(
    hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where nothing may be fetched; else it may all come yet."""

    def check(reference: str) -> None:
        check_weights(
            reference, setting="caption_model", revision=None, kind=SAFETENSORS, instead="ask"
        )

    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        check(str(tmp_path / "empty"))
    check("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match="org/model is not on this machine and HF_HUB_OFFLINE=1"):
        check("org/model")
    check("s3://models/blip")
    check("models:/apotheon@champion")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    resolve("org/model")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    check("org/model")


def test_a_model_that_the_hub_does_not_have_is_an_error(hub: None) -> None:
    with pytest.raises(ModelError, match=r"org/other can't be fetched .* or use a"):
        resolve("org/other")


def test_a_hub_out_of_reach_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with pytest.raises(ModelError, match="caption_model: org/model can't be fetched"):
        resolve("org/model")


@pytest.mark.parametrize(
    "reference", ["/no/such/folder", "./models/blip", "blip", "~nobody-here/blip"]
)
def test_neither_folder_nor_hub_id(reference: str) -> None:
    with pytest.raises(ModelError, match="neither a folder on this machine nor one at s3://"):
        resolve(reference)


def test_a_folder_has_no_revisions(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ConfigError, match="no revisions"):
        resolve(str(tmp_path), revision="main")


def test_a_folder_without_a_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"holds no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        resolve(str(tmp_path))


def test_the_folder_of_a_training_run_leads_to_the_model_in_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    with pytest.raises(ModelError, match=f"did you mean {tmp_path}/model"):
        check_reference(f"{tmp_path}/", "model")


def test_the_hash_covers_all_shards_in_order_and_sees_changes(tmp_path: Path) -> None:
    second, first = tmp_path / "b.safetensors", tmp_path / "a.safetensors"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    expected = hashlib.sha256(b"onetwo").hexdigest()
    assert hash_weights((second, first)) == hash_weights((first, second)) == expected
    second.write_bytes(b"three")
    assert hash_weights((first, second)) == hashlib.sha256(b"onethree").hexdigest()


@pytest.fixture(scope="module")
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("mlflow")
    from spark_ray.models.registered import open_client

    folder = tmp_path_factory.mktemp("mlflow")
    uri = f"sqlite:///{folder}/mlflow.db"
    client = open_client(uri)
    client.create_registered_model("apotheon")
    for number in (1, 2, 3):
        model = folder / f"model {number}" / "checkpoint"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        (model / "model.safetensors").write_bytes(bytes([number]) * 1000)
        (model.parent / "MLmodel").write_text("flavors: {}")
        client.create_model_version("apotheon", model.parent.as_uri())
    client.set_registered_model_alias("apotheon", "champion", "2")
    return uri


@pytest.fixture
def registry(mlflow_store: str, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", mlflow_store)
    monkeypatch.delenv("MLFLOW_REGISTRY_URI", raising=False)
    return mlflow_store


@pytest.mark.parametrize(
    ("reference", "version"), [("models:/apotheon@champion", "2"), ("models:/apotheon/3", "3")]
)
def test_a_registered_model_is_used_where_it_lies(
    registry: str, reference: str, version: str
) -> None:
    weights = resolve(reference)
    assert (weights.name, weights.revision) == (reference, version)
    assert weights.folder == Path(registry.removeprefix("sqlite:///")).parent / (
        f"model {version}/checkpoint"
    )
    expected = hashlib.sha256(bytes([int(version)]) * 1000).hexdigest()
    assert weights.info().weights_hash == expected


@pytest.mark.parametrize("name", ["apotheon@chmpion", "apotheon/4", "apothon@champion"])
def test_what_is_not_registered_lists_what_is(registry: str, name: str) -> None:
    with pytest.raises(ModelError) as caught:
        resolve(f"models:/{name}")
    assert str(caught.value) == (
        f"caption_model: models:/{name} is not registered at {registry}; "
        "known there: apotheon (versions 1, 2, 3; @champion is 2)"
    )


@pytest.mark.parametrize("name", ["apotheon", "apotheon/Production", "apotheon@a/b", ""])
def test_a_registered_model_needs_a_version_or_an_alias(registry: str, name: str) -> None:
    with pytest.raises(ModelError, match="write 'models:/name@alias' or 'models:/name/version'"):
        resolve(f"models:/{name}")


def test_a_registered_model_takes_no_revision(registry: str) -> None:
    with pytest.raises(ConfigError, match="leave out the revision"):
        resolve("models:/apotheon/3", revision="main")


def test_looking_up_a_model_makes_no_registry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(
        ModelError, match=r"no model registry .*mlflow\.db; set MLFLOW_TRACKING_URI"
    ):
        resolve("models:/apotheon@champion")
    assert not list(tmp_path.iterdir())


def test_a_registry_out_of_reach_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://user:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryUnavailable, match="can't be fetched from http://127") as caught:
        resolve("models:/apotheon@champion")
    assert "secret" not in str(caught.value)


def test_without_mlflow_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'spark-ray\[train\]'"):
        resolve("models:/apotheon@champion")


def test_files_that_are_elsewhere_are_fetched_once_for_all_actors(
    registry: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from mlflow.store.artifact import artifact_repository_registry
    from mlflow.store.artifact.artifact_repo import ArtifactRepository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository

    fetched = []

    class Bucket(ArtifactRepository):
        """A folder that is not to be read directly."""

        def __init__(self, uri: str) -> None:
            super().__init__(uri)
            self.inside = LocalArtifactRepository(uri)

        def list_artifacts(self, path: str | None = None) -> list[Any]:
            return self.inside.list_artifacts(path)

        def _download_file(self, remote_file_path: str, local_path: str) -> None:
            fetched.append(remote_file_path)
            self.inside._download_file(remote_file_path, local_path)

        def log_artifact(self, *_: Any) -> None: ...

        def log_artifacts(self, *_: Any) -> None: ...

    monkeypatch.setattr(artifact_repository_registry, "get_artifact_repository", Bucket)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(4) as actors:
        weights = list(actors.map(resolve, ["models:/apotheon@champion"] * 4))
    assert len(set(weights)) == 1
    assert weights[0].folder.is_relative_to(tmp_path)
    assert weights[0].files[0].read_bytes() == bytes([2]) * 1000
    assert sorted(fetched) == ["checkpoint/config.json", "checkpoint/model.safetensors"]
    (announced,) = [r for r in caplog.records if r.name == "spark_ray.models.registered"]
    assert "fetching 0.0 MB from the model registry" in announced.getMessage()

"""A server as operators bring it up, with tiny models, for the tests that ask it as clients do."""

import contextlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import builds
import cv2
import httpx2 as httpx
import pytest
import yaml
from clusters import RAY, ROOT, free_port
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from spark_ray.core.schema import Caption
from spark_ray.media.closed_world import ClipSpec, sample_spec
from spark_ray.media.geometry import encode_jpeg
from spark_ray.media.synthetic import draw_clip, write_clip
from spark_ray.models.model_card import write_model_card
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.settings import ServeSettings
from spark_ray.training.registry import promote, register_model

sys.path += [str(ROOT / "tests" / name) for name in ("", "unit/datasets", "unit/training")]
import apotheons
import trained
from fake_version import jpeg, make_clip, make_reject, write_version

JOBS = {"fps": 1, "caption_backend": "sidecar"}
DECODING = {"fps": 4.0, "smart_sampling": False}
"""How the clips were sampled that the model learned from."""

UPLOAD_TIMEOUT_S = 5.0


PROVIDER = {"issuer": "https://login.example", "audience": "sparkray"}
PROVIDER_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="package")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("serving")
    apotheons.model().save_pretrained(folder / "model")
    apotheons.processor().save_pretrained(folder / "model")
    record = trained.record()
    dataset = record.dataset.model_copy(update={"decoding": DECODING})
    record.model_copy(update={"dataset": dataset}).write(folder / "model")
    for seed in (1, 2):
        version = folder / f"version-{seed}"
        shutil.copytree(folder / "model", version)
        apotheons.model(seed).save_pretrained(version)
        write_model_card(version)
        alias = f"number-{seed}"
        register_model(version, tracking_uri=registry(folder), name="versioned", alias=alias)
    set_champion(folder, 1)
    builds.write_numbers(folder / "videos", range(1, 5))
    clips = [
        make_clip(number, source=f"/films/{number}.mp4", caption=f"number {number}", dropped=())
        for number in range(6)
    ]
    for number, clip in enumerate(clips):
        clip.frames = [jpeg(8 * number + at, size=64) for at in range(len(clip.samples))]
    clips[4].caption, clips[4].label = None, "boats"
    clips[5].transcript = None
    write_version(folder / "sets" / "films", clips)
    write_shapes(folder / "sets" / "shapes")
    spec = next(spec for spec in map(partial(sample_spec, 3), range(50)) if wanted(spec))
    write_clip(spec, folder / "drawn.mp4")
    return folder


def wanted(spec: ClipSpec) -> bool:
    """Of two scenes, with words, and in what every browser plays."""
    return len(spec.scenes) == 2 and bool(spec.narration) and spec.codec == "libx264"


def write_shapes(root: Path) -> None:
    """Two versions of drawn clips; the second has two more, and another caption for the first."""
    clips = []
    for number in range(8):
        spec = sample_spec(5, number)
        frames = list(draw_clip(spec))
        caption = spec.caption if number else "nobody knows"
        clip = make_clip(number, source=f"/shapes/{number}.mp4", caption=caption, frames=4)
        every = len(frames) // 4
        clip.frames = [encode_jpeg(cv2.cvtColor(f, cv2.COLOR_RGB2BGR), 85) for f in
                       frames[::every][:4]]  # fmt: skip
        clips.append(clip)
    rejects = (make_reject("/shapes/broken.mp4", "its second half is missing"),)
    write_version(root, clips[:6], rejects=rejects, duplicates=("/shapes/copy.mp4",))
    clips[0].caption = Caption(text="a red circle moves to the left")
    write_version(root, clips, name="v2")


def registry(folder: Path) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def set_champion(folder: Path, version: int) -> None:
    promote("versioned", str(version), tracking_uri=registry(folder))


@pytest.fixture(scope="package")
def settings(folder: Path) -> dict[str, Any]:
    """The file for a laptop, with the test's own places in it."""
    config = yaml.safe_load((ROOT / "serve_configs" / "local.yaml").read_text())
    config["http_options"]["port"] = free_port()
    arguments = config["applications"][0]["args"]
    arguments |= {
        "state": str(folder / "state"),
        "datasets": [str(folder / "sets" / name) for name in ("films", "shapes")],
        "job_settings": JOBS,
        "limits": {
            "max_upload_bytes": 1 << 20,
            "max_json_depth": 16,
            "upload_timeout_s": UPLOAD_TIMEOUT_S,
        },
    }
    arguments["models"]["apotheon"]["reference"] = str(folder / "model")
    arguments["models"]["versioned"] = {"reference": "models:/versioned", "num_cpus": 0.1}
    arguments["alias_lifetime_s"] = 0.5
    keys = {"keys": [RSAAlgorithm.to_jwk(PROVIDER_KEY.public_key(), as_dict=True) | {"kid": "1"}]}
    (folder / "keys.json").write_text(json.dumps(keys))
    arguments["tokens"] = {**PROVIDER, "jwks_file": str(folder / "keys.json")}
    environment = {"MLFLOW_TRACKING_URI": registry(folder)}
    config["applications"][0]["runtime_env"] = {"env_vars": environment}
    front_end = config["applications"][1]["args"]
    front_end["api_url"] = f"http://127.0.0.1:{config['http_options']['port']}"
    return config


@pytest.fixture(scope="package")
def server(
    head: dict[str, Any], environment: dict[str, str], folder: Path, settings: dict[str, Any]
) -> Iterator[str]:
    """The address of a server that is ready."""
    serve = str(RAY.with_name("serve"))
    address = ["--address", head["jobs"]]
    deploy(folder / "serve.yaml", settings, head, environment)
    url = f"http://127.0.0.1:{settings['http_options']['port']}"
    try:
        try:
            builds.wait_until(lambda: is_ready(url), f"a server at {url}", seconds=400)
        except AssertionError as error:
            told = builds.run([serve, "status", *address], env=environment)
            raise AssertionError(f"{error}: {told.stdout}{told.stderr}") from error
        yield url
    finally:
        builds.run([serve, "shutdown", *address, "-y"], env=environment)


def deploy(
    file: Path, settings: dict[str, Any], head: dict[str, Any], environment: dict[str, str]
) -> None:
    file.write_text(yaml.safe_dump(settings))
    command = [str(RAY.with_name("serve")), "deploy", "--address", head["jobs"], str(file)]
    deployed = builds.run(command, env=environment)
    assert deployed.returncode == 0, deployed.stderr


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        front_end = httpx.get(f"{url}/ui/login", timeout=20).status_code
        return (httpx.get(f"{url}/readyz", timeout=20).status_code, front_end) == (200, 200)
    return False


@pytest.fixture(scope="package")
def keys(settings: dict[str, Any]) -> KeyStore:
    arguments = settings["applications"][0]["args"]
    return KeyStore(Database(ServeSettings.from_values(**arguments).located().database))


def secret(keys: KeyStore, *scopes: str, **limits: Any) -> str:
    made = {"requests_per_minute": 6000, "max_concurrent": 16, "lifetime_s": None, **limits}
    return keys.create("test", list(scopes), **made)[1]


@pytest.fixture(scope="package")
def client(server: str, keys: KeyStore) -> Iterator[httpx.Client]:
    with client_of(server, secret(keys, "infer", "jobs")) as made:
        yield made


def client_of(server: str, key: str) -> httpx.Client:
    return httpx.Client(base_url=server, headers={"Authorization": f"Bearer {key}"}, timeout=60)


def upload(client: httpx.Client, path: Path) -> dict[str, Any]:
    answer = client.post("/v1/assets", files={"file": path.read_bytes()})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def ask_until_ready(client: httpx.Client, query: dict[str, Any]) -> dict[str, Any]:
    for _ in range(20):
        answer = client.post("/v1/search", json=query)
        if answer.status_code != 503:
            break
        assert answer.headers["retry-after"] == "6"
        time.sleep(1)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def refused(answer: httpx.Response, status: int, code: str, said: str = "") -> None:
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["code"] == code
    assert said in error["message"]
    assert error["request_id"] == answer.headers["x-request-id"]

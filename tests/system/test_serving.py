"""The server as operators bring it up, `serve deploy`, and as clients ask it, over HTTP."""

import contextlib
import copy
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builds
import httpx2 as httpx
import numpy as np
import openai
import pytest
from clusters import ask
from fake_version import jpeg
from serving_world import (
    DECODING,
    ask_until_ready,
    client_of,
    deploy,
    refused,
    secret,
    set_champion,
    upload,
)

from spark_ray.media.audio_codec import encode_audio
from spark_ray.models.apotheon import Apotheon
from spark_ray.serving.decoding import decode_file, decode_options
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import MediaFile
from spark_ray.serving.settings import ServeSettings

METRICS = {
    f"ray_spark_ray_{name}"
    for name in (
        "http_requests_total",
        "http_request_seconds_count",
        "request_phase_seconds_count",
        "model_seconds_count",
        "model_clips_total",
        "jobs",
    )
}


def test_a_caption_over_http_is_that_of_the_model(client: httpx.Client, folder: Path) -> None:
    video = folder / "videos" / "clip_003.mp4"
    answer = client.post("/v1/captions", files={"file": video.read_bytes()})
    assert answer.status_code == 200, answer.text
    said = answer.json()

    apotheon = Apotheon.load(str(folder / "model"), setting="model")
    limits = ServeSettings.from_values().limits
    file = MediaFile(location=str(video), kind="video", sha256="0" * 64)
    clip = decode_file(file, decode_options(DECODING, limits))
    assert len(clip.frames) == 4
    prepared = apotheon.prepare(clip.frames, clip.frame_times, clip.audio)
    assert said["caption"] == apotheon.write([prepared], "caption", 128)[0]
    assert said["model"]["name"] == "apotheon"
    assert said["model"]["dataset_version"] == "v3"
    assert said["model"]["weights_hash"] == apotheon.weights.info().weights_hash
    assert str(folder) not in answer.text, "where files lie is not the client's to see"
    assert answer.headers["x-request-id"] == said["id"]
    phases = [part.partition(";")[0] for part in answer.headers["server-timing"].split(", ")]
    assert phases == ["queue", "preprocess", "model", "postprocess"]


def test_everything_at_once(client: httpx.Client, folder: Path) -> None:
    asset = upload(client, folder / "videos" / "clip_001.mp4")
    assert (asset["kind"], asset["media_type"]) == ("video", "video/mp4")
    said = client.post("/v1/analyze", json={"asset": asset["id"]}).json()
    assert said["scenes"] == [{"start_time": 0.0, "end_time": 1.0}]
    assert (said["width"], said["height"]) == (builds.SIDE, builds.SIDE)
    assert said["caption"] is not None
    assert said["transcript"] is None, "there is no sound"
    assert client.delete(f"/v1/assets/{asset['id']}").status_code == 204
    refused(client.get(f"/v1/assets/{asset['id']}"), 404, "asset_not_found")


def test_an_upload_is_resumed(client: httpx.Client, folder: Path) -> None:
    """After the tus protocol, as its clients speak it."""
    data = (folder / "videos" / "clip_002.mp4").read_bytes()
    tus = {"Tus-Resumable": "1.0.0"}
    begun = client.post("/v1/assets", headers={**tus, "Upload-Length": str(len(data))})
    assert begun.status_code == 201
    place = begun.headers["location"]
    patch = {**tus, "Content-Type": "application/offset+octet-stream"}
    sent = client.patch(place, headers={**patch, "Upload-Offset": "0"}, content=data[:100])
    assert (sent.status_code, sent.headers["upload-offset"]) == (204, "100")
    refused(
        client.post("/v1/captions", json={"asset": place.rpartition("/")[2]}),
        409,
        "upload_unfinished",
    )
    again = client.patch(place, headers={**patch, "Upload-Offset": "0"}, content=data)
    refused(again, 409, "wrong_offset", "goes on at byte 100")
    assert client.head(place, headers=tus).headers["upload-offset"] == "100"
    rest = client.patch(place, headers={**patch, "Upload-Offset": "100"}, content=data[100:])
    assert rest.status_code == 204
    assert client.get(place).json()["complete"]
    assert client.post("/v1/captions", json={"asset": place.rpartition("/")[2]}).is_success


def test_openais_own_client_works(server: str, keys: KeyStore, folder: Path) -> None:
    client = openai.OpenAI(api_key=secret(keys, "infer"), base_url=f"{server}/v1")
    assert [model.id for model in client.models.list()] == ["apotheon", "versioned"]
    embedded = client.embeddings.create(model="apotheon", input=["a red circle", "a boat"])
    vectors = np.asarray([item.embedding for item in embedded.data])
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)

    asset = client.post(
        "/assets",
        cast_to=httpx.Response,
        files={"file": (folder / "videos" / "clip_001.mp4").read_bytes()},
        options={"headers": {"Content-Type": "multipart/form-data"}},
    ).json()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is seen?"},
                {"type": "video_url", "video_url": {"url": asset["id"]}},
            ],
        }
    ]
    whole = client.chat.completions.create(model="apotheon", messages=messages)
    stream = client.chat.completions.create(model="apotheon", messages=messages, stream=True)
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert len(pieces) > 3
    assert "".join(pieces) == whole.choices[0].message.content

    tone = np.round(9000 * np.sin(np.arange(16_000) / 9)).astype(np.int16)
    sound = ("tone.flac", encode_audio(tone, "flac"))
    heard = client.audio.transcriptions.create(model="apotheon", file=sound)
    plain = client.audio.transcriptions.create(model="apotheon", file=sound, response_format="text")
    assert heard.text.strip() == plain.strip()
    with pytest.raises(openai.NotFoundError, match="choose one of: apotheon, versioned"):
        client.embeddings.create(model="gpt", input="x")


def test_search_finds_the_clip_that_was_asked_for(
    client: httpx.Client, folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "3.jpg").write_bytes(jpeg(24, size=64))
    asset = upload(client, tmp_path / "3.jpg")
    assert asset["kind"] == "image"
    by_picture = ask_until_ready(client, {"asset": asset["id"], "limit": 6})
    assert len(by_picture["hits"]) == 6
    scores = [hit["score"] for hit in by_picture["hits"]]
    assert scores == sorted(scores, reverse=True)
    by_text = ask_until_ready(client, {"text": "a red circle", "limit": 2})
    assert len(by_text["hits"]) == 2
    assert by_text["dataset_version"] == "v1"
    refused(client.post("/v1/search", json={"text": "x", "asset": "y"}), 422, "invalid_request")
    other = client.post("/v1/search", json={"text": "x", "dataset": "/etc"})
    refused(other, 404, "dataset_not_found", "films")


def test_a_job_builds_a_dataset(client: httpx.Client, folder: Path) -> None:
    assets = [upload(client, path)["id"] for path in sorted(folder.glob("videos/*.mp4"))[:2]]
    request = {"name": "new", "assets": assets}
    once = {"Idempotency-Key": "one"}
    begun = client.post("/v1/jobs", json=request, headers=once)
    assert begun.status_code == 201, begun.text
    job = begun.json()["id"]
    assert client.post("/v1/jobs", json=request, headers=once).json()["id"] == job
    other = client.post("/v1/jobs", json={**request, "name": "other"}, headers=once)
    refused(other, 422, "idempotency_key_reused")

    with client.stream("GET", f"/v1/jobs/{job}/events", timeout=300) as events:
        data = [line for line in events.iter_lines() if line.startswith("data: ")]
    states = [json.loads(line.removeprefix("data: ")) for line in data]
    ended = states[-1]
    assert ended["state"] == "succeeded", ended
    assert states[0]["state"] in ("queued", "running"), "the keeper may have been quick"
    assert ended["result"]["clips"] == 2
    assert (ended["result"]["dataset"], ended["result"]["version"]) == ("mine:new", "v1")
    owner = client.get("/v1/me").json()["id"]
    manifest = builds.manifest(folder / "state" / "datasets" / owner / "new" / "v1")
    assert {line["meta"]["source_path"].split("/")[-2] for line in manifest} == set(assets)
    log = client.get(f"/v1/jobs/{job}/logs").text
    assert "published" in log
    assert "mine:new/v1" in log
    assert str(folder) not in log


def test_a_job_goes_on_when_its_driver_is_lost(
    client: httpx.Client, folder: Path, environment: dict[str, str], head: dict[str, Any]
) -> None:
    asset = upload(client, folder / "videos" / "clip_004.mp4")["id"]
    job = client.post("/v1/jobs", json={"name": "lost", "assets": [asset]}).json()["id"]
    builds.wait_until(lambda: driver_of(head, job), "a driver", seconds=180)
    for process in driver_of(head, job):
        with contextlib.suppress(Exception):
            process.kill()
    builds.wait_until(
        lambda: client.get(f"/v1/jobs/{job}").json()["finished"], "the end", seconds=300
    )
    ended = client.get(f"/v1/jobs/{job}").json()
    assert (ended["state"], ended["attempts"]) == ("succeeded", 2), ended
    assert ended["result"]["clips"] == 1


def driver_of(head: dict[str, Any], job: str) -> list[Any]:
    found = []
    for process in head["node"].processes():
        with contextlib.suppress(Exception):
            words = process.cmdline()
            if "spark_ray.cli" in words and any(job in word for word in words):
                found.append(process)
    return found


def test_a_job_is_cancelled(client: httpx.Client, folder: Path) -> None:
    asset = upload(client, folder / "videos" / "clip_004.mp4")["id"]
    job = client.post("/v1/jobs", json={"name": "unwanted", "assets": [asset]}).json()["id"]
    assert client.delete(f"/v1/jobs/{job}").status_code == 202
    builds.wait_until(
        lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "cancelled", "the end", seconds=180
    )
    wrong = client.post("/v1/jobs", json={"name": "x", "assets": [asset], "settings": {"fsp": 3}})
    refused(wrong, 400, "invalid_request", "fsp")


def test_keys_decide_who_may_do_what(server: str, keys: KeyStore, folder: Path) -> None:
    refused(httpx.get(f"{server}/v1/models"), 401, "invalid_api_key")
    refused(client_of(server, "sk-spark-made-up").get("/v1/models"), 401, "invalid_api_key")
    with client_of(server, secret(keys, "infer")) as mine:
        refused(mine.get("/v1/jobs"), 403, "missing_scope", "'jobs'")
        refused(mine.get("/metrics"), 403, "missing_scope")
        asset = upload(mine, folder / "videos" / "clip_001.mp4")["id"]
    with client_of(server, secret(keys, "infer")) as other:
        refused(other.get(f"/v1/assets/{asset}"), 404, "asset_not_found")
        refused(other.post("/v1/captions", json={"asset": asset}), 404, "asset_not_found")
    with client_of(server, secret(keys, "infer", requests_per_minute=6)) as slow:
        assert slow.get("/v1/models").status_code == 200
        limited = slow.get("/v1/models")
        refused(limited, 429, "rate_limit_exceeded")
        assert 1 <= int(limited.headers["retry-after"]) <= 11
    key, text = keys.create(
        "gone", ["admin"], requests_per_minute=60, max_concurrent=1, lifetime_s=None
    )
    keys.revoke(key.id)
    refused(client_of(server, text).get("/v1/models"), 401, "invalid_api_key")
    with client_of(server, secret(keys, "admin")) as operator:
        builds.wait_until(
            lambda: set(operator.get("/metrics").text.replace("{", " ").split()) >= METRICS,
            f"the metrics of the gateway and the models: {METRICS}",
        )


def test_a_promoted_version_takes_over_without_a_lost_request(
    client: httpx.Client, folder: Path
) -> None:
    asset = upload(client, folder / "videos" / "clip_001.mp4")["id"]
    hashes = {
        seed: Apotheon.load(str(folder / f"version-{seed}"), setting="model")
        .weights.info()
        .weights_hash
        for seed in (1, 2)
    }
    seen = []
    for turn in range(400):
        answer = client.post("/v1/captions", json={"asset": asset, "model": "versioned"})
        assert answer.status_code == 200, answer.text
        seen.append(answer.json()["model"]["weights_hash"])
        if turn == 3:
            set_champion(folder, 2)
        if seen[-1] == hashes[2]:
            break
    assert seen == [hashes[1]] * (len(seen) - 1) + [hashes[2]]
    for name, seed in (("versioned/1", 1), ("versioned@number-1", 1), ("versioned@champion", 2)):
        answer = client.post("/v1/captions", json={"asset": asset, "model": name})
        assert answer.json()["model"]["weights_hash"] == hashes[seed]
        assert answer.json()["model"]["version"] == str(seed)
    unknown = client.post("/v1/captions", json={"asset": asset, "model": "versioned@nobody"})
    refused(unknown, 404, "model_not_found", "versions 1, 2")


def test_a_file_whose_model_is_missing_leaves_the_one_that_answers(
    client: httpx.Client,
    head: dict[str, Any],
    environment: dict[str, str],
    folder: Path,
    settings: dict[str, Any],
) -> None:
    def wait_for(status: str) -> str:
        def told() -> str | None:
            found = ask(head["jobs"], "/api/serve/applications/", environment)
            application = json.loads(found or "{}").get("applications", {}).get("spark-ray", {})
            return application["message"] or " " if application.get("status") == status else None

        return str(builds.wait_until(told, f"the application to be {status}"))

    wrong = copy.deepcopy(settings)
    wrong["applications"][0]["args"]["models"]["apotheon"]["reference"] = str(folder / "gone")
    deploy(folder / "wrong.yaml", wrong, head, environment)
    assert f"models.apotheon.reference: {folder / 'gone'} is neither" in wait_for("DEPLOY_FAILED")
    answer = client.post("/v1/embeddings", json={"model": "apotheon", "input": "a star"})
    assert answer.status_code == 200, answer.text

    deploy(folder / "serve.yaml", settings, head, environment)
    wait_for("RUNNING")
    assert client.get("/readyz").status_code == 200


@pytest.mark.parametrize("lost", ["model-apotheon", "Gateway"])
def test_a_lost_replica_is_an_answer_to_retry(
    client: httpx.Client, folder: Path, head: dict[str, Any], lost: str
) -> None:
    """Every request ends in the right answer, or in one that says when to ask again."""
    asset = upload(client, folder / "videos" / "clip_002.mp4")["id"]
    expected = client.post("/v1/captions", json={"asset": asset}).json()["caption"]
    (replica,) = replicas(head, lost)
    with ThreadPoolExecutor(1) as beside:
        # Of the gateway, also the answer that it is at.
        begun = beside.submit(client.post, "/v1/captions", json={"asset": asset})
        time.sleep(0.05)
        replica.kill()
        answers, end = [begun.result()], time.monotonic() + 120
    while time.monotonic() < end and [a.status_code for a in answers[-3:]] != [200, 200, 200]:
        answers.append(client.post("/v1/captions", json={"asset": asset}))
        if answers[-1].status_code != 200:
            time.sleep(0.5)
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["caption"] == expected
        else:
            assert answer.status_code in (503, 504), answer.text
            assert answer.json()["error"]["code"] in ("replica_lost", "overloaded", "timeout")
            assert answer.status_code == 504 or int(answer.headers["retry-after"]) >= 1
    assert [answer.status_code for answer in answers[-3:]] == [200, 200, 200]
    # A process that is just changing its title has none to be found by.
    (another,) = builds.wait_until(lambda: replicas(head, lost), "the replica in its place")
    assert another.pid != replica.pid


def replicas(head: dict[str, Any], deployment: str) -> list[Any]:
    found = []
    for process in head["node"].processes():
        with contextlib.suppress(Exception):
            if f"ServeReplica:spark-ray:{deployment}" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.mark.parametrize(
    ("send", "status", "code"),
    [
        ({"json": {"asset": "../../etc/passwd"}}, 404, "asset_not_found"),
        ({"json": {"url": "https://169.254.169.254/latest"}}, 403, "address_not_allowed"),
        ({"json": {"url": "s3://bucket/film.mp4"}}, 403, "address_not_allowed"),
        ({"json": {"url": "file:///etc/passwd"}}, 400, "invalid_url"),
        ({"json": {}}, 400, "media_missing"),
        ({"json": {}, "headers": {"X-Request-Id": b"\xff"}}, 400, "media_missing"),
        ({"json": {"asset": 3}}, 422, "invalid_request"),
        ({"json": {"nonsense": 3}}, 422, "invalid_request"),
        ({"content": b"[" * 100, "headers": {"Content-Type": "application/json"}}, 400,
         "invalid_json"),
        ({"content": b"{", "headers": {"Content-Type": "application/json"}}, 400, "invalid_json"),
        ({"content": b"x", "headers": {"Content-Type": "text/plain"}}, 415,
         "unsupported_content_type"),
        ({"files": {"file": b"this is no video"}}, 415, "unsupported_media"),
        ({"files": {"other": b"x"}}, 400, "media_missing"),
        ({"files": {"file": b"\0\0\0 ftypisom" + bytes(100)}}, 422, "unusable_media"),
        ({"files": {"file": bytes(2 << 20)}}, 413, "too_large"),
    ],
)  # fmt: skip
def test_bad_input_is_an_answer(
    client: httpx.Client, send: dict[str, Any], status: int, code: str
) -> None:
    refused(client.post("/v1/captions", **send), status, code)

"""What can be looked through over HTTP: datasets, models, the cluster; and tokens for keys."""

import base64
import json
import re
import time
from pathlib import Path
from typing import Any

import builds
import cv2
import httpx2 as httpx
import jwt
import numpy as np
import pytest
from serving_world import (
    PROVIDER,
    PROVIDER_KEY,
    client_of,
    refused,
    secret,
    upload,
)

from spark_ray.serving.keys import KeyStore


def test_datasets_and_their_versions_are_listed(client: httpx.Client) -> None:
    listed = client.get("/v1/datasets").json()["datasets"]
    shapes = next(dataset for dataset in listed if dataset["name"] == "shapes")
    assert (shapes["owned"], shapes["searchable"], shapes["problem"]) == (False, True, None)
    assert [(v["version"], v["clips"]) for v in shapes["versions"]] == [("v2", 8), ("v1", 6)]
    assert client.get("/v1/datasets/shapes").json() == shapes
    refused(client.get("/v1/datasets/nothing"), 404, "dataset_not_found", "films, shapes")
    refused(client.get("/v1/datasets/shapes/v3"), 404, "version_not_found")


def test_a_version_tells_what_its_build_kept_and_lost(client: httpx.Client, folder: Path) -> None:
    answer = client.get("/v1/datasets/shapes/v1")
    version = answer.json()
    assert {level["unit"] for level in version["funnel"]} == {"files", "clips", "frames"}
    assert version["rejects"] == [{"stage": "decode", "error": "CorruptMedia", "count": 1}]
    assert version["counts"]["labels"] == {"films": 6}
    assert sum(version["histograms"]["frames"]["counts"]) == 6
    assert str(folder) not in answer.text, "where files lie is not the client's to see"


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ({}, 8),
        ({"q": "RED circle"}, 2),
        ({"q": "3.mp4"}, 1),
        ({"q": "shapes/3"}, 0),
        ({"q": "no such words"}, 0),
        ({"label": "films"}, 8),
        ({"label": "film"}, 0),
        ({"captioned": False}, 0),
        ({"transcribed": True}, 8),
        ({"min_duration_s": 6.5}, 0),
        ({"max_duration_s": 6.5}, 8),
    ],
)
def test_clips_are_filtered(client: httpx.Client, query: dict[str, Any], count: int) -> None:
    page = client.get("/v1/datasets/shapes/v2/clips", params={**query, "limit": 3}).json()
    assert page["total"] == count
    assert len(page["clips"]) == min(3, count)


def test_clips_are_paged_and_shown(client: httpx.Client) -> None:
    clips = "/v1/datasets/shapes/v2/clips"
    pages = [
        client.get(clips, params={"offset": offset, "limit": 3, "thumbnails": 2}).json()["clips"]
        for offset in (0, 3, 6, 9)
    ]
    found = [clip for page in pages for clip in page]
    assert [len(page) for page in pages] == [3, 3, 2, 0]
    assert [clip["id"] for clip in found] == sorted({clip["id"] for clip in found})
    splits = [
        client.get(clips, params={"split": split}).json()["total"]
        for split in ("train", "validation", "test")
    ]
    assert sum(splits) == 8
    small = cv2.imdecode(
        np.frombuffer(base64.b64decode(found[0]["thumbnails"][0]["jpeg"]), np.uint8),
        cv2.IMREAD_COLOR,
    )
    assert small.shape[0] <= 112
    assert [picture["time_s"] for picture in found[0]["thumbnails"]] == [0.0, 1.5]

    one = found[0]["id"]
    some = client.get(clips, params={"clip_id": [one, found[5]["id"]]}).json()
    assert [clip["id"] for clip in some["clips"]] == [one, found[5]["id"]]
    whole = client.get(f"{clips}/{one}").json()
    assert whole["record"]["provenance"]["source_hash"]
    assert whole["record"]["segments"][0]["text"] == whole["transcript"]
    picture = client.get(f"{clips}/{one}/frames/4")
    assert picture.headers["content-type"] == "image/jpeg"
    assert picture.content.startswith(b"\xff\xd8\xff")
    refused(client.get(f"{clips}/{one}/frames/5"), 404, "frame_not_found")
    refused(client.get(f"{clips}/{one}/audio"), 404, "sound_not_found")
    refused(client.get(f"{clips}/nothing"), 404, "clip_not_found")


def test_two_versions_are_compared(client: httpx.Client) -> None:
    compared = client.get(
        "/v1/datasets/shapes/compare", params={"before": "v1", "after": "v2"}
    ).json()
    assert (compared["same"], compared["added"], compared["removed"]) == (5, 2, 0)
    assert compared["changed"] == {"caption": 1}
    (changed,) = (example for example in compared["examples"] if example["kind"] == "caption")
    assert changed["before"] == "nobody knows"
    assert changed["after"] == "a red circle moves to the left"


@pytest.mark.parametrize(
    "path",
    [
        "..%2F..%2Fetc/v1",
        "shapes/..%2Ffilms",
        "shapes/v2/clips?limit=1000",
        "shapes/v2/clips?offset=-1",
        "shapes/v2/clips?split=all",
        "shapes/v2/clips?thumbnails=99",
        f"shapes/v2/clips?q={'x' * 300}",
        "shapes/v2/clips/..%2F..%2Fmetadata.json",
        "shapes/v2/clips/x/frames/0",
        "shapes/v2/clips/x/frames/..%2F1",
        "mine:..%2Fother/v1",
    ],
)
def test_odd_requests_for_datasets_are_answers(client: httpx.Client, path: str) -> None:
    answer = client.get(f"/v1/datasets/{path}")
    assert answer.status_code in (404, 422), answer.text
    assert "error" in answer.json() or "detail" in answer.json()


def test_what_a_key_has_built_is_its_own_to_read(server: str, keys: KeyStore, folder: Path) -> None:
    with client_of(server, secret(keys, "infer", "jobs")) as mine:
        assets = [upload(mine, folder / "videos" / "clip_001.mp4")["id"]]
        job = mine.post("/v1/jobs", json={"name": "private", "assets": assets}).json()["id"]
        builds.wait_until(
            lambda: mine.get(f"/v1/jobs/{job}").json()["finished"], "the end", seconds=300
        )
        version = mine.get("/v1/datasets/mine:private").json()["versions"][0]["version"]
        page = mine.get(f"/v1/datasets/mine:private/{version}/clips").json()
        assert page["total"] == 1
        whole = f"/v1/datasets/mine:private/{version}/clips/{page['clips'][0]['id']}"
        assert mine.get(f"{whole}/frames/1").content.startswith(b"\xff\xd8\xff")
    with client_of(server, secret(keys, "infer", "jobs")) as other:
        refused(other.get("/v1/datasets/mine:private"), 404, "dataset_not_found")
        names = [dataset["name"] for dataset in other.get("/v1/datasets").json()["datasets"]]
        assert names == ["films", "shapes"]
        refused(other.post("/v1/search", json={"text": "x", "dataset": "mine:private"}), 404,
                "dataset_not_found")  # fmt: skip


def test_an_analysis_comes_by_pieces(client: httpx.Client, folder: Path) -> None:
    asset = upload(client, folder / "drawn.mp4")["id"]
    wanted = {"asset": asset, "thumbnails": 3}
    with client.stream("POST", "/v1/analyze", json={**wanted, "stream": True}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in stream.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    events = [json.loads(line.removeprefix("data: ")) for line in lines[1::2]]
    assert (names[0], names[-1]) == ("clip", "answer")
    assert set(names[1:-1]) == {"caption", "transcript"}
    clip, answer = events[0], events[-1]
    assert len(clip["scenes"]) == 2
    assert len(clip["thumbnails"]) == 3
    for name in ("caption", "transcript"):
        pieces = [e["text"] for n, e in zip(names, events, strict=True) if n == name]
        assert len(pieces) > 1
        assert "".join(pieces) == answer[name]
    assert re.fullmatch("apotheon@[0-9a-f]{12}", stream.headers["x-model-version"])
    assert stream.headers["x-dataset-version"] == "street@v3"
    at_once = client.post("/v1/analyze", json=wanted).json()
    same = ("caption", "transcript", "scenes", "frame_times", "thumbnails", "caption_model")
    assert [at_once[name] for name in same] == [answer[name] for name in same]


def test_models_tell_their_versions_metrics_and_cards(client: httpx.Client) -> None:
    ours = client.get("/v1/models/apotheon").json()
    (version,) = ours["versions"]
    assert (version["version"], version["steps"]) == (None, 12_000)
    assert version["training_metrics"] == {"loss/caption": 0.25, "loss/transcript": None}
    registered = client.get("/v1/models/versioned").json()["versions"]
    assert [version["version"] for version in registered] == ["2", "1"]
    assert "number-2" in registered[0]["aliases"]
    assert (registered[0]["dataset"], registered[0]["dataset_version"]) == ("street", "v3")
    assert registered[0]["created"] > 1.7e9
    card = client.get("/v1/models/versioned/card", params={"version": "1"})
    assert card.headers["content-type"].startswith("text/plain")
    assert "Apotheon" in card.text
    assert "/data/" not in card.text, "where the dataset lies"
    refused(client.get("/v1/models/versioned/card", params={"version": "9"}), 404,
            "model_not_found")  # fmt: skip
    refused(client.get("/v1/models/versioned/card"), 404, "card_not_found")
    refused(client.get("/v1/models/apotheon/card"), 404, "card_not_found")
    named = client.get("/v1/models/versioned@number-1").json()
    assert (named["id"], named["versions"]) == ("versioned@number-1", registered)
    for name in ("nothing", "versioned@nobody", "apotheon@champion"):
        refused(client.get(f"/v1/models/{name}"), 404, "model_not_found")


def test_operators_see_the_cluster(server: str, keys: KeyStore) -> None:
    with client_of(server, secret(keys, "infer", "jobs")) as visitor:
        refused(visitor.get("/v1/system"), 403, "missing_scope", "'admin'")
        assert visitor.get("/v1/me").json()["scopes"] == ["infer", "jobs"]
    with client_of(server, secret(keys, "admin")) as operator:
        system = operator.get("/v1/system", params={"jobs": 5}).json()
    assert sum(node["is_head"] for node in system["nodes"]) == 1
    assert system["nodes"][0]["total"]["CPU"] == 2
    found = {deployment["name"]: deployment for deployment in system["deployments"]}
    assert {"Gateway", "model-apotheon", "FrontEnd"} <= set(found)
    assert found["FrontEnd"]["application"] == "spark-ray-ui"
    assert found["Gateway"]["replicas"]["RUNNING"] == 1
    assert len(system["jobs"]) <= 5
    assert all(job["owner"].startswith("key-") for job in system["jobs"])


def test_a_token_is_as_good_as_a_key(server: str, folder: Path) -> None:
    now = int(time.time())
    claims = {"iss": PROVIDER["issuer"], "aud": PROVIDER["audience"], "sub": "ada",
              "exp": now + 600, "scope": "sparkray:infer"}  # fmt: skip
    good = jwt.encode(claims, PROVIDER_KEY, "RS256", headers={"kid": "1"})
    old = jwt.encode({**claims, "exp": now - 600}, PROVIDER_KEY, "RS256", headers={"kid": "1"})
    with client_of(server, good) as ada:
        assert ada.get("/v1/me").json()["scopes"] == ["infer"]
        asset = upload(ada, folder / "videos" / "clip_001.mp4")["id"]
        assert ada.post("/v1/captions", json={"asset": asset}).is_success
        refused(ada.get("/v1/jobs"), 403, "missing_scope", "'jobs'")
    with client_of(server, old) as late:
        refused(late.get("/v1/me"), 401, "invalid_api_key")

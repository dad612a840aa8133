"""The API, asked whatever its own OpenAPI document allows and forbids, never says that it failed.

What is asked is the same in every run. Half of the requests name an asset and a job that exist, or
else nothing behind the first check would ever be reached.
"""

from pathlib import Path
from typing import Any

import builds
import httpx2 as httpx
import hypothesis
import pytest
import requests
import schemathesis
from hypothesis import strategies
from schemathesis import Case, GenerationMode
from serving_world import client_of, secret, upload

from spark_ray.serving.keys import KeyStore

EXAMPLES = 12
"""Requests of each kind to each operation."""

TIMEOUT_S = 150
"""Longer than the server's own; a request that takes as long is an error of the test."""

MODELS = ("apotheon", "versioned", "versioned@champion", "versioned@number-2", "versioned/1")
_MODEL_FIELDS = ("model", "caption_model", "transcription_model")
_WRITING = ("/v1/captions", "/v1/transcriptions", "/v1/analyze")
_NO_HEADER = "\r\n\0"  # no client sends these, since they would end the header


@pytest.fixture(scope="module")
def known(server: str, keys: KeyStore, folder: Path) -> dict[str, str]:
    """Ids of what exists, by the names that requests give them, and a key that may do all."""
    key = secret(keys, "infer", "jobs", "admin", requests_per_minute=1_000_000)
    with client_of(server, key) as client:
        asset = upload(client, folder / "videos" / "clip_001.mp4")["id"]
        job = client.post("/v1/jobs", json={"name": "fuzzed", "assets": [asset]}).json()["id"]
        client.delete(f"/v1/jobs/{job}")
        builds.wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["finished"], "its end")
    return {"key": key, "asset": asset, "asset_id": asset, "job_id": job}


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.value)
def test_whatever_is_asked_is_answered(
    server: str, known: dict[str, str], mode: GenerationMode
) -> None:
    document = httpx.get(f"{server}/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    # The key is the session's, and no made-up one that would end each request at once.
    schema.config.generation.update(
        exclude_header_characters=_NO_HEADER, with_security_parameters=False
    )
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {known['key']}"
        asked = 0
        for operation in schema.get_all_operations():
            asked += fuzz(operation.ok(), mode, known, server, session)
    assert asked > len(document["paths"])


def fuzz(
    operation: Any, mode: GenerationMode, known: dict[str, str], server: str, session: Any
) -> int:
    """Ask for one operation in many ways; how many those were."""
    asked = 0
    models = strategies.sampled_from(MODELS).map(lambda name: dict.fromkeys(_MODEL_FIELDS, name))
    existing = strategies.just({}) | models.map(lambda named: {**known, **named})

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate],
    )
    @hypothesis.given(operation.as_strategy(generation_mode=mode), existing)
    def ask(case: Case, existing: dict[str, str]) -> None:
        nonlocal asked
        name_what_exists(case, existing)
        asked += 1
        answer = session.request(
            **case.as_transport_kwargs(base_url=server), timeout=TIMEOUT_S, stream=False
        )
        assert answer.status_code not in (500, 502), (case.as_curl_command(), answer.text)
        assert "Traceback" not in answer.text

    try:
        ask()
    except hypothesis.errors.Unsatisfiable:
        # Where a request has no part that could be wrong, none can be made.
        assert mode == GenerationMode.NEGATIVE
    return asked


def name_what_exists(case: Case, known: dict[str, str]) -> None:
    if case.method == "DELETE" or not known:
        return  # the asset is asked about later on, too
    for name in case.path_parameters or {}:
        case.path_parameters[name] = known.get(name, case.path_parameters[name])
    if isinstance(case.body, dict):
        for name in case.body.keys() & known.keys():
            case.body[name] = known[name]
        if case.path in _WRITING and "asset" in case.body:
            case.body["max_new_tokens"] = 2  # a long answer takes time and shows nothing more

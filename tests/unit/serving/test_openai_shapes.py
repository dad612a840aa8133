"""Answers in OpenAI's shapes: what a client reads in them, and what it is told it can't have."""

import asyncio
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.testclient import TestClient

from spark_ray.core.errors import NothingSaid
from spark_ray.core.schema import Clip, Segment
from spark_ray.serving import catalog
from spark_ray.serving.gateway import create_app
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import Decoded, Embedded, ModelFacts, ServedModel, Timing, Written
from spark_ray.serving.routes.openai import _speech_answer
from spark_ray.serving.services import Handles, Services
from spark_ray.serving.settings import ServeSettings

SERVED = ServedModel(name="any")


def decoded(**found: Any) -> Decoded:
    clip = Clip(clip_id="c", video_id="v", unit_id="v", source_path="x", end_s=2.5, **found)
    return Decoded(clip=clip, seconds=0.0)


def written(text: str, *segments: Segment) -> Written:
    return Written(text=text, segments=list(segments), model=SERVED, timing=Timing())


class Response:
    """Stands for what a handle of Serve returns."""

    def __init__(self, answer: Any, after_s: float = 0.0) -> None:
        self._answer, self._after_s = answer, after_s

    def __await__(self) -> Any:
        return self._wait().__await__()

    async def _wait(self) -> Any:
        await asyncio.sleep(self._after_s)
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer

    def cancel(self) -> None: ...


def client(
    folder: Path,
    clip: Decoded,
    says: Callable[..., Response] | None = None,
    decoding_s: float = 0.0,
    **settings: Any,
) -> TestClient:
    """Of a server with a captioner and a transcriber, to which every file is this clip."""
    says = says or (lambda *given: Response(answered(*given)))
    made = ServeSettings.from_values(
        state=str(folder),
        models={
            "seer": {"backend": "blip"},
            "listener": {"backend": "whisper"},
            "apotheon": {"reference": "/nowhere"},
            "registered": {"reference": "models:/registered"},
            "talker": {"backend": "vllm", "reference": "/nowhere"},
        },
        datasets=["/sets/films"],
        **settings,
    )
    model = SimpleNamespace(
        facts=SimpleNamespace(remote=lambda: Response(ModelFacts(served=SERVED))),
        write=SimpleNamespace(remote=says),
        reply=SimpleNamespace(remote=lambda *_: Response(written("a boat"))),
        embed_clips=SimpleNamespace(
            remote=lambda clips: Response(Embedded(vectors=[[1.0]] * len(clips), model=SERVED))
        ),
    )
    model.options = lambda **_: model
    decoder = SimpleNamespace(
        decode=SimpleNamespace(remote=lambda file: Response(clip, decoding_s))
    )
    search = SimpleNamespace(find=SimpleNamespace(remote=lambda *_: Response(([], "v1"), 0.2)))
    handles = Handles(decoder=decoder, models=dict.fromkeys(made.models, model), search=search)
    services = Services(made.located(), handles)
    _, key = KeyStore(services.database).create(
        "test", ["infer"], requests_per_minute=6000, max_concurrent=4, lifetime_s=None
    )
    return TestClient(create_app(services), headers={"Authorization": f"Bearer {key}"})


def answered(decoded: Decoded, task: str, limit: int) -> Written:
    """The task's name, and what language is said to be spoken."""
    language = getattr(decoded.clip, "spoken_language", None)
    return written(task).model_copy(update={"language": language})


def heard(client: TestClient, **fields: str) -> Any:
    return client.post("/v1/audio/transcriptions", files={"file": b"fLaC" + bytes(99)}, data=fields)


def chat(client: TestClient, model: str, **more: Any) -> Any:
    shown = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,ZkxhQw=="}}
    messages = [{"role": "user", "content": [shown]}]
    return client.post(
        "/v1/chat/completions", json={"model": model, "messages": messages, **more}
    ).json()


@pytest.mark.parametrize("form", ["srt", "vtt"])
def test_subtitles_hold_what_was_said_also_without_times(form: str) -> None:
    answer = bytes(_speech_answer(written("a boat"), decoded(), form).body).decode()
    assert "a boat" in answer
    assert "00:00:02" in answer
    assert "a boat" not in bytes(_speech_answer(written(""), decoded(), form).body).decode()
    timed = written("a boat", Segment(start=1.0, end=1.5, text="boat"))
    assert "00:00:02" not in bytes(_speech_answer(timed, decoded(), form).body).decode()


@pytest.mark.parametrize(
    ("given", "told"), [({}, None), ({"language": "deu"}, "de"), ({"language": "pt-BR"}, "pt")]
)
def test_the_model_is_told_what_language_is_spoken(
    tmp_path: Path, given: dict[str, str], told: str | None
) -> None:
    asked = client(tmp_path, decoded(audio=b"x"))
    answer = heard(asked, model="listener", response_format="verbose_json", **given)
    assert answer.status_code == 200
    assert answer.json()["language"] == told


@pytest.mark.parametrize(
    ("model", "given", "said"),
    [
        ("apotheon", {"language": "en"}, "can't be told"),
        ("registered@champion", {"language": "en"}, "can't be told"),
        ("listener", {"prompt": "names: Ada"}, "leave it out"),
    ],
)
def test_what_would_have_no_effect_is_refused(
    tmp_path: Path, model: str, given: dict[str, str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "pinned_reference", lambda *_: "models:/registered/1")
    answer = heard(client(tmp_path, decoded(audio=b"x")), model=model, **given)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, *given)
    assert said in answer.json()["error"]["message"]


def test_openais_client_reads_nothing_that_nobody_measured(tmp_path: Path) -> None:
    server = client(tmp_path, decoded(audio=b"x"))
    answer = openais_client(server).audio.transcriptions.create(
        model="listener", file=("a.flac", b"fLaC" + bytes(99)), response_format="verbose_json"
    )
    assert (answer.text, answer.duration, answer.language) == ("transcript", 2.5, None)
    (segment,) = answer.segments or ()
    assert (segment.id, segment.start, segment.end, segment.text) == (0, 0.0, 2.5, "transcript")
    for name in ("seek", "tokens", "temperature", "avg_logprob", "compression_ratio"):
        assert getattr(segment, name) is None
    assert segment.no_speech_prob is None


def openais_client(server: TestClient) -> openai.OpenAI:
    key = server.headers["Authorization"].removeprefix("Bearer ")
    return openai.OpenAI(base_url=f"{server.base_url}/v1", api_key=key, http_client=server)


def test_a_conversation_goes_on_with_what_was_answered(tmp_path: Path) -> None:
    """As clients keep it: with every field of OpenAI's message, most of which are null."""
    create = openais_client(client(tmp_path, decoded(frames=[b"x"]))).chat.completions.create
    shown = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,ZkxhQw=="}}
    messages: list[Any] = [{"role": "user", "content": [shown]}]
    first = create(model="seer", messages=messages).choices[0].message
    messages += [first.model_dump(), {"role": "user", "content": [shown]}]
    assert create(model="seer", messages=messages).choices[0].message.content == "caption"


def test_what_makes_no_difference_is_not_refused(tmp_path: Path) -> None:
    create = openais_client(client(tmp_path, decoded(frames=[b"x"]))).chat.completions.create
    shown = {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,ZkxhQw=="}}
    answer = create(
        model="seer", messages=[{"role": "user", "content": [shown]}],  # type: ignore[list-item,misc]
        seed=1, top_p=0.9, temperature=0, presence_penalty=0, n=None, stop=None, stream=None,
        response_format={"type": "text"}, logprobs=False, store=False, tools=None,
        metadata={"who": "me"}, user="me",
    )  # type: ignore[call-overload]  # fmt: skip
    assert answer.choices[0].message.content == "caption"


@pytest.mark.parametrize(
    ("asked", "said"), [(["segment"], None), (["word"], "segment"), (["word", "segment"], "once")]
)
def test_times_are_those_of_segments(tmp_path: Path, asked: list[Any], said: str | None) -> None:
    create = openais_client(client(tmp_path, decoded(audio=b"x"))).audio.transcriptions.create

    def ask() -> Any:
        return create(
            model="listener", file=("a.flac", b"fLaC" + bytes(99)),
            response_format="verbose_json", timestamp_granularities=asked,
        )  # fmt: skip

    if said is None:
        assert len(ask().segments) == 1
    else:
        with pytest.raises(openai.APIStatusError, match=said) as raised:
            ask()
        assert raised.value.status_code in (400, 422)
        assert raised.value.param == "timestamp_granularities[]"


@pytest.mark.parametrize(
    ("model", "found", "said"),
    [
        ("seer", {"frames": [b"x"], "audio": b"x"}, "caption"),
        ("listener", {"frames": [b"x"], "audio": b"x"}, "transcript"),
    ],
)
def test_a_model_is_asked_for_what_it_can_do(
    tmp_path: Path, model: str, found: dict[str, Any], said: str
) -> None:
    answer = chat(client(tmp_path, decoded(**found)), model)
    assert answer["choices"][0]["message"]["content"] == said


@pytest.mark.parametrize(
    ("model", "found"), [("seer", {"audio": b"x"}), ("listener", {"frames": [b"x"]})]
)
def test_what_a_model_can_not_see_or_hear_is_no_empty_answer(
    tmp_path: Path, model: str, found: dict[str, Any]
) -> None:
    answer = chat(client(tmp_path, decoded(**found)), model)
    assert answer["error"]["code"] == "unusable_media"


def test_a_model_without_words_is_not_one_that_there_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def speechless(*given: Any) -> Written:
        raise NothingSaid("caption_model said nothing about clip 0; raise caption_max_new_tokens")

    monkeypatch.setattr(sys.modules[__name__], "answered", speechless)
    asked = client(tmp_path, decoded(frames=[b"x"]))
    png = {"file": b"\x89PNG\r\n\x1a\n" + bytes(99)}
    answer = asked.post("/v1/captions", files=png, data={"model": "seer"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (422, "nothing_said")
    assert "caption_max_new_tokens" not in answer.text


def test_where_a_model_lies_is_not_shown(tmp_path: Path) -> None:
    asked = client(tmp_path, decoded())
    answer = asked.get("/v1/models")
    known = {model["id"] for model in answer.json()["data"]}
    assert known == {"seer", "listener", "apotheon", "registered", "talker"}
    for place in ("", "/seer", "/listener"):
        answer = asked.get(f"/v1/models{place}")
        assert answer.status_code == 200
        assert "/nowhere" not in answer.text
        assert "reference" not in answer.text


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_limit_is_called_as_the_caller_called_it(tmp_path: Path, name: str) -> None:
    error = chat(client(tmp_path, decoded()), "seer", **{name: 9999})["error"]
    assert error["param"] == name
    assert error["message"].startswith(name)


def test_another_protocol_is_told_which_one_is_spoken(tmp_path: Path) -> None:
    answer = client(tmp_path, decoded()).post("/v1/assets", headers={"Tus-Resumable": "9.9.9"})
    assert (answer.status_code, answer.headers["tus-version"]) == (412, "1.0.0")


def test_a_page_of_an_allowed_origin_can_upload_by_parts(tmp_path: Path) -> None:
    page = "https://pages.example.com"
    answer = client(tmp_path, decoded(), cors_origins=[page]).post(
        "/v1/assets", headers={"Origin": page, "Tus-Resumable": "1.0.0", "Upload-Length": "9"}
    )
    assert answer.status_code == 201
    assert answer.headers["access-control-allow-origin"] == page
    readable = answer.headers["access-control-expose-headers"].lower()
    assert all(name in readable for name in ("location", "upload-offset", "x-request-id"))


def test_a_page_of_an_allowed_origin_can_read_what_is_refused_before_any_route(
    tmp_path: Path,
) -> None:
    page = "https://pages.example.com"
    asked = client(tmp_path, decoded(), cors_origins=[page], limits={"max_body_bytes": 1 << 10})
    answer = asked.post("/v1/search", json={"text": "a" * 2000}, headers={"Origin": page})
    assert answer.status_code == 413
    assert answer.headers["access-control-allow-origin"] == page


def test_time_for_which_the_model_can_not_account_was_waiting(tmp_path: Path) -> None:
    def says(*given: Any) -> Response:
        known = Timing(preprocess=0.0, queue=0.05, model=0.1)
        return Response(answered(*given).model_copy(update={"timing": known}), after_s=0.4)

    answer = client(tmp_path, decoded(frames=[b"x"]), says).post(
        "/v1/captions", files={"file": b"fLaC" + bytes(99)}, data={"model": "seer"}
    )
    told = answer.json()["timing_s"]
    assert told["model"] == 0.1
    assert 0.3 <= told["queue"] < 3
    assert f"queue;dur={1000 * told['queue']:.2f}" in answer.headers["server-timing"]


def test_decoding_and_searching_take_their_time_too(tmp_path: Path) -> None:
    asked = client(tmp_path, decoded(frames=[b"x"]), decoding_s=0.3)
    asset = asked.post("/v1/assets", files={"file": b"fLaC" + bytes(99)}).json()["id"]
    found = asked.post("/v1/search", json={"asset": asset, "model": "apotheon"})
    assert found.json()["timing_s"]["preprocess"] >= 0.3
    assert found.json()["timing_s"]["postprocess"] >= 0.2

    shown = {"type": "image_url", "image_url": {"url": asset}}
    said = {"model": "talker", "messages": [{"role": "user", "content": [shown]}]}
    answer = asked.post("/v1/chat/completions", json=said)
    assert answer.json()["choices"][0]["message"]["content"] == "a boat"
    phases = dict(part.split(";dur=") for part in answer.headers["server-timing"].split(", "))
    assert float(phases["preprocess"]) >= 300


def test_pictures_and_clips_have_vectors_too(tmp_path: Path) -> None:
    asked = client(tmp_path, decoded(frames=[b"x"]))
    asset = asked.post("/v1/assets", files={"file": b"fLaC" + bytes(99)}).json()["id"]
    wanted = {"model": "apotheon", "assets": [asset, asset]}
    answer = asked.post("/v1/embeddings", json=wanted).json()
    assert [each["embedding"] for each in answer["data"]] == [[1.0], [1.0]]
    for more in ({"assets": None}, {"input": "a boat"}, {"assets": [f"asset-{'0' * 24}"]}):
        refused = asked.post("/v1/embeddings", json={**wanted, **more})
        assert refused.status_code == (404 if more.get("assets") else 422)


def test_a_transcript_in_openais_shape_is_written_to_its_end(tmp_path: Path) -> None:
    """Its client can't say how long it may be, and would not hear that it was cut off."""
    limits: list[int] = []

    def says(clip: Decoded, task: str, limit: int) -> Response:
        limits.append(limit)
        return Response(answered(clip, task, limit))

    asked = client(tmp_path, decoded(audio=b"x"), says, limits={"max_new_tokens": 1024})
    assert heard(asked, model="apotheon").status_code == 200
    assert limits == [1024]


def test_a_model_that_could_not_be_started_was_not_lost(tmp_path: Path) -> None:
    missing = DeploymentUnavailableError(DeploymentID(name="seer", app_name="app"))
    answer = client(tmp_path, decoded(frames=[b"x"]), lambda *_: Response(missing)).post(
        "/v1/captions", files={"file": b"fLaC" + bytes(99)}, data={"model": "seer"}
    )
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (503, "not_started")
    assert error["message"].startswith("model 'seer' could not be started")
    assert int(answer.headers["retry-after"]) >= 30


def test_a_model_without_versions_is_known_by_its_weights(tmp_path: Path) -> None:
    def says(*given: Any) -> Response:
        served = ServedModel(name="seer", weights_hash="0123456789abcdef" * 4)
        return Response(answered(*given).model_copy(update={"model": served}))

    answer = client(tmp_path, decoded(frames=[b"x"]), says).post(
        "/v1/captions", files={"file": b"fLaC" + bytes(99)}, data={"model": "seer"}
    )
    assert answer.headers["x-model-version"] == "seer@0123456789ab"


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_page_about_the_interface_loads_nothing_from_elsewhere(
    tmp_path: Path, page: str
) -> None:
    asked = client(tmp_path, decoded())
    loaded = re.findall(r'(?:src|href)="([^"]+)"', asked.get(page).text)
    assert loaded
    for address in loaded:
        assert address.startswith("/")
        assert asked.get(address).status_code == 200, address


def test_the_document_says_where_a_key_is_needed(tmp_path: Path) -> None:
    asked = client(tmp_path, decoded())
    document = asked.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    del asked.headers["Authorization"]
    for path, operations in document["paths"].items():
        if "get" in operations and path != "/readyz":
            needs_key = operations["get"].get("security", document["security"]) != []
            assert needs_key == (asked.get(path).status_code == 401), path

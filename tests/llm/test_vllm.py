"""A real vLLM engine, on CPUs, says what `transformers` says: in the dataset job, and over HTTP.

`make test-vllm` makes the environment for it; elsewhere this file is skipped.
"""

import base64
import contextlib
import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import builds
import httpx2 as httpx
import openai
import pytest
import yaml
from clusters import RAY, ROOT, free_port
from PIL import Image

from spark_ray.serving.database import Database
from spark_ray.serving.decoding import decode_file, decode_options
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.messages import MediaFile
from spark_ray.serving.settings import ServeSettings

pytest.importorskip("vllm", reason="vLLM is not installed here: run make test-vllm")
from tiny_qwen2_vl import Reference, write

from spark_ray.models.vllm import DEFAULT_PROMPT

TOKENS = 8
LONG = 900
PLACES = 4
NUMBERS = (3, 200, 17, 96)
"""What the film shows, a second each. It has no more steps in time than cells in width: the words
after a longer one have other positions in `transformers` 5.23 than in vLLM, and in the paper."""

JOBS = {"fps": 1, "resolution": [64, 64], "motion_threshold": 0.01, "caption_backend": "none"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vllm")
    write(folder / "model")
    builds.write_counting(folder / "videos" / "counting.mp4", NUMBERS)
    builds.write_number(folder / "videos" / "still.mp4", 129)
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return Reference(folder / "model")


@pytest.fixture(scope="module")
def dataset(folder: Path, cluster: dict[str, str], cluster_environment: dict[str, str]) -> Path:
    """The version that `spark-ray data build` published."""
    arguments = builds.build_command(
        folder / "videos",
        folder / "set",
        ray_address=cluster["address"],
        fps=1,
        resolution="64x64",
        motion_threshold=0.01,
        caption_backend="vllm",
        caption_model=folder / "model",
        caption_max_new_tokens=TOKENS,
        caption_context_tokens=1024,
        caption_cache_bytes=64 << 20,
    )
    builds.assert_published(builds.run(arguments, env=cluster_environment, timeout=500))
    return folder / "set" / "v1"


def test_the_dataset_job_captions_as_transformers_would(
    dataset: Path, reference: Reference
) -> None:
    lines = builds.manifest(dataset)
    assert sorted(line["meta"]["num_frames"] for line in lines) == [1, len(NUMBERS)]
    for line in lines:
        paths = sorted((dataset / line["frames_dir"]).glob("*.jpg"))
        frames = [picture(path.read_bytes()) for path in paths]
        said = reference.say(DEFAULT_PROMPT, TOKENS, video=frames)
        assert line["meta"]["caption"] == said
        alone = [reference.say(DEFAULT_PROMPT, TOKENS, images=[frame]) for frame in frames]
        assert line["meta"]["all_captions"] == alone
        assert len({*alone}) > len(frames) // 2, "were they all alike, it would prove nothing"
        (step,) = [
            step
            for step in line["meta"]["provenance"]["lineage"]["processing_steps"]
            if step["name"] == "caption"
        ]
        assert step["model"]["weights_hash"]


def picture(jpeg: bytes) -> Image.Image:
    return Image.open(io.BytesIO(jpeg)).convert("RGB")


@pytest.fixture(scope="module")
def server(
    dataset: Path, cluster: dict[str, str], cluster_environment: dict[str, str], folder: Path
) -> Iterator[tuple[str, str]]:
    """Address and key of `serve_configs/llm.yaml`, on CPUs. It waits for the build to be done."""
    config = yaml.safe_load((ROOT / "serve_configs" / "llm.yaml").read_text())
    config["http_options"]["port"] = free_port()
    config["applications"] = config["applications"][:1]  # the server, without a front end
    arguments = config["applications"][0]["args"]
    arguments["state"] = str(folder / "state")
    arguments["job_settings"] = JOBS
    arguments["models"]["qwen"] |= {
        "reference": str(folder / "model"),
        "num_cpus": 1,
        "num_gpus": 0,
        "context_tokens": 1024,
        "cache_bytes": 64 << 20,
        "max_batch_size": PLACES,
    }
    file = folder / "serve.yaml"
    file.write_text(yaml.safe_dump(config))
    serve = str(RAY.with_name("serve"))
    deployed = builds.run(
        [serve, "deploy", "--address", cluster["jobs"], str(file)], env=cluster_environment
    )
    assert deployed.returncode == 0, deployed.stderr
    url = f"http://127.0.0.1:{config['http_options']['port']}"
    keys = KeyStore(Database(ServeSettings.from_values(**arguments).located().database))
    limits = {"requests_per_minute": 6000, "max_concurrent": 16, "lifetime_s": None}
    try:
        builds.wait_until(lambda: is_ready(url), f"a server at {url}", seconds=500)
        yield url, keys.create("test", ["infer"], **limits)[1]
    finally:
        builds.run([serve, "shutdown", "--address", cluster["jobs"], "-y"], env=cluster_environment)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"{url}/readyz", timeout=20).status_code == 200
    return False


@pytest.fixture(scope="module")
def client(server: tuple[str, str]) -> openai.OpenAI:
    url, key = server
    return openai.OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0, timeout=120)


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    texts = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": "user", "content": texts}


def shown(image: Image.Image) -> dict[str, Any]:
    """A picture without loss, as a data: URL."""
    file = io.BytesIO()
    image.save(file, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def number(value: int) -> Image.Image:
    return Image.fromarray(next(builds.number_frames(value, 1)))


def as_decoded(image: Image.Image, folder: Path) -> Image.Image:
    """What a model sees of a picture: the JPEG that the decoder makes of it."""
    image.save(folder / "picture.png")
    file = MediaFile(location=str(folder / "picture.png"), kind="image", sha256="0" * 64)
    limits = ServeSettings.from_values().limits
    return picture(decode_file(file, decode_options(JOBS, limits)).frames[0])


def test_a_chat_about_a_picture_goes_as_with_transformers(
    client: openai.OpenAI, reference: Reference, tmp_path: Path
) -> None:
    asked = {
        "model": "qwen",
        "messages": [user(shown(number(77)), "Which number?")],
        "max_tokens": TOKENS,
        "temperature": 0,
    }
    answer = client.chat.completions.create(**asked)
    said = reference.say("Which number?", TOKENS, images=[as_decoded(number(77), tmp_path)])
    assert answer.choices[0].message.content.strip() == said
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == TOKENS
    assert answer.usage.prompt_tokens > 50

    usage = {"include_usage": True}
    chunks = [*client.chat.completions.create(**asked, stream=True, stream_options=usage)]
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text.strip() == said
    assert chunks[-1].usage.completion_tokens == TOKENS


def test_a_chat_follows_what_was_said_before(
    client: openai.OpenAI, reference: Reference, tmp_path: Path
) -> None:
    def ask(*messages: dict[str, Any], **more: Any) -> str:
        answer = client.chat.completions.create(
            model="qwen", messages=messages, max_tokens=TOKENS, **more
        )
        return str(answer.choices[0].message.content).strip()

    assert ask(user("hello"), temperature=0) == reference.say("hello", TOKENS)
    before = {"role": "assistant", "content": "a red dog"}
    told = ask(user("hello"), before, user("and now?"), temperature=0)
    assert told != ask(user("and now?"), temperature=0)
    two = ask(user(shown(number(1)), shown(number(254)), "compare"), temperature=0)
    both = [as_decoded(number(value), tmp_path) for value in (1, 254)]
    assert two == reference.say("compare", TOKENS, images=both)
    wild = {"temperature": 2, "top_p": 1}
    texts = {ask(user("hello"), **wild, seed=seed) for seed in range(4)}
    assert len(texts) > 1
    assert ask(user("hello"), **wild, seed=1) == ask(user("hello"), **wild, seed=1)


def test_a_video_is_watched_as_in_the_dataset_job(
    server: tuple[str, str], client: openai.OpenAI, dataset: Path, folder: Path
) -> None:
    lines = builds.manifest(dataset)
    (line,) = [one for one in lines if one["meta"]["num_frames"] == len(NUMBERS)]
    url, key = server
    with httpx.Client(headers={"Authorization": f"Bearer {key}"}, timeout=120) as http:
        video = (folder / "videos" / "counting.mp4").read_bytes()
        asset = http.post(f"{url}/v1/assets", files={"file": video}).json()["id"]
        request = {"asset": asset, "max_new_tokens": TOKENS}
        caption = http.post(f"{url}/v1/captions", json=request)
        assert caption.json()["caption"].strip() == line["meta"]["caption"]
        assert caption.json()["model"]["weights_hash"]
        refused = http.post(f"{url}/v1/transcriptions", json=request)
        assert refused.status_code == 501
    answer = client.chat.completions.create(
        model="qwen",
        messages=[user({"type": "video_url", "video_url": {"url": asset}}, DEFAULT_PROMPT)],
        max_tokens=TOKENS,
        temperature=0,
    )
    assert answer.choices[0].message.content.strip() == line["meta"]["caption"]


@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_clients_that_go_away_free_their_places(server: tuple[str, str], stream: bool) -> None:
    """The engine has four. Were they not free, the next chat would wait for the long ones' ends."""
    url, key = server
    long = {
        "model": "qwen", "messages": [user("hello")], "max_tokens": LONG, "temperature": 0
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=120) as http:

        def ask(request: dict[str, Any]) -> float:
            started = time.monotonic()
            answer = http.post("/chat/completions", json=request)
            assert answer.json()["usage"]["completion_tokens"] == request["max_tokens"]
            return time.monotonic() - started

        def ask_and_go(seconds: float) -> None:
            """Go away in the middle of the answer."""
            request = {**long, "stream": stream}
            with (
                contextlib.suppress(httpx.ReadTimeout),
                http.stream(
                    "POST", "/chat/completions", json=request, timeout=None if stream else seconds
                ) as answer,
            ):
                next(answer.iter_lines())
                time.sleep(seconds)

        with ThreadPoolExecutor(PLACES) as threads:
            whole_s = min(threads.map(ask, [long] * PLACES))
            list(threads.map(ask_and_go, [whole_s / 5] * PLACES))
        assert ask({**long, "max_tokens": 1}) < whole_s / 2


def test_what_an_engine_refuses_is_the_callers_to_mend(
    server: tuple[str, str], client: openai.OpenAI
) -> None:
    def ask(**changed: Any) -> Any:
        return client.chat.completions.create(
            **{"model": "qwen", "messages": [user("hello")], "max_tokens": 4, **changed}
        )

    with pytest.raises(openai.BadRequestError, match="1024"):
        ask(messages=[user("hello " * 400)])
    with pytest.raises(openai.APIStatusError, match="at most 1024"):
        ask(max_tokens=4096)
    with pytest.raises(openai.APIStatusError, match="at most 16 media"):
        ask(messages=[user(*[shown(number(1))] * 17)])
    with pytest.raises(openai.NotFoundError, match="choose one of: qwen"):
        ask(model="gpt")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="sk-spark-made-up").chat.completions.create(
            model="qwen", messages=[user("hello")]
        )
    assert json.loads(ask().model_dump_json())["usage"]["completion_tokens"] == 4, "it goes on"

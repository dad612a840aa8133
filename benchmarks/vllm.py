"""Tokens a second of chats through our gateway, against vLLM's own server over the same model.

Runs in the environment of `make test-vllm`, on two Qwen2-VL of random weights. What the servers add
to a chat weighs the more, the faster the engine is: the larger model, of 100 million weights, is
still much faster than those that people serve; the tiny one shows what the servers add.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx

from benchmarks.harness import ROOT, Result, ratio_result
from benchmarks.served import served
from spark_ray.models.vllm import ENVIRONMENT

_PORT = 18_439
_OURS, _THEIRS = f"http://127.0.0.1:{_PORT}", f"http://127.0.0.1:{_PORT + 1}"
_START_S = 300
_AT_ONCE = 8
_TOKENS = 64
_GOAL = 0.95
_WIDTH, _LAYERS = 1280, 8
_ENGINE = {"context_tokens": 1024, "cache_bytes": 64 << 20, "max_batch_size": _AT_ONCE}


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Seconds a token, interleaved; the goal is that of the issue, 0.95 of vLLM's own rate."""
    sys.path.append(str(ROOT / "tests" / "llm"))
    from tiny_qwen2_vl import write

    chats, repetitions = (8, 1) if quick else (48, 5)
    with tempfile.TemporaryDirectory() as name:
        model = write(Path(name) / "model", _WIDTH, _LAYERS)
        yield _compared("vllm-chat", 1 / _GOAL, model, chats, repetitions)
        tiny = write(Path(name) / "tiny")
        yield _compared("vllm-chat-tiny", None, tiny, chats, repetitions)


def _compared(name: str, goal: float | None, model: Path, chats: int, repetitions: int) -> Result:
    with tempfile.TemporaryDirectory() as folder:
        seer = {"backend": "vllm", "reference": str(model), "num_cpus": 1, **_ENGINE}
        with _bare(model), served(Path(folder), _PORT, models={"seer": seer}) as key:
            seconds: dict[str, list[float]] = {_OURS: [], _THEIRS: []}
            for address in seconds:
                asyncio.run(_seconds_a_token(address, key, _AT_ONCE))
            for _ in range(repetitions):
                for address, found in seconds.items():
                    found.append(asyncio.run(_seconds_a_token(address, key, chats)))
    return ratio_result(
        name,
        "vLLM's own server (seconds a token)",
        goal,
        seconds[_OURS],
        seconds[_THEIRS],
        tokens_a_second={
            who: [round(1 / s, 1) for s in seconds[address]]
            for who, address in (("gateway", _OURS), ("vllm", _THEIRS))
        },
        at_once=_AT_ONCE,
        tokens_a_chat=_TOKENS,
    )


@contextlib.contextmanager
def _bare(model: Path) -> Iterator[None]:
    """vLLM's own server, with the settings that our engine has."""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--port"]
    command += [_THEIRS.rpartition(":")[2], "--host", "127.0.0.1", "--model", str(model)]
    command += ["--served-model-name", "seer", "--dtype", "float32", "--enforce-eager"]
    command += ["--max-model-len", str(_ENGINE["context_tokens"]), "--skip-mm-profiling"]
    command += ["--kv-cache-memory-bytes", str(_ENGINE["cache_bytes"])]
    command += ["--max-num-seqs", str(_AT_ONCE)]
    environment = {**os.environ, **ENVIRONMENT, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            _wait_for(f"{_THEIRS}/health")
            yield
        finally:
            server.terminate()


def _wait_for(url: str) -> None:
    end = time.monotonic() + _START_S
    while time.monotonic() < end:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=10).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{url} did not answer within {_START_S} s")


async def _seconds_a_token(address: str, key: str, chats: int) -> float:
    """Where some chats are on their way at any time, each with other words."""
    left = iter(range(chats))
    tokens = 0

    async def ask_on(client: httpx.AsyncClient) -> None:
        nonlocal tokens
        for number in left:
            request = {
                "model": "seer",
                "messages": [{"role": "user", "content": f"chat {number}"}],
                "max_tokens": _TOKENS,
                "temperature": 0,
            }
            answer = await client.post(f"{address}/v1/chat/completions", json=request)
            answer.raise_for_status()
            tokens += answer.json()["usage"]["completion_tokens"]

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask_on(client) for _ in range(_AT_ONCE)))
        return (time.perf_counter() - started) / tokens

"""Requests of all kinds for ten minutes: no answer of 5xx, and memory stays what it was."""

import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import httpx2 as httpx
import psutil

from benchmarks.harness import Result
from benchmarks.served import served, untrained_apotheon, write_noise

_PORT = 18_443
_AT_ONCE = 6
_TOKENS = 16
_NO_ANSWER = 599  # a connection that broke off; counted among the failures
_JOBS: dict[str, object] = {"fps": 2, "smart_sampling": False, "caption_backend": "none"}

Ask = Callable[[httpx.AsyncClient, bytes, str], Awaitable[httpx.Response]]


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Failures are counted; memory is the sum of all replicas, late against early in the run."""
    seconds = 20.0 if quick else 600.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = untrained_apotheon(folder / "model")
        write_noise(folder / "clip.mp4")
        video = (folder / "clip.mp4").read_bytes()
        seer = {"reference": str(model), "num_cpus": 1}
        with served(folder, _PORT, models={"seer": seer}, job_settings=_JOBS) as key:
            statuses, memory_mib = asyncio.run(_load(key, video, seconds))
    failed = sum(count for status, count in statuses.items() if status >= 500)
    details = {
        "seconds": seconds,
        "answers": {str(status): count for status, count in sorted(statuses.items())},
        "at_once": _AT_ONCE,
    }
    yield Result("load-failures", "answers of 5xx", failed, 0.0, (failed, failed), details)
    # The first quarter fills caches and pools; it is no leak.
    quarter = len(memory_mib) // 4
    early = statistics.median(memory_mib[quarter : 2 * quarter])
    late = statistics.median(memory_mib[3 * quarter :])
    ratio = late / early
    details = {"early_mib": round(early), "late_mib": round(late), "seconds": seconds}
    baseline = "memory of all replicas in the second quarter"
    yield Result("load-memory", baseline, ratio, 1.05, (ratio, ratio), details)


async def _load(key: str, video: bytes, seconds: float) -> tuple[Counter[int], list[float]]:
    statuses: Counter[int] = Counter()
    memory_mib: list[float] = []
    end = time.monotonic() + seconds

    async def ask_on(client: httpx.AsyncClient, asset: str, seed: int) -> None:
        choose = random.Random(seed)
        while time.monotonic() < end:
            try:
                answer = await choose.choice(_KINDS)(client, video, asset)
                statuses[answer.status_code] += 1
            except httpx.TransportError:
                statuses[_NO_ANSWER] += 1

    async def watch() -> None:
        while (left := end - time.monotonic()) > 0:
            memory_mib.append(await asyncio.to_thread(_replicas_mib))
            if len(memory_mib) % 5 == 0:
                counts = ", ".join(f"{n} of {status}" for status, n in sorted(statuses.items()))
                told = f"load: {left:.0f} s left, {memory_mib[-1]:.0f} MiB; answers: {counts}"
                print(told, file=sys.stderr, flush=True)
            await asyncio.sleep(seconds / 100)

    headers = {"Authorization": f"Bearer {key}"}
    url = f"http://127.0.0.1:{_PORT}/v1"
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=150) as client:
        asset = (await _upload(client, video, "")).json()["id"]
        asking = (ask_on(client, asset, seed) for seed in range(_AT_ONCE))
        await asyncio.gather(watch(), *asking)
    return statuses, memory_mib


def _replicas_mib() -> float:
    """Memory of the server's processes that nothing else shares."""
    found = 0
    for process in psutil.Process().children(recursive=True):
        try:
            if "ServeReplica" in " ".join(process.cmdline()):
                found += process.memory_full_info().uss
        except psutil.Error:
            continue
    return found / 2**20


async def _upload(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/assets", files={"file": video})


async def _upload_and_delete(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    answer = await _upload(client, video, asset)
    if not answer.is_success:
        return answer
    return await client.delete(f"/assets/{answer.json()['id']}")


async def _caption(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/captions", json={"asset": asset, "max_new_tokens": _TOKENS})


async def _caption_of_file(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/captions", files={"file": video})


async def _analyze(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/analyze", json={"asset": asset, "max_new_tokens": _TOKENS})


async def _chat(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    shown = [{"type": "video_url", "video_url": {"url": asset}}]
    request = {"messages": [{"role": "user", "content": shown}], "max_tokens": _TOKENS}
    return await client.post("/chat/completions", json={"model": "seer", "stream": True, **request})


async def _embed(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/embeddings", json={"model": "seer", "input": ["a", "boat"]})


async def _broken(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.post("/captions", files={"file": video[: len(video) // 3]})


async def _unknown(client: httpx.AsyncClient, video: bytes, asset: str) -> httpx.Response:
    return await client.get("/models/nobody")


_KINDS: tuple[Ask, ...] = (
    _upload_and_delete,
    _caption,
    _caption_of_file,
    _analyze,
    _chat,
    _embed,
    _broken,
    _unknown,
)

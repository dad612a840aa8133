"""Batched captions over HTTP, against the same model called in a loop at its best batch size.

The loop begins with clips that are decoded and prepared; HTTP begins with an asset's id, so it
also reads, decodes and prepares. Both write with one thread of arithmetic. The model is
`apotheon-small`, untrained: one caption of `tiny` takes 2 ms, less than any way through HTTP.
"""

import asyncio
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2 as httpx
import torch

from benchmarks.harness import Result, ratio_result
from benchmarks.served import served, untrained_apotheon, write_noise
from spark_ray.apotheon.processing import PreparedClip
from spark_ray.apotheon.sizes import small, tiny
from spark_ray.models.apotheon import Apotheon
from spark_ray.serving.decoding import decode_file, decode_options
from spark_ray.serving.messages import MediaFile
from spark_ray.serving.settings import ServeSettings

_PORT = 18_441
_GOAL = 0.9
_BATCHES = (1, 2, 4, 8, 16)
_AT_ONCE = 32
_TOKENS = 32
_JOBS: dict[str, object] = {"fps": 2, "smart_sampling": False, "caption_backend": "none"}


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Seconds a caption, interleaved."""
    captions, repetitions, size = (32, 1, tiny) if quick else (64, 3, small)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = untrained_apotheon(folder / "model", size)
        video = folder / "clip.mp4"
        write_noise(video)
        apotheon = Apotheon.load(str(model), setting="model")
        prepared = _prepared(apotheon, video)
        looped = {batch: _loop_s(apotheon, prepared, batch, max(_BATCHES)) for batch in _BATCHES}
        best = min(looped, key=lambda batch: looped[batch])
        ours: list[float] = []
        theirs: list[float] = []
        seer = {
            "reference": str(model),
            "num_cpus": 1,
            "max_batch_size": best,
            "batch_wait_s": 0.25,  # little beside the seconds that a batch takes
            "max_queued": 4 * _AT_ONCE,
        }
        with served(folder, _PORT, models={"seer": seer}, job_settings=_JOBS) as key:
            asset = _upload(key, video)
            asyncio.run(_http_s(key, asset, _AT_ONCE))  # the first answers warm up
            for _ in range(repetitions):
                ours.append(asyncio.run(_http_s(key, asset, captions)))
                theirs.append(_loop_s(apotheon, prepared, best, captions))
    yield ratio_result(
        "captions-http",
        "the same model in a loop at its best batch size (seconds a caption)",
        1 / _GOAL,
        ours,
        theirs,
        captions_a_second={
            name: [round(1 / s, 1) for s in found]
            for name, found in (("http", ours), ("loop", theirs))
        },
        batch_size=best,
        loop_by_batch_size={batch: round(1 / s, 1) for batch, s in looped.items()},
        at_once=_AT_ONCE,
        tokens_a_caption=_TOKENS,
    )


def _prepared(apotheon: Apotheon, video: Path) -> PreparedClip:
    file = MediaFile(location=str(video), kind="video", sha256="0" * 64)
    clip = decode_file(file, decode_options(_JOBS, ServeSettings.from_values().limits))
    return apotheon.prepare(clip.frames, clip.frame_times, clip.audio)


def _loop_s(apotheon: Apotheon, clip: PreparedClip, batch_size: int, captions: int) -> float:
    started = time.perf_counter()
    for _ in range(captions // batch_size):
        apotheon.write([clip] * batch_size, "caption", _TOKENS)
    return (time.perf_counter() - started) / (captions // batch_size * batch_size)


def _upload(key: str, video: Path) -> str:
    headers = {"Authorization": f"Bearer {key}"}
    files = {"file": video.read_bytes()}
    answer = httpx.post(_url("assets"), headers=headers, files=files, timeout=120)
    answer.raise_for_status()
    return str(answer.json()["id"])


async def _http_s(key: str, asset: str, captions: int) -> float:
    left = iter(range(captions))
    request = {"asset": asset, "max_new_tokens": _TOKENS}

    async def ask_on(client: httpx.AsyncClient) -> None:
        for _ in left:
            (await client.post(_url("captions"), json=request)).raise_for_status()

    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=120) as client:
        started = time.perf_counter()
        await asyncio.gather(*(ask_on(client) for _ in range(_AT_ONCE)))
        return (time.perf_counter() - started) / captions


def _url(route: str) -> str:
    return f"http://127.0.0.1:{_PORT}/v1/{route}"

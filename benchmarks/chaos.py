"""Replicas are killed, a version is promoted, clients go away: no wrong answer, no leaked slot.

Every answer must be the caption that the version which it names gives, or say when to ask again.
Jobs are not begun here: tests/system/test_serving.py kills their drivers.
"""

import asyncio
import contextlib
import os
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import httpx2 as httpx
import numpy as np
import psutil

from benchmarks.harness import ROOT, Result
from benchmarks.served import served
from spark_ray.media.encode import write_video
from spark_ray.models.apotheon import Apotheon
from spark_ray.serving.decoding import decode_file, decode_options
from spark_ray.serving.messages import MediaFile
from spark_ray.serving.settings import ServeSettings

_PORT = 18_445
_CLIENTS = 6
_SLOTS = 8
_TOKENS = 16
_KILL_EVERY_S = 5.0
_GONE_EVERY = 5
_CALM_S = 180.0
_RETRYABLE = (429, 503, 504)
_JOBS: dict[str, object] = {"fps": 2, "smart_sampling": False, "caption_backend": "none"}


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """What went wrong, counted."""
    seconds = 30.0 if quick else 300.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        write_video(folder / "clip.mp4", _pictures(), Fraction(8))
        expected = _two_versions(folder)
        seer = {"reference": "models:/versioned", "num_cpus": 1}
        settings = {"models": {"seer": seer}, "job_settings": _JOBS}
        with served(folder, _PORT, max_concurrent=_SLOTS, **settings) as key:
            storm = Storm(key, (folder / "clip.mp4").read_bytes(), expected)
            asyncio.run(storm.rage(seconds))
    wrong = float(sum(storm.wrong.values()))
    details = {
        "seconds": seconds,
        "answers": {str(status): count for status, count in sorted(storm.answers.items())},
        "wrong": dict(storm.wrong),
        "killed": storm.killed,
        "disconnected": storm.disconnected,
    }
    baseline = "wrong answers, failures that say no retry, leaked slots"
    yield Result("chaos", baseline, wrong, 0.0, (wrong, wrong), details)


def _pictures() -> Iterator[np.ndarray]:
    noise = np.random.default_rng(0)
    for _ in range(16):
        yield noise.integers(0, 255, (96, 96, 3), dtype=np.uint8)


def _two_versions(folder: Path) -> list[dict[str, str]]:
    """Register two models, the first as champion; each one's caption by the hash of its weights."""
    sys.path += [str(ROOT / "tests"), str(ROOT / "tests" / "unit" / "training")]
    import apotheons
    import trained

    from spark_ray.training.model_card import write_model_card
    from spark_ray.training.registry import register_model

    file = MediaFile(location=str(folder / "clip.mp4"), kind="video", sha256="0" * 64)
    clip = decode_file(file, decode_options(_JOBS, ServeSettings.from_values().limits))
    captions = []
    for seed in (1, 2):
        version = folder / f"version-{seed}"
        apotheons.model(seed).save_pretrained(version)
        apotheons.processor().save_pretrained(version)
        trained.record().write(version)
        write_model_card(version)
        uri = os.environ["MLFLOW_TRACKING_URI"]
        register_model(version, tracking_uri=uri, name="versioned", alias=f"number-{seed}")
        model = Apotheon.load(str(version), setting="model")
        prepared = model.prepare(clip.frames, clip.frame_times, clip.audio)
        digest = model.weights.info().weights_hash
        assert digest is not None
        captions.append({digest: model.write([prepared], "caption", _TOKENS)[0]})
    _promote(1)
    return captions


def _promote(version: int) -> None:
    from spark_ray.training.registry import promote

    promote("versioned", str(version), tracking_uri=os.environ["MLFLOW_TRACKING_URI"])


class Storm:
    """Clients of one key, and what happens to the server meanwhile."""

    def __init__(self, key: str, video: bytes, expected: list[dict[str, str]]) -> None:
        self.answers: Counter[int] = Counter()
        self.wrong: Counter[str] = Counter()
        self.killed = self.disconnected = 0
        self._key, self._video = key, video
        self._captions = expected[0] | expected[1]
        (self._newest,) = expected[1]
        self._chance = random.Random(0)

    async def rage(self, seconds: float) -> None:
        headers = {"Authorization": f"Bearer {self._key}"}
        url = f"http://127.0.0.1:{_PORT}/v1"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=150) as client:
            asset = (await client.post("/assets", files={"file": self._video})).json()["id"]
            end = time.monotonic() + seconds
            clients = (self._ask_on(client, asset, end) for _ in range(_CLIENTS))
            await asyncio.gather(self._kill_on(end), self._promote_at(seconds / 2), *clients)
            await self._calm(client, asset)

    async def _ask_on(self, client: httpx.AsyncClient, asset: str, end: float) -> None:
        while time.monotonic() < end:
            asking = asyncio.ensure_future(self._ask(client, asset))
            if self._chance.randrange(_GONE_EVERY) == 0:
                await asyncio.sleep(self._chance.uniform(0, 0.1))
                self.disconnected += asking.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                if await asking != 200:
                    await asyncio.sleep(0.2)

    async def _ask(self, client: httpx.AsyncClient, asset: str) -> int:
        request = {"asset": asset, "model": "seer", "max_new_tokens": _TOKENS}
        answer = await client.post("/captions", json=request)
        self.answers[answer.status_code] += 1
        if answer.status_code == 200:
            said = answer.json()
            if said["caption"] != self._captions[said["model"]["weights_hash"]]:
                self.wrong["caption"] += 1
        elif answer.status_code not in _RETRYABLE:
            self.wrong[f"status {answer.status_code}"] += 1
        return answer.status_code

    async def _kill_on(self, end: float) -> None:
        while time.monotonic() + _KILL_EVERY_S < end:
            await asyncio.sleep(_KILL_EVERY_S)
            for replica in await asyncio.to_thread(_replicas):
                with contextlib.suppress(psutil.NoSuchProcess):
                    replica.kill()
                    self.killed += 1

    async def _promote_at(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await asyncio.to_thread(_promote, 2)

    async def _calm(self, client: httpx.AsyncClient, asset: str) -> None:
        """It comes back, with the new version, and the key has all of its slots."""
        request = {"asset": asset, "model": "seer", "max_new_tokens": _TOKENS}
        end = time.monotonic() + _CALM_S
        while time.monotonic() < end:
            answer = await client.post("/captions", json=request)
            if answer.status_code == 200 and (
                answer.json()["model"]["weights_hash"] == self._newest
            ):
                break
            await asyncio.sleep(0.5)
        else:
            self.wrong["never calm"] += 1
        words = {"model": "seer", "input": "a boat"}
        together = (client.post("/embeddings", json=words) for _ in range(_SLOTS))
        refused = sum(answer.status_code == 429 for answer in await asyncio.gather(*together))
        self.wrong.update({"leaked slots": refused} if refused else {})


def _replicas() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if "ServeReplica:spark-ray:model-seer" in " ".join(process.cmdline()):
                found.append(process)
    return found

"""Requests of every kind for ten minutes: none fails, and memory stays what it was.

A mix of all that clients send under `/v1`, jobs and uploads included; one in eight clients goes
away before its answer has come. Memory is that of each process of the server by itself, so that
what one of them leaks does not drown in the sum.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import httpx2 as httpx
import numpy as np
import psutil

from benchmarks.harness import ROOT, Result
from benchmarks.load_clients import Client, Media, Tally
from benchmarks.served import promote_version, register_version, served, write_noise

_PORT = 18_443
_AT_ONCE = 6
_VERSIONS = 3
_CLIPS = 12
_FLAT = 1.05
_SAMPLES = 90
_SEARCH_READY_S = 120.0
_JOBS: dict[str, object] = {"fps": 2, "smart_sampling": False, "caption_backend": "none"}
_SERVER = ("ray::ServeReplica:", "ray::ServeController", "ray::ProxyActor")
_RAY = ("/raylet", "/gcs_server", "/dashboard.py", "/agent.py", "/agent/main.py")

MemoryMib = dict[str, float]
"""By process, as `name (pid)`."""


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Answers that should not have come, and the growth of the process that grew most."""
    warm_up_s, seconds = (10.0, 30.0) if quick else (60.0, 600.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        for version in range(1, _VERSIONS + 1):
            register_version(folder, version)
        promote_version(1)
        _write_dataset(folder)
        settings = {
            "models": {"seer": {"reference": "models:/versioned", "num_cpus": 1}},
            "datasets": [str(folder / "films")],
            "job_settings": _JOBS,
        }
        with served(folder, _PORT, jobs=True, **settings) as key:
            load = Load(warm_up_s, seconds)
            asyncio.run(load.press(key, folder))
    yield from load.results()


def _write_dataset(folder: Path) -> None:
    (folder / "videos").mkdir()
    for number in range(_CLIPS):
        write_noise(folder / "videos" / f"{number}.mp4", number, sound=True)
    command = [sys.executable, "-m", "spark_ray.cli", "data", "build"]
    command += ["--input", str(folder / "videos"), "--output", str(folder / "films")]
    command += ["--caption-backend", "none"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


class Load:
    """The clients, and what the server's processes hold meanwhile."""

    def __init__(self, warm_up_s: float, seconds: float) -> None:
        self._warm_up_s, self._seconds = warm_up_s, seconds
        self._tally = Tally()
        self._server: list[MemoryMib] = []
        self._ray: list[MemoryMib] = []

    async def press(self, key: str, folder: Path) -> None:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{_PORT}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=150,
            limits=limits,
        ) as http:
            media = await _prepared(http, folder)
            clients = [Client(http, media, self._tally, seed) for seed in range(_AT_ONCE + 1)]
            end = time.monotonic() + self._warm_up_s + self._seconds
            await asyncio.gather(
                self._watch(end),
                clients[0].run_jobs_until(end),
                *(client.ask_until(end) for client in clients[1:]),
            )

    async def _watch(self, end: float) -> None:
        await asyncio.sleep(self._warm_up_s)  # which fills caches and pools
        every_s = self._seconds / _SAMPLES
        told = 0
        while (left := end - time.monotonic()) > 0:
            self._server.append(await asyncio.to_thread(_memory_mib, _SERVER))
            self._ray.append(await asyncio.to_thread(_memory_mib, _RAY))
            if len(self._server) >= told:
                told += _SAMPLES // 10
                heard = ", ".join(f"{n} of {s}" for s, n in sorted(self._tally.answers.items()))
                total = sum(self._server[-1].values())
                _tell(f"{left:.0f} s left, {total:.0f} MiB; {heard}; {self._tally.gone} gone")
                for sample in self._tally.samples:
                    _tell(sample)
            await asyncio.sleep(min(left, every_s))

    def results(self) -> Iterator[Result]:
        tally = self._tally
        lost = sorted(set(self._server[0]) - set(self._server[-1]))
        failed = tally.unexpected.total() + len(lost)
        details = {
            "seconds": self._seconds,
            "at_once": _AT_ONCE,
            "answers": {str(status): count for status, count in sorted(tally.answers.items())},
            "done": dict(sorted(tally.done.items())),
            "clients_gone": tally.gone,
            "unexpected": dict(tally.unexpected),
            "samples": tally.samples,
            "processes_lost": lost,
        }
        baseline = "answers of 5xx, others than should have come, and processes lost"
        yield Result("load-failures", baseline, failed, 0.0, (failed, failed), details)
        grown = thirds(self._server)
        ratios = [late / early for early, _, late in grown.values()]
        details = {
            "seconds": self._seconds,
            "server_mib": _rounded(grown),
            "ray_mib": _rounded(thirds(self._ray)),
        }
        baseline = "memory of the same process in the first third; the one that grew most"
        most = max(ratios)
        yield Result("load-memory", baseline, most, _FLAT, (min(ratios), most), details)


async def _prepared(http: httpx.AsyncClient, folder: Path) -> Media:
    """Assets to ask about, once the server has embedded its dataset."""
    video = (folder / "videos" / "0.mp4").read_bytes()
    noise = np.random.default_rng(0).integers(0, 255, (96, 96, 3), dtype=np.uint8)
    picture = cv2.imencode(".jpg", noise)[1].tobytes()
    assets = []
    for file in (video, picture):
        answer = await http.post("/v1/assets", files={"file": file})
        assets.append(answer.raise_for_status().json()["id"])
    dataset = (await http.get("/v1/datasets/films")).raise_for_status().json()
    version = dataset["versions"][0]["version"]
    clips = (await http.get(f"/v1/datasets/films/{version}/clips")).raise_for_status().json()
    end = time.monotonic() + _SEARCH_READY_S
    while (await http.post("/v1/search", json={"text": "boat"})).status_code == 503:
        if time.monotonic() > end:
            raise RuntimeError(f"the search was not ready within {_SEARCH_READY_S:g} s")
        await asyncio.sleep(1)
    ids = [clip["id"] for clip in clips["clips"]]
    return Media(video, picture, assets[0], assets[1], "films", version, ids)


def thirds(samples: Sequence[Mapping[str, float]]) -> dict[str, tuple[float, float, float]]:
    """Medians of the first, the second and the last third, of each process that was always there.

    What still fills pools of memory grows from the first to the second alone; a leak goes on.
    """
    third = len(samples) // 3
    throughout = set(samples[0]).intersection(*samples)

    def median(process: str, some: Sequence[Mapping[str, float]]) -> float:
        return statistics.median(sample[process] for sample in some)

    return {
        process: (
            median(process, samples[:third]),
            median(process, samples[third:-third]),
            median(process, samples[-third:]),
        )
        for process in sorted(throughout)
    }


def _rounded(grown: Mapping[str, tuple[float, ...]]) -> dict[str, list[float]]:
    return {name: [round(mib, 1) for mib in medians] for name, medians in grown.items()}


def _memory_mib(titles: Sequence[str]) -> MemoryMib:
    """What processes of these titles hold that nothing else shares."""
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            words = " ".join(process.cmdline())
            title = next((title for title in titles if title in words), None)
            if title is not None:
                name = _name(words, title)
                found[f"{name} ({process.pid})"] = process.memory_full_info().uss / 2**20
        except psutil.Error:
            continue
    return found


def _name(words: str, title: str) -> str:
    """`Gateway` of a replica's title, which is `ray::ServeReplica:spark-ray:Gateway` and more."""
    if title == _SERVER[0]:
        return words.partition(title)[2].split()[0].rpartition(":")[2].partition(".")[0]
    return title.rpartition("/" if "/" in title else ":")[2]


def _tell(text: str) -> None:
    print(f"load: {text}", file=sys.stderr, flush=True)

"""Replicas are killed, a version is rolled out, clients go away: what goes wrong is counted.

Every few seconds one replica of the server is killed without warning: of the gateway, the decoder,
the model, the search or the keeper of jobs, whichever is whole at the time, or nothing would ever
be up again on a few cores; and once the driver of each job. In the middle of it, the other version
of the model is promoted.
"""

import asyncio
import contextlib
import itertools
import os
import random
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2 as httpx
import psutil
import ray
from ray import serve

from benchmarks.chaos_clients import (
    TOKENS,
    WORDS,
    AskAgain,
    Clients,
    Truth,
    WrongAnswer,
    accepted,
)
from benchmarks.harness import Result
from benchmarks.served import promote_version, register_version, served, write_noise
from spark_ray.models.apotheon import Apotheon
from spark_ray.serving.decoding import decode_file, decode_options
from spark_ray.serving.messages import MediaFile
from spark_ray.serving.settings import ServeSettings

_PORT = 18_445
_AT_ONCE = 6
_SLOTS = 8
_VIDEOS = 3
_VERSIONS = (1, 2)
_KILL_EVERY_S = 5.0
_CALM_S = 180.0
_JOBS_END_S = 600.0
_TITLE = "ServeReplica:spark-ray:"
_GATEWAY = "Gateway"
_JOBS: dict[str, object] = {"fps": 2, "smart_sampling": False, "caption_backend": "none"}


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """What went wrong, as shares of what was asked; jobs and slots that were lost."""
    seconds, jobs = (45.0, 1) if quick else (300.0, 4)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{folder}/mlflow.db"
        videos = _write_videos(folder)
        truth = _two_versions(folder)
        seer = {"reference": "models:/versioned", "num_cpus": 0.5, "min_replicas": 2}
        settings = {"models": {"seer": seer}, "job_settings": _JOBS, "alias_lifetime_s": 1.0}
        with served(folder, _PORT, max_concurrent=_SLOTS, jobs=True, **settings) as key:
            storm = Storm(seconds, jobs)
            asyncio.run(storm.rage(key, videos, truth))
    yield from storm.results()


def _write_videos(folder: Path) -> list[bytes]:
    for number in range(_VIDEOS):
        write_noise(folder / f"{number}.mp4", number)
    return [(folder / f"{number}.mp4").read_bytes() for number in range(_VIDEOS)]


def _two_versions(folder: Path) -> Truth:
    """Register two untrained models, the first as champion, and ask both for what is right."""
    options = decode_options(_JOBS, ServeSettings.from_values().limits)
    files = [
        MediaFile(location=str(folder / f"{number}.mp4"), kind="video", sha256="0" * 64)
        for number in range(_VIDEOS)
    ]
    clips = [decode_file(file, options) for file in files]
    truth = Truth({}, {}, {})
    for version in _VERSIONS:
        place = register_version(folder, version)
        model = Apotheon.load(str(place), setting="model")
        digest = model.weights.info().weights_hash
        assert digest is not None
        prepared = [model.prepare(clip.frames, clip.frame_times, clip.audio) for clip in clips]
        truth.hashes[version] = digest
        truth.captions[digest] = [model.write([one], "caption", TOKENS)[0] for one in prepared]
        truth.vectors[digest] = model.embed_texts([WORDS])[0]
    different = {caption for captions in truth.captions.values() for caption in captions}
    assert len(different) == _VIDEOS * len(_VERSIONS), "a mistaken answer could not be told"
    promote_version(1)
    return truth


class Storm:
    """The clients, and what happens to the server meanwhile."""

    def __init__(self, seconds: float, jobs: int) -> None:
        self._seconds, self._job_count = seconds, jobs
        self._killed: Counter[str] = Counter()
        self._job_ids: list[str] = []
        self._undriven: set[str] = set()
        self._ended: list[dict[str, Any]] = []
        self._leaked: Counter[str] = Counter()
        self._calm_after_s = float("nan")

    async def rage(self, key: str, videos: list[bytes], truth: Truth) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        url = f"http://127.0.0.1:{_PORT}/v1"
        async with httpx.AsyncClient(base_url=url, headers=headers, timeout=150) as client:
            self._client = client
            self._clients = clients = Clients(client, videos, truth)
            await clients.prepare()
            end = time.monotonic() + self._seconds
            asking = (clients.ask_until(end, seed) for seed in range(_AT_ONCE))
            await asyncio.gather(
                self._kill_until(end),
                self._roll_out(),
                self._begin_jobs(),
                self._tell(end),
                *asking,
            )
            await self._calm_down()
            await self._watch_jobs()

    async def _tell(self, end: float) -> None:
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, 30))
            clients = self._clients
            _tell(
                f"{max(0, end - time.monotonic()):.0f} s left: {clients.right.total()} right, "
                f"{clients.again.total()} to ask again, {clients.wrong.total()} wrong, "
                f"{clients.gone} gone, {self._killed.total()} killed"
            )

    async def _kill_until(self, end: float) -> None:
        """The gateway only in the first half: with it would go the slots that clients left."""
        chance = random.Random(0)
        half = end - self._seconds / 2
        for turn in itertools.count():
            if time.monotonic() + _KILL_EVERY_S >= end:
                return
            await asyncio.sleep(_KILL_EVERY_S)
            await asyncio.to_thread(self._kill_drivers)
            found = await asyncio.to_thread(_whole)
            if time.monotonic() > half:
                found.pop(_GATEWAY, None)
            if found:
                name = sorted(found)[turn % len(found)]
                with contextlib.suppress(psutil.NoSuchProcess):
                    chance.choice(found[name]).kill()
                    self._killed[name] += 1
        self._killed["driver of a job"] = len(self._undriven)

    def _kill_drivers(self) -> None:
        """Of each job once: after five lost drivers a job is given up, as is documented."""
        for job in set(self._job_ids) - self._undriven:
            for process, words in _processes():
                if "spark_ray.cli" in words and job in words:  # its shell, too
                    with contextlib.suppress(psutil.NoSuchProcess):
                        process.kill()
                        self._undriven.add(job)

    async def _roll_out(self) -> None:
        await asyncio.sleep(self._seconds / 2)
        self._clients.promoting()
        await asyncio.to_thread(promote_version, 2)
        self._clients.promoted()

    async def _begin_jobs(self) -> None:
        for number in range(self._job_count):
            request = {"name": f"set-{number}", "assets": self._clients.assets}
            first = await self._begin(request, f"key-{number}")
            self._job_ids.append(first)
            # As a client does that did not hear the answer.
            if await self._begin(request, f"key-{number}") != first:
                self._clients.note("job", WrongAnswer("begun twice for one Idempotency-Key"))
            await asyncio.sleep(self._seconds / self._job_count / 2)

    async def _begin(self, request: dict[str, Any], key: str) -> str:
        headers = {"Idempotency-Key": key}
        while True:
            try:
                answer = await self._client.post("/jobs", json=request, headers=headers)
                return str(accepted(answer, 201).json()["id"])
            except (AskAgain, httpx.TransportError):
                await asyncio.sleep(0.5)

    async def _calm_down(self) -> None:
        """It answers with the new version again, and neither keys nor replicas have lost slots."""
        started = time.monotonic()
        while time.monotonic() < started + _CALM_S:
            with contextlib.suppress(AskAgain):
                if await self._clients.caption(0, "seer") == 2:
                    break
            await asyncio.sleep(0.5)
        self._calm_after_s = time.monotonic() - started
        together = (
            self._client.post("/embeddings", json={"model": "seer", "input": WORDS})
            for _ in range(_SLOTS)
        )
        statuses = Counter(answer.status_code for answer in await asyncio.gather(*together))
        self._leaked.update({"of the key": statuses[429]} if statuses[429] else {})
        self._leaked.update(await asyncio.to_thread(_requests_left))

    async def _watch_jobs(self) -> None:
        """Until all have ended; none may be missing, or be there twice."""
        end = time.monotonic() + _JOBS_END_S
        while time.monotonic() < end:
            with contextlib.suppress(AskAgain):
                self._ended = accepted(await self._client.get("/jobs")).json()
                if all(job["finished"] for job in self._ended):
                    break
                _tell(f"jobs: {', '.join(job['state'] for job in self._ended)}")
            await asyncio.sleep(10)

    def results(self) -> Iterator[Result]:
        clients = self._clients
        share = clients.wrong.total() / clients.asked
        details = {
            "seconds": self._seconds,
            "asked": clients.asked,
            "right": dict(clients.right),
            "to_ask_again": dict(sorted(clients.again.items())),
            "wrong": dict(clients.wrong),
            "samples": clients.samples,
            "clients_gone": clients.gone,
            "killed": dict(self._killed),
            "calm_after_s": round(self._calm_after_s, 1),
        }
        baseline = "requests under chaos: answers that were neither right nor said when to retry"
        yield Result("chaos", baseline, share, 0.0, (share, share), details)
        good = [job for job in self._ended if job["state"] == "succeeded" and _is_whole(job)]
        doubled = max(0, len(self._ended) - self._job_count)
        lost = (self._job_count - len(good) + doubled) / self._job_count
        jobs = [
            {
                "seconds": round((job["finished"] or time.time()) - job["created"], 1),
                **{name: job[name] for name in ("state", "attempts", "error")},
            }
            for job in self._ended
        ]
        baseline = "jobs under chaos: lost, doubled or built wrongly"
        yield Result("chaos-jobs", baseline, lost, 0.0, (lost, lost), {"jobs": jobs})
        leaked = self._leaked.total() / (clients.asked + clients.gone)
        baseline = "requests under chaos: slots that were not given back"
        details = {"leaked": dict(self._leaked), "clients_gone": clients.gone}
        yield Result("chaos-slots", baseline, leaked, 0.0, (leaked, leaked), details)


def _tell(text: str) -> None:
    print(f"chaos: {text}", file=sys.stderr, flush=True)


def _is_whole(job: dict[str, Any]) -> bool:
    result = job["result"]
    return isinstance(result, dict) and result["clips"] == _VIDEOS


def _processes() -> Iterator[tuple[psutil.Process, str]]:
    """What this process has started, directly or not, each with its command line."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            yield process, " ".join(process.cmdline())


def _whole() -> dict[str, list[psutil.Process]]:
    """Processes of replicas by their deployments, where all of these are running."""
    found: dict[str, list[psutil.Process]] = defaultdict(list)
    for process, words in _processes():
        if _TITLE in words:
            found[words.partition(_TITLE)[2].split()[0].partition(".")[0]].append(process)
    states = serve.status().applications["spark-ray"].deployments
    return {
        name: replicas
        for name, replicas in found.items()
        if name in states and states[name].replica_states == {"RUNNING": len(replicas)}
    }


def _requests_left() -> Counter[str]:
    """Requests that replicas are still at, ten seconds after the last client has gone."""
    time.sleep(10)
    left: Counter[str] = Counter()
    for actor in ray.util.list_named_actors(all_namespaces=True):
        name = actor["name"]
        if name.startswith("SERVE_REPLICA::spark-ray#"):
            replica = ray.get_actor(name, namespace=actor["namespace"])
            requests = ray.get(replica.get_num_ongoing_requests.remote(), timeout=30)
            left.update({f"of {name.split('#')[1]}": requests} if requests else {})
    return left

"""Clients of the load benchmark: what they ask of all parts of `/v1`, and what they should hear."""

import asyncio
import base64
import hashlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2 as httpx

from spark_ray.serving.jobs import ENDED

_TOKENS = 16
_VERSIONS = (1, 2, 3)
_TUS = {"Tus-Resumable": "1.0.0"}
_GONE_EVERY = 8
_GONE_WITHIN_S = 0.5
_SLOW_S = 0.2
_JOB_IS_DROPPED_WITHIN_S = 20.0
_MOST_SAMPLES = 10

Ask = Callable[[], Awaitable[None]]


class Unexpected(Exception):
    """An answer that the client should not have got."""


@dataclass
class Tally:
    """What all clients have heard."""

    answers: Counter[int] = field(default_factory=Counter)
    done: Counter[str] = field(default_factory=Counter)
    unexpected: Counter[str] = field(default_factory=Counter)
    samples: list[str] = field(default_factory=list)
    gone: int = 0

    def note(self, kind: str, error: Exception) -> None:
        self.unexpected[kind] += 1
        if len(self.samples) < _MOST_SAMPLES:
            self.samples.append(f"{kind}: {type(error).__name__}: {error}")


@dataclass(frozen=True)
class Media:
    """What clients send, and what the server has of it: assets, and a dataset of such clips."""

    video: bytes
    picture: bytes
    video_asset: str
    picture_asset: str
    dataset: str
    version: str
    clip_ids: list[str]


class Client:
    """Asks one thing at a time, chosen by chance; at times it leaves before the answer comes."""

    def __init__(self, http: httpx.AsyncClient, media: Media, tally: Tally, seed: int) -> None:
        self._http, self._media, self._tally = http, media, tally
        self._chance = random.Random(seed)
        self._kinds: dict[str, Ask] = {
            "caption": self._caption,
            "caption of a file": self._caption_of_file,
            "transcript": self._transcript,
            "analysis": self._analysis,
            "analysis, streamed": self._analysis_streamed,
            "chat": self._chat,
            "chat, streamed": self._chat_streamed,
            "speech": self._speech,
            "embedding": self._embedding,
            "search by text": self._search_by_text,
            "search by picture": self._search_by_picture,
            "search by clip": self._search_by_clip,
            "asset": self._asset,
            "resumed upload": self._resumed_upload,
            "slow upload": self._slow_upload,
            "datasets": self._datasets,
            "models": self._models,
            "server": self._server,
            "mistakes": self._mistakes,
        }

    async def ask_until(self, end: float) -> None:
        while time.monotonic() < end:
            kind = self._chance.choice(list(self._kinds))
            asking = asyncio.ensure_future(self._kinds[kind]())
            if self._chance.randrange(_GONE_EVERY) == 0:
                await asyncio.sleep(self._chance.uniform(0, _GONE_WITHIN_S))
                self._tally.gone += asking.cancel()
            await self._done(kind, asking)

    async def run_jobs_until(self, end: float) -> None:
        """Datasets built one after the other; half of them are given up in the middle."""
        while time.monotonic() < end:
            await self._done("job", self._job(end))

    async def _done(self, kind: str, asking: Awaitable[None]) -> None:
        try:
            await asking
        except asyncio.CancelledError:
            return
        except (Unexpected, httpx.TransportError) as error:
            self._tally.note(kind, error)
        else:
            self._tally.done[kind] += 1

    async def _send(self, status: int, method: str, path: str, **request: Any) -> httpx.Response:
        """
        Raises:
            Unexpected: the answer has another status.
        """
        answer = await self._http.request(method, path, **request)
        self._heard(answer, status)
        return answer

    def _heard(self, answer: httpx.Response, status: int) -> None:
        self._tally.answers[answer.status_code] += 1
        if answer.status_code != status:
            asked = f"{answer.request.method} {answer.request.url.path}"
            raise Unexpected(f"{asked}: {answer.status_code} {answer.text[:200]}")

    async def _events(self, method: str, path: str, **request: Any) -> AsyncIterator[str]:
        """The lines of a stream."""
        async with self._http.stream(method, path, **request) as answer:
            if answer.status_code != 200:
                await answer.aread()
            self._heard(answer, 200)
            async for line in answer.aiter_lines():
                if line:
                    yield line

    def _model(self) -> str:
        """Mostly the champion; also versions, of which one more is asked for than are held."""
        return self._chance.choice(["seer"] * 9 + [f"seer/{version}" for version in _VERSIONS])

    # ---- media to text ---------------------------------------------------------------------------

    def _about_video(self) -> dict[str, Any]:
        return {
            "asset": self._media.video_asset, "model": self._model(), "max_new_tokens": _TOKENS
        }  # fmt: skip

    async def _caption(self) -> None:
        await self._send(200, "POST", "/v1/captions", json=self._about_video())

    async def _caption_of_file(self) -> None:
        fields = {"model": self._model(), "max_new_tokens": str(_TOKENS)}
        files = {"file": self._media.picture}
        answer = await self._send(200, "POST", "/v1/captions", files=files, data=fields)
        await self._send(204, "DELETE", f"/v1/assets/{answer.json()['asset']}")

    async def _transcript(self) -> None:
        await self._send(200, "POST", "/v1/transcriptions", json=self._about_video())

    async def _analysis(self) -> None:
        request = {"asset": self._media.video_asset, "max_new_tokens": _TOKENS, "thumbnails": 4}
        await self._send(200, "POST", "/v1/analyze", json=request)

    async def _analysis_streamed(self) -> None:
        request = {"asset": self._media.video_asset, "max_new_tokens": _TOKENS, "stream": True}
        last = ""
        async for line in self._events("POST", "/v1/analyze", json=request):
            last = line if line.startswith("event: ") else last
        if last != "event: answer":
            raise Unexpected(f"an analysis that ended with {last!r}")

    def _conversation(self) -> dict[str, Any]:
        data = f"data:image/jpeg;base64,{base64.b64encode(self._media.picture).decode()}"
        shown: dict[str, Any] = {"type": "image_url", "image_url": {"url": data}}
        if self._chance.randrange(2):
            shown = {"type": "video_url", "video_url": {"url": self._media.video_asset}}
        said = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}, shown]}]
        return {"model": self._model(), "messages": said, "max_tokens": _TOKENS}

    async def _chat(self) -> None:
        await self._send(200, "POST", "/v1/chat/completions", json=self._conversation())

    async def _chat_streamed(self) -> None:
        request = {**self._conversation(), "stream": True}
        last = ""
        async for line in self._events("POST", "/v1/chat/completions", json=request):
            last = line
        if last != "data: [DONE]":
            raise Unexpected(f"a chat that ended with {last[:200]!r}")

    async def _speech(self) -> None:
        form = self._chance.choice(["json", "text", "srt", "vtt", "verbose_json"])
        fields = {"model": self._model(), "response_format": form}
        files = {"file": self._media.video}
        await self._send(200, "POST", "/v1/audio/transcriptions", files=files, data=fields)

    # ---- search ----------------------------------------------------------------------------------

    async def _embedding(self) -> None:
        words = [f"boat {self._chance.randrange(1000)}", "a red circle"]
        request = {"model": self._model(), "input": words}
        await self._send(200, "POST", "/v1/embeddings", json=request)

    async def _search_by_text(self) -> None:
        await self._search(text=f"boat {self._chance.randrange(1000)}")

    async def _search_by_picture(self) -> None:
        await self._search(asset=self._media.picture_asset)

    async def _search_by_clip(self) -> None:
        await self._search(asset=self._media.video_asset)

    async def _search(self, **query: Any) -> None:
        request = {"dataset": self._media.dataset, "limit": 5, **query}
        answer = await self._send(200, "POST", "/v1/search", json=request)
        if len(answer.json()["hits"]) != min(5, len(self._media.clip_ids)):
            raise Unexpected(f"a search that found {answer.text[:200]}")

    # ---- assets ----------------------------------------------------------------------------------

    async def _asset(self) -> None:
        files = {"file": self._media.video}
        await self._finish(await self._send(201, "POST", "/v1/assets", files=files))

    async def _resumed_upload(self) -> None:
        """In halves, after the tus protocol."""
        video = self._media.video
        headers = {**_TUS, "Upload-Length": str(len(video))}
        begun = await self._send(201, "POST", "/v1/assets", headers=headers)
        half = len(video) // 2
        for part in (video[:half], video[half:]):
            at = await self._send(200, "HEAD", begun.headers["location"], headers=_TUS)
            headers = {
                **_TUS,
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": at.headers["upload-offset"],
            }
            await self._send(204, "PATCH", begun.headers["location"], headers=headers, content=part)
        await self._finish(begun)

    async def _slow_upload(self) -> None:
        """Over a line so slow that a client may leave in the middle of a part."""
        video = self._media.video
        headers = {**_TUS, "Upload-Length": str(len(video))}
        begun = await self._send(201, "POST", "/v1/assets", headers=headers)
        headers = {
            **_TUS, "Content-Type": "application/offset+octet-stream", "Upload-Offset": "0"
        }  # fmt: skip

        async def trickle() -> AsyncIterator[bytes]:
            third = len(video) // 3
            for part in (video[:third], video[third : 2 * third], video[2 * third :]):
                yield part
                await asyncio.sleep(_SLOW_S)

        place = begun.headers["location"]
        await self._send(204, "PATCH", place, headers=headers, content=trickle())
        await self._finish(begun)

    async def _finish(self, begun: httpx.Response) -> None:
        """Look whether all of it has come, and remove it."""
        place = begun.headers["location"]
        shown = (await self._send(200, "GET", place)).json()
        if shown["sha256"] != hashlib.sha256(self._media.video).hexdigest():
            raise Unexpected(f"an upload that is not what was sent: {shown}")
        await self._send(204, "DELETE", place)

    # ---- looking around --------------------------------------------------------------------------

    async def _datasets(self) -> None:
        named = f"/v1/datasets/{self._media.dataset}"
        version = f"{named}/{self._media.version}"
        clip = f"{version}/clips/{self._chance.choice(self._media.clip_ids)}"
        both = {"before": self._media.version, "after": self._media.version}
        await self._send(200, "GET", "/v1/datasets")
        await self._send(200, "GET", version)
        await self._send(200, "GET", f"{version}/clips", params={"thumbnails": 2, "limit": 6})
        await self._send(200, "GET", clip)
        await self._send(200, "GET", f"{clip}/frames/1")
        await self._send(200, "GET", f"{clip}/audio")
        await self._send(200, "GET", f"{named}/compare", params=both)

    async def _models(self) -> None:
        await self._send(200, "GET", "/v1/models")
        await self._send(200, "GET", "/v1/models/seer")
        version = self._chance.choice(_VERSIONS)
        await self._send(200, "GET", "/v1/models/seer/card", params={"version": version})

    async def _server(self) -> None:
        for path in ("/healthz", "/readyz", "/metrics", "/v1/me", "/v1/system", "/openapi.json"):
            await self._send(200, "GET", path)
        await self._send(200, "GET", "/v1/assets", params={"limit": 10})

    async def _mistakes(self) -> None:
        video = self._media.video
        nobody = {"Authorization": "Bearer sk-nobody"}
        far = {"url": "https://169.254.169.254/latest"}
        model = {"model": "nobody", "input": "boat"}
        await self._send(401, "GET", "/v1/me", headers=nobody)
        await self._send(422, "POST", "/v1/captions", files={"file": video[: len(video) // 3]})
        await self._send(415, "POST", "/v1/assets", files={"file": b"no media at all"})
        await self._send(403, "POST", "/v1/captions", json=far)
        await self._send(404, "POST", "/v1/embeddings", json=model)
        await self._send(400, "POST", "/v1/captions", content=b"{", headers={"Content-Type": ""})
        await self._send(404, "GET", f"/v1/assets/asset-{'0' * 24}")

    # ---- jobs ------------------------------------------------------------------------------------

    async def _job(self, end: float) -> None:
        request = {
            "name": f"set-{self._chance.randrange(3)}",
            "assets": [self._media.video_asset],
            "settings": {"fps": 4},
        }
        headers = {"Idempotency-Key": f"key-{self._chance.randrange(1 << 60)}"}
        begun = (await self._send(201, "POST", "/v1/jobs", json=request, headers=headers)).json()
        again = (await self._send(201, "POST", "/v1/jobs", json=request, headers=headers)).json()
        place = f"/v1/jobs/{begun['id']}"
        if again["id"] != begun["id"]:
            raise Unexpected("a job that was begun twice for one Idempotency-Key")
        wait_s = end - time.monotonic()
        if self._chance.randrange(2):
            wait_s = min(wait_s, self._chance.uniform(0, _JOB_IS_DROPPED_WITHIN_S))
        try:
            async with asyncio.timeout(max(0, wait_s)):
                await self._watch(place)
        except TimeoutError:
            await self._send(202, "DELETE", place)
            await self._watch(place)
        ended = (await self._send(200, "GET", place)).json()
        await self._send(200, "GET", f"{place}/logs")
        await self._send(200, "GET", "/v1/jobs")
        if ended["state"] not in ("succeeded", "cancelled"):
            raise Unexpected(f"a job that ended so: {ended}")

    async def _watch(self, place: str) -> None:
        """Follow its events to the last."""
        last = ""
        async for line in self._events("GET", f"{place}/events"):
            last = line
        if not any(f'"state": "{state}"' in last for state in ENDED):
            raise Unexpected(f"events of a job that ended with {last[:200]!r}")

"""Clients of the chaos benchmark: what they ask, and which answers they may get.

Each answer must be the one that the version which it names gives, or say when to ask again.
"""

import asyncio
import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import httpx2 as httpx
import numpy as np

TOKENS = 16
WORDS = "a boat"

_RETRYABLE = (429, 503)
_LOST_EVENTS = ("replica_lost", "overloaded")
_TUS = {"Tus-Resumable": "1.0.0"}
_GONE_EVERY = 5
_GONE_WITHIN_S = 0.4
_MOST_TRIES = 60
_MOST_SAMPLES = 5
_NOTICED_S = 3.0
"""After this, a promoted version must answer; the server asks the registry every second."""


class WrongAnswer(Exception):
    """What no client may get."""


class AskAgain(Exception):
    """A refusal that says when to ask again."""


@dataclass(frozen=True)
class Truth:
    """What each version of the model answers, by the hash of its weights."""

    hashes: dict[int, str]
    captions: dict[str, list[str]]
    vectors: dict[str, np.ndarray]


Ask = Callable[[random.Random], Awaitable[None]]


class Clients:
    """Clients of one key, each with one question at a time."""

    def __init__(self, client: httpx.AsyncClient, videos: list[bytes], truth: Truth) -> None:
        self.right: Counter[str] = Counter()
        self.again: Counter[str] = Counter()
        self.wrong: Counter[str] = Counter()
        self.samples: list[str] = []
        self.gone = 0
        self.assets: list[str] = []
        self._client, self._videos, self._truth = client, videos, truth
        self._promoted_at = float("inf")
        self._promoting_at = float("inf")
        self._streamed: dict[tuple[int, int], str] = {}
        self._kinds: dict[str, Ask] = {
            "caption": self._caption,
            "caption of a file": self._caption_of_file,
            "caption of a version": self._caption_of_version,
            "stream": self._stream,
            "embedding": self._embedding,
            "upload": self._upload,
        }

    @property
    def asked(self) -> int:
        """Requests whose client stayed to the end."""
        return self.right.total() + self.again.total() + self.wrong.total()

    async def prepare(self) -> None:
        """Upload the clips, and hear each version's stream of each while all is calm."""
        for video in self._videos:
            answer = accepted(await self._client.post("/assets", files={"file": video}), 201)
            self.assets.append(answer.json()["id"])
        for version in self._truth.hashes:
            for clip in range(len(self._videos)):
                self._streamed[version, clip] = await self._streamed_text(version, clip)

    def promoting(self) -> None:
        self._promoting_at = time.monotonic()

    def promoted(self) -> None:
        self._promoted_at = time.monotonic()

    async def ask_until(self, end: float, seed: int) -> None:
        """One client: asks, and in one of five cases goes away before the answer has come."""
        chance = random.Random(seed)
        while time.monotonic() < end:
            kind = chance.choice(list(self._kinds))
            asking = asyncio.ensure_future(self._kinds[kind](chance))
            if chance.randrange(_GONE_EVERY) == 0:
                await asyncio.sleep(chance.uniform(0, _GONE_WITHIN_S))
                self.gone += asking.cancel()
            try:
                await asking
            except asyncio.CancelledError:
                continue
            except AskAgain as refusal:
                self.again[f"{kind}: {refusal}"] += 1
                await asyncio.sleep(0.2)
            except WrongAnswer as answer:
                self.note(kind, answer)
            except httpx.TransportError as error:
                self.note(kind, WrongAnswer(f"{type(error).__name__}: {error}"))
            else:
                self.right[kind] += 1

    def note(self, kind: str, answer: WrongAnswer) -> None:
        self.wrong[kind] += 1
        if len(self.samples) < _MOST_SAMPLES:
            self.samples.append(f"{kind}: {answer}")

    async def caption(self, clip: int, model: str) -> int:
        """The version whose caption of that clip came."""
        request = {"asset": self.assets[clip], "model": model, "max_new_tokens": TOKENS}
        return self._version(await self._client.post("/captions", json=request), clip)

    def _version(self, answer: httpx.Response, clip: int) -> int:
        said = accepted(answer).json()
        digest = said["model"]["weights_hash"]
        version = next((v for v, known in self._truth.hashes.items() if known == digest), None)
        if version is None or said["caption"] != self._truth.captions[digest][clip]:
            raise WrongAnswer(f"a caption of clip {clip}: {answer.text[:300]}")
        return version

    def _check_alias(self, version: int, begun_at: float) -> None:
        if version == 1 and begun_at > self._promoted_at + _NOTICED_S:
            raise WrongAnswer("the old version, long after the new one was promoted")
        if version == 2 and time.monotonic() < self._promoting_at:
            raise WrongAnswer("the new version, before it was promoted")

    async def _caption(self, chance: random.Random) -> None:
        begun_at = time.monotonic()
        version = await self.caption(chance.randrange(len(self._videos)), "seer")
        self._check_alias(version, begun_at)

    async def _caption_of_file(self, chance: random.Random) -> None:
        clip, begun_at = chance.randrange(len(self._videos)), time.monotonic()
        fields = {"model": "seer", "max_new_tokens": str(TOKENS)}
        files = {"file": self._videos[clip]}
        answer = await self._client.post("/captions", files=files, data=fields)
        self._check_alias(self._version(answer, clip), begun_at)

    async def _caption_of_version(self, chance: random.Random) -> None:
        wanted = chance.choice(list(self._truth.hashes))
        clip = chance.randrange(len(self._videos))
        if await self.caption(clip, f"seer/{wanted}") != wanted:
            raise WrongAnswer(f"another version than {wanted}")

    async def _stream(self, chance: random.Random) -> None:
        version = chance.choice(list(self._truth.hashes))
        clip = chance.randrange(len(self._videos))
        text = await self._streamed_text(version, clip)
        if text != self._streamed[version, clip]:
            raise WrongAnswer(f"a stream of clip {clip} from version {version}: {text[:300]!r}")

    async def _streamed_text(self, version: int, clip: int) -> str:
        shown = [{"type": "video_url", "video_url": {"url": self.assets[clip]}}]
        request = {
            "model": f"seer/{version}", "stream": True, "max_tokens": TOKENS,
            "messages": [{"role": "user", "content": shown}],
        }  # fmt: skip
        text = ""
        async with self._client.stream("POST", "/chat/completions", json=request) as answer:
            if answer.status_code != 200:
                await answer.aread()
            accepted(answer)
            async for line in answer.aiter_lines():
                data = line.removeprefix("data: ")
                if data == "[DONE]":
                    return text
                if line.startswith("data: "):
                    text += _piece(json.loads(data))
        raise WrongAnswer(f"a stream without an end: {text[-100:]!r}")

    async def _embedding(self, chance: random.Random) -> None:
        version = chance.choice(list(self._truth.hashes))
        request = {"model": f"seer/{version}", "input": WORDS}
        answer = accepted(await self._client.post("/embeddings", json=request))
        vector = np.asarray(answer.json()["data"][0]["embedding"])
        right = self._truth.vectors[self._truth.hashes[version]]
        if vector.shape != right.shape or not np.allclose(vector, right, atol=1e-4):
            raise WrongAnswer(f"an embedding of version {version}: {answer.text[:300]}")

    async def _upload(self, chance: random.Random) -> None:
        """In halves, after the tus protocol; where one is refused it goes on at what arrived."""
        video = self._videos[chance.randrange(len(self._videos))]
        headers = {**_TUS, "Upload-Length": str(len(video))}
        place = accepted(await self._client.post("/assets", headers=headers), 201)
        address = place.headers["location"].removeprefix("/v1")
        for _ in range(_MOST_TRIES):
            try:
                if await self._sent_half(address, video):
                    break
            except AskAgain:
                await asyncio.sleep(1)
        shown = accepted(await self._client.get(address)).json()
        if not shown["complete"] or shown["sha256"] != hashlib.sha256(video).hexdigest():
            raise WrongAnswer(f"an upload that is not what was sent: {shown}")
        accepted(await self._client.delete(address), 204)

    async def _sent_half(self, address: str, video: bytes) -> bool:
        """Send the next half, or what of it is not there; whether the whole has arrived."""
        known = accepted(await self._client.head(address, headers=_TUS))
        offset = int(known.headers["upload-offset"])
        if offset == len(video):
            return True
        half = len(video) // 2
        part = video[offset:half] if offset < half else video[offset:]
        kind = {"Content-Type": "application/offset+octet-stream", "Upload-Offset": str(offset)}
        accepted(await self._client.patch(address, headers={**_TUS, **kind}, content=part), 204)
        return offset + len(part) == len(video)


def accepted(answer: httpx.Response, status: int = 200) -> httpx.Response:
    """
    Raises:
        AskAgain: it says when to ask again.
        WrongAnswer: it has another status than it should.
    """
    again = answer.headers.get("retry-after", "")
    if answer.status_code in _RETRYABLE and again.isdigit():
        raise AskAgain(str(answer.status_code))
    if answer.status_code != status:
        text = answer.text[:300] if answer.is_closed else ""
        raise WrongAnswer(f"status {answer.status_code} {text}")
    return answer


def _piece(event: dict[str, object]) -> str:
    """The text of an event of a stream."""
    error = event.get("error")
    if isinstance(error, dict):
        if error["code"] in _LOST_EVENTS:
            raise AskAgain(f"event {error['code']}")
        raise WrongAnswer(f"event {error}")
    choices = event["choices"]
    assert isinstance(choices, list)
    return str(choices[0]["delta"].get("content", "")) if choices else ""

"""A sample of a version's clips with their frames, small enough to look at on one page."""

import base64
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import MANIFEST, frame_name

_CLIPS = 24
_FRAMES_PER_CLIP = 8
_JPEG_BYTES = 2_000_000  # base64 makes it 2.7 MB on the page
_READERS = 8

_FrameKey = tuple[str, int]
"""A clip's id and the index of one of its frames, from 0."""


@dataclass(frozen=True)
class SampledFrame:
    """A kept frame. `uri` holds the whole JPEG file."""

    time: float
    uri: str


@dataclass(frozen=True)
class Mark:
    """A place on a clip's timeline, in percent of its length."""

    at: float
    kind: str
    text: str


@dataclass(frozen=True)
class SampledClip:
    """A clip as the report shows it. Not all of its frames need be among `frames`."""

    id: str
    meta: Mapping[str, Any]
    frames: tuple[SampledFrame, ...]

    @property
    def scenes(self) -> list[tuple[float, float]]:
        """Start and width of each scene, in percent of the clip."""
        spans = [(scene["start_time"], scene["end_time"]) for scene in self.meta["scenes"]]
        return [(self._percent(start), self._percent(end - start)) for start, end in spans]

    @property
    def cuts(self) -> list[float]:
        """Seconds at which a scene ends and the next begins."""
        return [scene["start_time"] for scene in self.meta["scenes"][1:]]

    @property
    def marks(self) -> list[Mark]:
        """Every sampled frame, kept and dropped, in order of time."""
        kept = [
            Mark(self._percent(time), "kept", f"{time:.2f} s: kept")
            for time in self.meta["frame_times"]
        ]
        dropped = [
            Mark(self._percent(frame["time"]), frame["dropped_by"], dropped_text(frame))
            for frame in self.meta["dropped_frames"]
        ]
        return sorted([*kept, *dropped], key=lambda mark: mark.at)

    def _percent(self, seconds: float) -> float:
        duration_s = self.meta["duration"]
        return round(min(100.0, max(0.0, 100 * seconds / duration_s)), 2) if duration_s else 0.0


def dropped_text(frame: Mapping[str, Any]) -> str:
    """A dropped frame's time, the rule that dropped it, and what that rule saw."""
    values = {"motion": frame["motion"], "distance": frame.get("hash_distance")}
    seen = [f"{name} {value:.3g}" for name, value in values.items() if value is not None]
    return f"{frame['time']:.2f} s: {frame['dropped_by']} ({', '.join(seen)})"


def sample_clips(version: Folder, clips: int) -> list[SampledClip]:
    """About 24 clips spread evenly over a manifest of `clips` lines, always the same ones.

    The manifest is read once as a stream. Each clip has up to 8 frames, fewer where they would be
    more than 2 MB together; if one frame each is still too much, there are fewer clips.
    """
    lines = list(_sample_lines(version, clips))
    frames = {line["id"]: spread(line["meta"]["num_frames"], _FRAMES_PER_CLIP) for line in lines}
    jpegs = _read_frames(version, [(clip, index) for clip in frames for index in frames[clip]])
    sheet = _fit(frames, jpegs)
    return [
        SampledClip(
            id=line["id"],
            meta=line["meta"],
            frames=tuple(
                SampledFrame(line["meta"]["frame_times"][index], _uri(jpegs[line["id"], index]))
                for index in sheet[line["id"]]
            ),
        )
        for line in lines
        if line["id"] in sheet
    ]


def spread(count: int, wanted: int) -> list[int]:
    """At most `wanted` of the indices below `count`, evenly apart, first and last among them."""
    if count <= wanted:
        return list(range(count))
    if wanted == 1:
        return [0]
    return [round(i * (count - 1) / (wanted - 1)) for i in range(wanted)]


def _sample_lines(version: Folder, clips: int) -> Iterator[dict[str, Any]]:
    chosen = set(spread(clips, _CLIPS))
    for index, data in enumerate(version.lines(MANIFEST)):
        if index in chosen:
            yield json.loads(data)


def _read_frames(version: Folder, frames: list[_FrameKey]) -> dict[_FrameKey, bytes]:
    def read(frame: _FrameKey) -> bytes:
        clip, index = frame
        return version.read(frame_name(clip, index + 1))

    with ThreadPoolExecutor(_READERS) as readers:
        return dict(zip(frames, readers.map(read, frames), strict=True))


def _fit(frames: Mapping[str, list[int]], jpegs: Mapping[_FrameKey, bytes]) -> dict[str, list[int]]:
    """What fits on the page of each clip's frames: fewer frames a clip first, then fewer clips."""
    limits = [(_CLIPS, most) for most in range(_FRAMES_PER_CLIP, 0, -1)]
    limits += [(most, 1) for most in (12, 6, 3, 1)]
    clips = list(frames)
    for most_clips, most_frames in limits:
        sheet = {
            clip: [frames[clip][i] for i in spread(len(frames[clip]), most_frames)]
            for clip in (clips[i] for i in spread(len(clips), most_clips))
        }
        size = sum(len(jpegs[clip, index]) for clip in sheet for index in sheet[clip])
        if size <= _JPEG_BYTES:
            break
    return sheet


def _uri(jpeg: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

"""Test material: footage that codecs find as hard as the real thing, made once and cached.

A flat synthetic picture decodes in no time, and everything done beside decoding looks dear. So the
scenes here have texture at every scale, a panning camera, moving objects and grain; at x264's
defaults they come to the bit rates of real footage.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
from av.packet import Packet
from av.stream import Stream

from benchmarks.harness import CACHE
from spark_ray.media.encode import AudioTrack, VideoTrack, write_tracks

_SOUND_RATE = 48_000
_GRAIN = 3.5
_SHOT_S = 2.4

_ENCODERS = {
    "h264": ("libx264", {"preset": "medium", "crf": "23", "bf": "3", "mbtree": "1"}),
    "hevc": ("libx265", {"preset": "fast", "crf": "25"}),
}


@dataclass(frozen=True)
class Footage:
    """A clip to make."""

    width: int
    height: int
    codec: str
    seconds: float
    seed: int = 0
    rate: int = 25

    @property
    def name(self) -> str:
        size = f"{self.width}x{self.height}"
        return f"{size}-{self.codec}-{self.rate}fps-{self.seconds:g}s-{self.seed}.mp4"


def footage(clip: Footage) -> Path:
    """The clip's file, encoded on first use: a minute or more for 1080p on one core."""
    return _cached(clip.name, lambda path: _encode(clip, path))


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    path = CACHE / name
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"unfinished-{name}")
        make(unfinished)
        unfinished.replace(path)
    return path


def _encode(clip: Footage, path: Path) -> None:
    codec, options = _ENCODERS[clip.codec]
    video = VideoTrack(
        frames=draw(clip),
        rate=Fraction(clip.rate),
        codec=codec,
        gop=250,
        options={**options, "threads": "1"},
    )
    sound = AudioTrack(pcm=_sound(clip.seconds, clip.seed), sample_rate=_SOUND_RATE)
    write_tracks(path, [video, sound])


def draw(clip: Footage) -> Iterator[np.ndarray]:
    """The clip's frames, RGB: shots of some seconds, each another scene, cut hard."""
    rng = np.random.default_rng(clip.seed)
    remaining = round(clip.seconds * clip.rate)
    while remaining > 0:
        count = min(remaining, round(clip.rate * _SHOT_S * rng.uniform(0.8, 1.2)))
        yield from _shot(rng, clip.width, clip.height, count)
        remaining -= count


def _shot(rng: np.random.Generator, width: int, height: int, count: int) -> Iterator[np.ndarray]:
    margin = max(8, width // 8)
    backdrop = _texture(rng, width + 2 * margin, height + 2 * margin)
    objects = [_Object.random(rng, width, height) for _ in range(4)]
    pan = rng.uniform(-1, 1, 2) * margin / max(count, 50)
    grain = rng.normal(0, _GRAIN, (height + 64, width + 64, 1)).repeat(3, axis=2)
    grain = np.rint(grain).astype(np.int8)
    for number in range(count):
        x, y = margin + pan * number + np.sin(number / 9) * 1.5
        view = np.array([[1, 0, -x], [0, 1, -y]])
        frame = cv2.warpAffine(backdrop, view, (width, height), flags=cv2.INTER_LINEAR)
        for item in objects:
            item.paint(frame, number)
        top, left = rng.integers(0, 64, 2)
        noise = grain[top : top + height, left : left + width]
        yield cv2.add(frame, noise, dtype=cv2.CV_8U)


def _texture(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A picture with detail at every scale, and some hard edges, as a street or a room has."""
    tint = rng.uniform(40, 200, 3)
    picture = np.broadcast_to(tint, (height, width, 3)).astype(np.float32)
    cells = 4
    while cells < width // 2:
        noise = rng.normal(0, 26 * (4 / cells) ** 0.45, (max(2, cells * height // width), cells, 3))
        noise = 0.3 * noise + 0.7 * noise[..., :1]  # mostly luma, as in nature
        picture = picture + cv2.resize(
            noise.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC
        )
        cells *= 2
    for _ in range(24):
        left, top = rng.integers(0, width), rng.integers(0, height)
        right, bottom = (
            left + rng.integers(8, width // 5 + 9),
            top + rng.integers(8, height // 3 + 9),
        )
        picture[top:bottom, left:right] *= rng.uniform(0.55, 1.4)
    return picture.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True)
class _Object:
    """A textured patch that crosses the picture on its own path."""

    patch: np.ndarray
    start: np.ndarray
    step: np.ndarray

    @classmethod
    def random(cls, rng: np.random.Generator, width: int, height: int) -> "_Object":
        side = int(rng.uniform(0.1, 0.25) * height) + 4
        step = rng.uniform(-1, 1, 2) * width / 120
        return cls(_texture(rng, side, side), rng.uniform(0, 0.8, 2) * (width, height), step)

    def paint(self, frame: np.ndarray, number: int) -> None:
        left, top = (self.start + self.step * number).astype(int)
        height, width = frame.shape[:2]
        x0, y0 = max(left, 0), max(top, 0)
        x1, y1 = min(left + self.patch.shape[1], width), min(top + self.patch.shape[0], height)
        if x0 < x1 and y0 < y1:
            frame[y0:y1, x0:x1] = self.patch[y0 - top : y1 - top, x0 - left : x1 - left]


def _sound(seconds: float, seed: int) -> np.ndarray:
    """Stereo int16: tones that come and go over noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * _SOUND_RATE)) / _SOUND_RATE
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * 0.7 * time + rng.uniform(0, 6))
    tone = swell * np.sin(2 * np.pi * rng.uniform(180, 400) * time)
    both = 5000 * tone[:, None] + rng.normal(0, 700, (len(time), 2))
    return both.clip(-32768, 32767).astype(np.int16)


# Many files ---------------------------------------------------------------------------------------


CLIP = Footage(1280, 720, "h264", 5.0)
TINY = Footage(64, 64, "h264", 1.0)
MOTE = Footage(32, 32, "h264", 0.2, rate=5)
_ENCODES = 16
_FIRST_SEED = 100


def clip_folder(name: str, count: int, clip: Footage) -> Path:
    """A folder of `count` files, from 16 encodes at most, that differ in their bytes.

    Files with equal bytes are one video to us. A `free` box at the end with a number in it makes
    them different and changes nothing else.
    """

    def encode(index: int) -> bytes:
        made = Footage(clip.width, clip.height, clip.codec, clip.seconds, _FIRST_SEED + index)
        return footage(made).read_bytes()

    folder = CACHE / f"{name}-{count}"
    done = folder.with_name(folder.name + ".done")
    if not done.exists():
        folder.mkdir(parents=True, exist_ok=True)
        encodes = [encode(index) for index in range(min(_ENCODES, count))]
        for number in range(count):
            box = (16).to_bytes(4, "big") + b"free" + number.to_bytes(8, "big")
            (folder / f"clip_{number:05d}.mp4").write_bytes(encodes[number % len(encodes)] + box)
        done.touch()
    return folder


def long_video(seconds: float) -> Path:
    """A file that lasts, made fast: one group of pictures, with its sound, over and over."""
    unit = footage(Footage(64, 48, "h264", _UNIT_S, rate=5))
    return _cached(f"long-{seconds:g}s.mp4", lambda path: _repeat(unit, path, seconds))


_UNIT_S = 9.6  # 48 frames of video, 450 packets of sound: no remainder where copies meet


def _repeat(unit: Path, path: Path, seconds: float) -> None:
    with av.open(str(unit)) as source, av.open(str(path), "w") as target:
        streams = [target.add_stream_from_template(stream) for stream in source.streams]
        group = [_timed(packet) for packet in source.demux() if packet.dts is not None]
        group = [timed for timed in group if timed[1] >= 0]  # AAC's priming stays out
        for copy in range(round(seconds / _UNIT_S)):
            for packet, pts, dts in group:
                shift = round(copy * _UNIT_S / packet.time_base)
                repeated = av.Packet(bytes(packet))
                repeated.pts, repeated.dts = pts + shift, dts + shift
                repeated.duration, repeated.time_base = packet.duration, packet.time_base
                repeated.is_keyframe = packet.is_keyframe
                repeated.stream = streams[packet.stream.index]
                target.mux(repeated)


def _timed(packet: "Packet[Stream]") -> tuple["Packet[Stream]", int, int]:
    assert packet.pts is not None
    assert packet.dts is not None
    return packet, packet.pts, packet.dts

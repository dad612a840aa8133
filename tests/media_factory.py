"""Small videos for tests, and an independent reading of them to hold ours against.

The independent reading is what anyone would write first: decode the whole file with PyAV, keep
every frame, and apply the sampling rule as the documentation words it. It shares no code with
`spark_ray.media` but the writer.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from spark_ray.media.decode import DecodedClip, DecodeOptions, Span, decode_clips
from spark_ray.media.encode import write_video

NTSC = Fraction(30_000, 1001)
SIZE = (96, 64)


def pictures(
    count: int, size: tuple[int, int] = SIZE, *, cuts: Sequence[int] = (), seed: int = 0
) -> Iterator[np.ndarray]:
    """RGB frames, each unlike any other: a block moves over a texture that changes at each cut."""
    width, height = size
    rng = np.random.default_rng(seed)
    backdrop = _backdrop(rng, width, height)
    for number in range(count):
        if number in cuts:
            backdrop = _backdrop(rng, width, height)
        frame = np.roll(backdrop, number, axis=1)
        side = max(4, height // 3)
        left = number * 3 % max(1, width - side)
        top = number * 2 % max(1, height - side)
        frame[top : top + side, left : left + side] = (20 + number * 7 % 200, 200, 60)
        yield frame


def _backdrop(rng: np.random.Generator, width: int, height: int) -> np.ndarray:
    """A smooth texture around a random colour; the smoothness keeps encoders quick."""
    coarse = rng.integers(-30, 30, (4, 6, 3)) + rng.integers(40, 216, 3)
    return cv2.resize(np.clip(coarse, 0, 255).astype(np.uint8), (width, height))


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return np.round(9000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


X264 = {"preset": "veryfast", "mbtree": "0"}


def x264(**parameters: object) -> dict[str, str]:
    """Encoder options from x264's own parameter names, dashes as underscores."""
    text = ":".join(f"{name.replace('_', '-')}={value}" for name, value in parameters.items())
    return {**X264, "x264-params": text}


def uneven_times(count: int, mean_s: float = 1 / 25, seed: int = 0) -> list[float]:
    """Rising times in whole milliseconds, with a hole of half a second in the middle."""
    steps = np.random.default_rng(seed).uniform(0.4, 1.6, count) * mean_s
    steps[0], steps[count // 2] = 0.0, 0.5
    return [round(float(t), 3) for t in np.cumsum(steps)]


def _write(suffix: str, count: int = 50, rate: Any = 25, **settings: Any) -> Any:
    def make(folder: Path) -> Path:
        path = folder / f"video.{suffix}"
        write_video(path, pictures(count, cuts=(17, 31)), Fraction(rate), **settings)
        return path

    return make


B_PYRAMID = x264(keyint=12, min_keyint=12, bframes=3, b_pyramid="normal", scenecut=0)
OPEN_GOP = x264(keyint=12, min_keyint=4, bframes=3, b_pyramid="normal", open_gop=1)

FORMATS: dict[str, Callable[[Path], Path]] = {
    "h264 b-frames": _write("mp4", options=B_PYRAMID),
    "h264 open gop": _write("mp4", options=OPEN_GOP),
    "h264 long gop": _write("mkv", options=x264(keyint=250, bframes=2, scenecut=0)),
    "h264 intra only": _write("mov", options=x264(keyint=1)),
    "hevc": _write("mp4", codec="libx265", gop=10),
    "hevc mkv": _write("mkv", codec="libx265"),
    "vp9": _write("webm", codec="libvpx-vp9", gop=12),
    "av1": _write("mkv", codec="libsvtav1", gop=16),
    "mpeg4 avi": _write("avi", codec="mpeg4", gop=12),
    "mpeg4 avi b-frames": _write("avi", codec="mpeg4", gop=12, options={"bf": "2"}),
    "mpeg-ts": _write("ts", options=B_PYRAMID),
    "mpeg-ts open gop": _write("ts", options=OPEN_GOP),
    "variable rate mp4": _write("mp4", pts=uneven_times(50), gop=12),
    "variable rate mkv": _write("mkv", pts=uneven_times(50, seed=1), gop=12),
    "starts late": _write("mp4", pts=[0.48 + i / 25 for i in range(50)], gop=12),
    "starts late mkv": _write("mkv", pts=[7.3 + i / 25 for i in range(50)], gop=12),
    "ntsc": _write("mp4", rate=NTSC, options=B_PYRAMID),
    "ntsc mkv": _write("mkv", rate=NTSC, options=OPEN_GOP),
}


class MediaShelf:
    """Files of `FORMATS` by name, each made when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._made:
            folder = self._folder / name.replace(" ", "_")
            folder.mkdir()
            self._made[name] = FORMATS[name](folder)
        return self._made[name]


def clips_of(path: Path, span: Span | None = None, **settings: Any) -> list[DecodedClip]:
    """The clips of a file. Frames keep their size and all samples, unless settings say else."""
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        size = (max(8, video.width), max(8, video.height))
    plain = {"resolution": size, "smart_sampling": False, "scene_detection": False}
    options = DecodeOptions(**{**plain, **settings})
    with path.open("rb") as file:
        return list(decode_clips(file, span or Span(), options))


def clip_of(path: Path, span: Span | None = None, **settings: Any) -> DecodedClip:
    (clip,) = clips_of(path, span, **settings)
    return clip


@dataclass(frozen=True)
class PlainFrame:
    """A frame as a plain decode of the whole file sees it; time counts from the first frame."""

    time: float
    bgr: np.ndarray


def plain_decode(path: Path) -> list[PlainFrame]:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        stream = container.streams.video[0]
        rate = Fraction(stream.guessed_rate)
        if frames[0].pts is None:
            times = [float(i / rate) for i in range(len(frames))]
        else:
            first = frames[0].pts
            times = [float((f.pts - first) * Fraction(stream.time_base)) for f in frames]
        return [
            PlainFrame(time, frame.to_ndarray(format="bgr24"))
            for time, frame in zip(times, frames, strict=True)
        ]


def plain_choice(times: Sequence[float], fps: float, start_s: float = 0.0) -> list[int]:
    """The rule as it is documented: for each target the first frame at or after it, each once."""
    chosen: list[int] = []
    target = 0
    while True:
        wanted = start_s + target / fps
        index = next((i for i, time in enumerate(times) if time >= wanted - 1e-6), None)
        if index is None:
            return chosen
        if index not in chosen:
            chosen.append(index)
        target += 1


def jpeg(bgr: np.ndarray, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", bgr, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def picture(data: bytes) -> np.ndarray:
    """BGR pixels of a stored frame."""
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

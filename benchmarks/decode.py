"""User CPU of the one decode, over the naive programs and over decoding alone."""

import statistics
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import naive
from benchmarks.harness import Result, ratio_result, user_cpu_of
from benchmarks.material import Footage, footage
from spark_ray.media.decode import DecodedClip, DecodeOptions, Span, decode_clips

BARE = "decoding picture and sound alone (PyAV, one thread)"

_FULL = {
    "1080p-h264": Footage(1920, 1080, "h264", 10.0),
    "720p-h264": Footage(1280, 720, "h264", 10.0),
    "1080p-hevc": Footage(1920, 1080, "hevc", 6.0),
}
_QUICK = {"smoke-h264": Footage(160, 96, "h264", 6.0)}

Times = dict[str, list[float]]


def run(*, quick: bool = False, media: list[Path] | None = None) -> Iterator[Result]:
    """Results for each file: against the naive programs, bare decode, and of the cheaper ways."""
    cv2.setNumThreads(1)  # as every decode actor does
    made = {} if media else (_QUICK if quick else _FULL)
    files = {name: footage(clip) for name, clip in made.items()}
    files |= {path.stem: path for path in media or []}
    for name, path in files.items():
        yield from _results(name, path, repetitions=1 if quick else 5)


def _results(name: str, path: Path, repetitions: int) -> Iterator[Result]:
    with tempfile.TemporaryDirectory() as folder:
        times = _measure(_ways(path, Path(folder)), repetitions)
    steps = [times[step] for step in ("probe", "frames", "audio", "scenes")]
    programs = [sum(together) for together in zip(*steps, strict=True)]
    medians = {way: round(statistics.median(values), 4) for way, values in times.items()}
    equal_cuts = _our_cuts(path) == naive.scenes(path)

    yield ratio_result(
        f"decode-{name}-naive", naive.baseline_name(), 0.55, times["one pass"], programs,
        user_cpu_s=medians, scene_cuts=naive.scenes(path), cuts_equal_pyscenedetect=equal_cuts,
    )  # fmt: skip
    yield ratio_result(f"decode-{name}-bare", BARE, 1.25, times["one pass"], times["bare"])
    yield ratio_result(
        f"decode-{name}-frames-only", BARE, 0.60, times["frames only"], times["bare"],
        what="scene detection off, sound on",
        frames_identical_to_full_pass=_same_frames(path),
    )  # fmt: skip
    yield ratio_result(
        f"decode-{name}-fast", "the same pass with decode=exact", 0.75,
        times["fast"], times["one pass"],
        over_bare_decode=round(medians["fast"] / medians["bare"], 3),
        **_fast_errors(path),
    )  # fmt: skip


def _ways(path: Path, folder: Path) -> dict[str, Callable[[], object]]:
    return {
        "bare": partial(naive.decode_only, path),
        "one pass": partial(_decode, path),
        "probe": partial(naive.probe, path, folder / "probe.json"),
        "frames": partial(naive.frames, path, folder),
        "audio": partial(naive.audio, path, folder / "audio.wav"),
        "scenes": partial(naive.scenes, path),
        "frames only": partial(_decode, path, scene_detection=False),
        "fast": partial(_decode, path, decode="fast"),
    }


def _measure(ways: dict[str, Callable[[], object]], repetitions: int) -> Times:
    """User CPU of each way, in turns, so that what slows the machine slows them all."""
    times: Times = {way: [] for way in ways}
    for repetition in range(repetitions + 1):
        for way, work in ways.items():
            seconds = user_cpu_of(work)
            if repetition:  # the first round fills caches
                times[way].append(seconds)
    return times


def _decode(path: Path, **options: Any) -> list[DecodedClip]:
    with path.open("rb") as file:
        return list(decode_clips(file, Span(), DecodeOptions(**options)))


def _our_cuts(path: Path) -> list[int]:
    """Frame numbers at which our scenes begin, as PySceneDetect counts them."""
    clips = _decode(path)
    starts = [clip.start_s + scene.start_time for clip in clips for scene in clip.scenes[1:]]
    return [round(start * clips[0].info.fps) for start in starts]


def _same_frames(path: Path) -> bool:
    full, sparse = _decode(path), _decode(path, scene_detection=False)
    return [clip.frames for clip in full] == [clip.frames for clip in sparse]


def _fast_errors(path: Path) -> dict[str, Any]:
    """How far the frames of the fast mode are from the exact ones, in time and in pixels."""
    exact, fast = (_decode(path, decode=mode, smart_sampling=False) for mode in ("exact", "fast"))
    offsets, decibels = [], []
    for clip, quick in zip(exact, fast, strict=False):
        for a, b in zip(clip.samples, quick.samples, strict=False):
            offsets.append(abs(a.time - b.time))
        decibels += [_psnr(a, b) for a, b in zip(clip.frames, quick.frames, strict=False)]
    counts = [sum(len(clip.frames) for clip in clips) for clips in (exact, fast)]
    return {
        "frames_exact_and_fast": counts,
        "worst_time_offset_s": round(max(offsets), 4),
        "median_psnr_db": round(statistics.median(decibels), 1),
        "worst_psnr_db": round(min(decibels), 1),
    }


def _psnr(jpeg: bytes, other: bytes) -> float:
    """In decibels; 99 for equal pictures."""
    a, b = (
        np.asarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR))
        for data in (jpeg, other)
    )
    return 99.0 if np.array_equal(a, b) else float(cv2.PSNR(a, b))

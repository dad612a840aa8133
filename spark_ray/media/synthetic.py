"""Synthetic clips whose whole truth is known: what is seen, what is said, and where it is cut.

The world is described in `closed_world`: coloured shapes move before distractors, while a voice
says something else. Everything follows from a seed and an index: the same pair gives the same clip,
byte for byte on one machine, whatever else is written beside it and by however many workers.
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.core.schema import Record, Segment
from spark_ray.media.closed_world import ClipSpec, frame_times, sample_spec
from spark_ray.media.drawing import SceneSpec, draw_scene
from spark_ray.media.encode import AudioTrack, SubtitleTrack, Track, VideoTrack, write_tracks
from spark_ray.media.speech import speak

__all__ = [
    "ClipSpec",
    "SceneSpec",
    "Truth",
    "draw_clip",
    "frame_times",
    "sample_spec",
    "write_clip",
    "write_world",
]

LEAD_IN_S = 0.15


class Truth(Record):
    """What is known of a written clip; `path` and `sidecar` are relative to the world's folder."""

    path: str
    sidecar: str
    label: str
    caption: str
    narration: str | None
    cuts_s: list[float]
    duration_s: float
    width: int
    height: int
    rate: float
    variable_rate: bool
    frames: int
    codec: str
    container: str
    embedded_subtitles: bool


def draw_clip(spec: ClipSpec) -> Iterator[np.ndarray]:
    """The frames at `frame_times(spec)`: `[height, width, 3]` uint8 RGB each."""
    times = frame_times(spec)
    half_frame = 0.5 / float(spec.rate)
    for number, scene in enumerate(spec.scenes):
        # A cut turns the hue by 150 degrees and swaps dark for light, as no motion does. Hues stay
        # clear of red, where noise flips them from 0 to 360 and detectors see cuts that are none.
        turned = number % 2
        light = (spec.seed // 151 + number) % 2
        yield from draw_scene(
            scene,
            [t for t in times if scene.start_s - half_frame < t < scene.end_s - half_frame],
            width=spec.width,
            height=spec.height,
            seed=spec.seed + number,
            backdrop_hue=30 + spec.seed % 151 + 150 * turned,
            backdrop_level=112 if light else 76,
            distractors=spec.distractors,
            noise=spec.noise,
        )


def write_clip(spec: ClipSpec, path: str | Path) -> None:
    """Draw, speak and encode one clip; 0.1 s of CPU for a small one.

    Raises `ConfigError` where the narration is longer than the clip, and what `speak` and
    `write_tracks` raise.
    """
    times = frame_times(spec)
    tracks: list[Track] = [
        VideoTrack(
            frames=draw_clip(spec),
            rate=spec.rate,
            codec=spec.codec,
            pts=times if spec.variable_rate else None,
        )
    ]
    if spec.narration is not None:
        pcm, sample_rate = _soundtrack(spec, spec.narration)
        tracks.append(AudioTrack(pcm=pcm, sample_rate=sample_rate, language="eng"))
        if spec.embedded_subtitles:
            cue = Segment(start=LEAD_IN_S, end=spec.duration_s, text=spec.narration)
            tracks.append(SubtitleTrack(cues=[cue], language="eng"))
    write_tracks(path, tracks)


def _soundtrack(spec: ClipSpec, narration: str) -> tuple[np.ndarray, int]:
    """The narration after a short silence, filled up to the clip's duration."""
    speech, sample_rate = speak(
        narration, voice=spec.voice, rate_wpm=spec.speech_rate_wpm, pitch=spec.pitch
    )
    pcm = np.zeros(round(spec.duration_s * sample_rate), np.int16)
    start = round(LEAD_IN_S * sample_rate)
    if start + len(speech) > len(pcm):
        raise ConfigError(
            f"narration: {narration!r} takes {len(speech) / sample_rate:.2f} s and does not fit "
            f"into a clip of {spec.duration_s:.2f} s"
        )
    pcm[start : start + len(speech)] = speech
    return pcm, sample_rate


def write_world(
    folder: str | Path,
    count: int,
    seed: int = 0,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> list[Truth]:
    """Write `count` clips and what is true of them; returns the truth in clip order.

    `folder/clips/<colour>/clip_0001.mp4` has a caption beside it (`.txt`, sometimes `.json`,
    `.caption.srt` or `.caption.vtt`) and `folder/truth.jsonl`, written last, one line a clip.
    `workers` above 1 share the work among processes. `progress(done, count)` is called after each
    clip. Writing the same world again changes nothing. Raises `ConfigError` for a count or workers
    below 1 and `StorageError` where `clips` holds files of another world.
    """
    for setting, value in (("count", count), ("workers", workers)):
        if value < 1:
            raise ConfigError(f"{setting}: {value} is too few; it must be 1 or more")
    folder = Path(folder)
    known = _already_written(folder, count, seed)
    if known is not None:
        return known
    _refuse_strangers(folder, {name for i in range(count) for name in _names(seed, i)})

    world = []
    for done, truth in enumerate(_written(partial(_write_one, folder, seed), count, workers), 1):
        world.append(truth)
        if progress:
            progress(done, count)
    unfinished = folder / "truth.jsonl.partial"
    unfinished.write_text("".join(f"{truth.model_dump_json()}\n" for truth in world))
    unfinished.replace(folder / "truth.jsonl")
    return world


def _already_written(folder: Path, count: int, seed: int) -> list[Truth] | None:
    file = folder / "truth.jsonl"
    if not file.exists():
        return None
    truths = [Truth.model_validate_json(line) for line in file.read_text().splitlines()]
    specs = [sample_spec(seed, index) for index in range(count)]
    same = [truth.caption for truth in truths] == [spec.caption for spec in specs]
    return truths if same and all((folder / truth.path).exists() for truth in truths) else None


def _written(write: Callable[[int], Truth], count: int, workers: int) -> Iterator[Truth]:
    if workers == 1:
        yield from map(write, range(count))
        return
    # A forked child would inherit the locks of whatever threads the caller runs.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool:
        yield from pool.map(write, range(count), chunksize=4)


def _write_one(folder: Path, seed: int, index: int) -> Truth:
    spec = sample_spec(seed, index)
    path, sidecar = _names(seed, index)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    write_clip(spec, folder / path)
    (folder / sidecar).write_text(_sidecar_text(spec))
    return Truth(
        path=path,
        sidecar=sidecar,
        label=spec.label,
        caption=spec.caption,
        narration=spec.narration,
        cuts_s=spec.cuts_s,
        duration_s=spec.duration_s,
        width=spec.width,
        height=spec.height,
        rate=float(spec.rate),
        variable_rate=spec.variable_rate,
        frames=len(frame_times(spec)),
        codec=spec.codec,
        container=spec.container,
        embedded_subtitles=spec.embedded_subtitles,
    )


def _names(seed: int, index: int) -> tuple[str, str]:
    """The clip's file and its sidecar, relative to the world's folder."""
    spec = sample_spec(seed, index)
    stem = f"clips/{spec.label}/clip_{index + 1:04d}"
    return f"{stem}.{spec.container}", f"{stem}.{spec.sidecar}"


def _refuse_strangers(folder: Path, ours: set[str]) -> None:
    clips = folder / "clips"
    present = sorted(p.relative_to(folder).as_posix() for p in clips.rglob("*") if p.is_file())
    stranger = next((name for name in present if name not in ours), None)
    if stranger is not None:
        raise StorageError(
            f"{clips}: holds {stranger}, which is not of this world; choose an empty folder, or "
            "the same count and seed as before"
        )


def _sidecar_text(spec: ClipSpec) -> str:
    """The caption in the form that the sidecar's suffix promises; timed ones have a cue a scene."""
    if spec.sidecar == "txt":
        return f"{spec.caption}\n"
    if spec.sidecar == "json":
        return json.dumps({"caption": spec.caption}) + "\n"
    is_vtt = spec.sidecar == "caption.vtt"
    point = "." if is_vtt else ","
    cues = [
        f"{_clock(scene.start_s, point)} --> {_clock(scene.end_s, point)}\n{phrase}\n"
        for scene, phrase in zip(spec.scenes, spec.phrases, strict=True)
    ]
    if is_vtt:
        return "\n".join(["WEBVTT\n", *cues])
    return "\n".join(f"{number}\n{cue}" for number, cue in enumerate(cues, 1))


def _clock(seconds: float, point: str) -> str:
    return f"00:{int(seconds // 60):02d}:{seconds % 60:06.3f}".replace(".", point)

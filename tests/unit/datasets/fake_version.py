"""A published version written by hand, without a build, with real JPEGs and any names."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from spark_ray.core.schema import (
    Caption,
    Clip,
    FrameSample,
    Reject,
    Scene,
    Segment,
    Step,
    Transcript,
    VideoInfo,
    clip_id,
)
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import (
    MANIFEST,
    METADATA,
    REJECTS,
    clip_provenance,
    frame_name,
    manifest_line,
    reject_line,
)
from spark_ray.datasets.ledger import dump_json
from spark_ray.datasets.plan import SourceRecord
from spark_ray.datasets.statistics import ClipStatistics, FilteredOut, survivor_funnel

HOSTILE = "a \"b\" <script>alert(1)</script> & 'c'\nline\u202egnp.mp4"


def jpeg(shade: int = 128, size: int = 224) -> bytes:
    image = np.random.default_rng(shade).integers(0, 256, (size // 8, size // 8, 3), np.uint8)
    encoded, data = cv2.imencode(".jpg", cv2.resize(image, (size, size)))
    assert encoded
    return data.tobytes()


def make_clip(
    number: int,
    *,
    source: str = "/films/one.mp4",
    caption: str | None = "a red square moves left",
    frames: int = 2,
    dropped: tuple[str, ...] = ("motion", "duplicate"),
) -> Clip:
    digest = hashlib.sha256(f"{source} {number}".encode()).hexdigest()
    times = [0.5 * i for i in range(frames + len(dropped))]
    return Clip(
        clip_id=clip_id(digest[:16], 0.0, 6.0),
        video_id=digest[:16],
        unit_id=digest[:16],
        source_path=source,
        source_hash=digest,
        end_s=6.0,
        label="films",
        video=VideoInfo(
            duration=6.0, width=320, height=240, fps=25.0, codec="h264", audio_codec="aac"
        ),
        samples=[
            FrameSample(time=time, motion=i / 10 if i else None, dropped_by=rule)
            for i, (time, rule) in enumerate(
                zip(times, [*[None] * frames, *dropped], strict=True)  # type: ignore[list-item]
            )
        ],
        frames=[jpeg(number + i) for i in range(frames)],
        scenes=[Scene(start_time=0.0, end_time=2.5), Scene(start_time=2.5, end_time=6.0)],
        caption=Caption(text=caption, all_captions=[caption]) if caption else None,
        transcript=Transcript(
            text="it moves", language="en", segments=[Segment(start=0.0, end=1.0, text="it moves")]
        ),
        steps=[Step(name="decode", duration_s=0.25)],
    )


def write_version(
    root: Path,
    clips: list[Clip],
    *,
    rejects: tuple[Clip, ...] = (),
    filtered: tuple[float, ...] = (),
    duplicates: tuple[str, ...] = (),
    name: str = "v1",
    **settings: Any,
) -> tuple[Folder, dict[str, Any]]:
    """Write a version as a build leaves it just before the report, with metadata as well."""
    config = BuildConfig.from_values(input=["/films"], output=str(root), **settings)
    version = Folder(str(root / name))
    statistics, counted = ClipStatistics(), Counter[tuple[str, str]]()
    lines = []
    for clip in sorted(clips, key=lambda clip: clip.clip_id):
        line = manifest_line(clip, "flac", clip_provenance(clip, "test", full=True))
        statistics.add(line)
        for index, data in enumerate(clip.frames):
            version.write(frame_name(clip.clip_id, index + 1), data)
        if config.format == "parquet":
            line["frames_dir"] = line["audio"] = None
        lines.append(line)
    for clip in rejects:
        assert clip.reject is not None
        counted[clip.reject.stage, clip.reject.error] += 1
    turned_away = {"min_clip_s": FilteredOut(2.0)} if filtered else {}
    for value in filtered:
        turned_away["min_clip_s"].add("/films/short.mp4", value)
    records = [SourceRecord(location=clip.source_path, verdict="video") for clip in clips]
    records += [
        SourceRecord(location=name, verdict="duplicate", duplicate_of="/films/one.mp4")
        for name in duplicates
    ]
    metadata = {
        "name": root.name,
        "version": name,
        "parent": None,
        "created": "2026-01-02T03:04:05+00:00",
        "started": "2026-01-02T03:00:00+00:00",
        "format": config.format,
        "manifest_sha256": "0" * 64,
        "fingerprint": config.fingerprint(),
        "config": config.content_settings(),
        "pipeline_version": "0.1.0",
        "code_version": "test",
        "git_commit": None,
        "environment": {"python": "3.11", "ffmpeg": {"libavcodec": "62"}},
        "statistics": statistics.as_dict(),
        "funnel": survivor_funnel(records, statistics, counted, turned_away, config),
        "files": {"manifest": MANIFEST, "rejects": REJECTS, "report": "report.html"},
    }
    version.write(MANIFEST, _json_lines(lines))
    version.write(REJECTS, _json_lines([reject_line(clip) for clip in rejects]))
    version.write(METADATA, dump_json(metadata))
    return version, metadata


def make_reject(name: str, message: str, stage: str = "decode") -> Clip:
    return Clip(
        clip_id=name,
        video_id=None,
        unit_id=name,
        source_path=name,
        status="rejected",
        reject=Reject(stage=stage, error="CorruptMedia", message=message),
    )


def _json_lines(lines: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(line) + "\n" for line in lines).encode()

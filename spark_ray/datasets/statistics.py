"""What a dataset holds, counted while its lines pass by once."""

from __future__ import annotations  # `array[float]` is for type checkers alone

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import has_audio
from spark_ray.datasets.plan import SourceRecord

_BINS = 20
_EXAMPLES = 12


def histogram(values: Sequence[float], low: float | None = None, high: float | None = None) -> Any:
    """`{"counts": [...], "edges": [...]}`: 20 bins, or one a number for few whole numbers.

    None for no values. The range is `[low, high]`, or that of the values.
    """
    if not len(values):
        return None
    numbers = np.asarray(values, np.float32)
    least = float(numbers.min()) if low is None else low
    most = float(numbers.max()) if high is None else high
    if high is None and most - least < _BINS and np.all(numbers == np.round(numbers)):
        whole = np.arange(math.floor(least), math.floor(most) + 2) - 0.5
        counts, edges = np.histogram(numbers, whole)
    else:
        counts, edges = np.histogram(numbers, _BINS, (least, most))
    return {"counts": counts.tolist(), "edges": [round(float(edge), 6) for edge in edges]}


@dataclass
class ClipStatistics:
    """Statistics of published clips; feed it manifest lines with `add`."""

    clips: int = 0
    frames: int = 0
    num_bytes: int = 0
    duration_s: float = 0.0
    with_audio: int = 0
    captioned: int = 0
    transcribed: int = 0
    words: int = 0
    scenes: int = 0
    decode_errors: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    languages: Counter[str] = field(default_factory=Counter)
    codecs: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    step_s: Counter[str] = field(default_factory=Counter)
    _videos: set[str] = field(default_factory=set)
    _values: defaultdict[str, array[float]] = field(
        default_factory=lambda: defaultdict(lambda: array("f"))
    )

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one manifest line.

        Raises:
            KeyError, TypeError: it is no manifest line.
        """
        meta = line["meta"]
        info = meta["video_info"]
        self.clips += 1
        self.frames += meta["num_frames"]
        self.num_bytes += meta.get("num_bytes", 0)
        self.duration_s += meta["duration"]
        self.with_audio += has_audio(line)
        self.captioned += bool(meta["caption"])
        self.transcribed += bool(meta["transcript"])
        self.words += len((meta["transcript"] or "").split())
        self.scenes += len(meta["scenes"])
        self.decode_errors += info.get("decode_errors", 0)
        self.dropped.update(sample["dropped_by"] for sample in meta.get("dropped_frames", ()))
        self.codecs[info["codec"]] += 1
        self.sizes[f"{info['width']}×{info['height']}"] += 1
        self._videos.add(meta.get("video_id") or meta["source_path"])
        for counter, name in ((self.labels, "label"), (self.languages, "language")):
            if meta.get(name):
                counter[meta[name]] += 1
        self._add_lineage(meta["provenance"])
        self._add_values(meta)

    def _add_lineage(self, provenance: Mapping[str, Any]) -> None:
        for step in provenance.get("lineage", {}).get("processing_steps", ()):
            self.step_s[step["name"]] += step["duration_s"]
            if step.get("model"):
                model = step["model"]
                self.models["@".join(filter(None, (model["name"], model["revision"])))] += 1

    def _add_values(self, meta: Mapping[str, Any]) -> None:
        moved = [*meta.get("frame_motion", ())[1:]]  # the first frame has moved from nowhere
        moved += [sample["motion"] for sample in meta.get("dropped_frames", ())]
        values = {
            "duration_s": [meta["duration"]],
            "frames": [meta["num_frames"]],
            "scenes": [len(meta["scenes"])],
            "caption_words": [len(meta["caption"].split())] if meta["caption"] else [],
            "transcript_words": [len(meta["transcript"].split())] if meta["transcript"] else [],
            "motion": [motion for motion in moved if motion is not None],
        }
        for name, new in values.items():
            self._values[name].extend(new)

    def as_dict(self) -> dict[str, Any]:
        return {
            "clips": self.clips,
            "videos": len(self._videos),
            "hours": round(self.duration_s / 3600, 6),
            "frames": self.frames,
            "scenes": self.scenes,
            "bytes": self.num_bytes,
            "with_audio": self.with_audio,
            "captioned": self.captioned,
            "transcribed": self.transcribed,
            "transcript_words": self.words,
            "decode_errors": self.decode_errors,
            "labels": dict(sorted(self.labels.items())),
            "languages": dict(sorted(self.languages.items())),
            "codecs": dict(sorted(self.codecs.items())),
            "sizes": dict(sorted(self.sizes.items())),
            "models": dict(sorted(self.models.items())),
            "step_seconds": {name: round(s, 3) for name, s in sorted(self.step_s.items())},
            "histograms": {
                name: histogram(values, *((0.0, 1.0) if name == "motion" else ()))
                for name, values in sorted(self._values.items())
            },
        }


@dataclass
class FilteredOut:
    """What one filter turned away: how many, the values that it saw, and some examples."""

    limit: float
    values: array[float] = field(default_factory=lambda: array("f"))
    examples: list[dict[str, Any]] = field(default_factory=list)

    def add(self, source_path: str, value: float) -> None:
        self.values.append(value)
        if len(self.examples) < _EXAMPLES:
            self.examples.append({"source_path": source_path, "value": round(value, 6)})

    def as_dict(self) -> dict[str, Any]:
        return {
            "dropped": len(self.values),
            "limit": self.limit,
            "histogram": histogram(self.values),
            "examples": self.examples,
        }


def survivor_funnel(
    records: Iterable[SourceRecord],
    clips: ClipStatistics,
    rejects: Counter[tuple[str, str]],
    filtered: Mapping[str, FilteredOut],
    config: BuildConfig,
) -> dict[str, Any]:
    """What every filter kept and dropped, from files found to frames stored."""
    verdicts: Counter[str] = Counter()
    duplicates: list[dict[str, Any]] = []
    by_filter = dict(filtered)
    for record in records:
        verdicts[record.verdict] += 1
        if record.verdict == "duplicate" and len(duplicates) < _EXAMPLES:
            duplicates.append({"source_path": record.location, "same_as": record.duplicate_of})
        if record.filtered is not None:
            entry = by_filter.setdefault(record.filtered.name, FilteredOut(record.filtered.limit))
            entry.add(record.location, record.filtered.value)
    clip_filters = sum(len(entry.values) for entry in filtered.values())
    clip_rejects = sum(n for (stage, _), n in rejects.items() if stage != "ingest")
    sampled = clips.frames + sum(clips.dropped.values())
    return {
        "files": {
            "found": verdicts.total(),
            "no_video": verdicts["ignored"],
            "rejected": verdicts["rejected"],
            "duplicate": verdicts["duplicate"],
            "filtered": verdicts["filtered"],
            "kept": verdicts["video"],
        },
        "clips": {
            "found": clips.clips + clip_filters + clip_rejects,
            "rejected": clip_rejects,
            "filtered": clip_filters,
            "kept": clips.clips,
        },
        "frames": {
            "found": sampled,
            "motion": clips.dropped["motion"],
            "duplicate": clips.dropped["duplicate"],
            "kept": clips.frames,
        },
        "filters": {name: entry.as_dict() for name, entry in sorted(by_filter.items())},
        "thresholds": {
            "motion": config.motion_threshold if config.smart_sampling else None,
            "hash_distance": config.hash_distance if config.perceptual_hashing else None,
        },
        "rejects": [
            {"stage": stage, "error": error, "count": count}
            for (stage, error), count in sorted(rejects.items())
        ],
        "duplicates": duplicates,
    }

"""The survivor funnel in words: what each level kept, what it lost, and by which rule."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from spark_ray.datasets.display import value_text

# Of the filters, these look at whole files; the others at clips.
FILE_FILTERS = ("min_duration_s", "max_duration_s")
_RULES = {
    ("files", "rejected"): "rejected: could not be read",
    ("files", "duplicate"): "same bytes as another file",
    ("clips", "rejected"): "rejected: a step failed",
    ("frames", "motion"): "too little motion",
    ("frames", "duplicate"): "looks like a frame that was kept",
}


@dataclass(frozen=True)
class Loss:
    """How many one rule turned away. `kind` is a short word for the rule, for colours."""

    kind: str
    rule: str
    count: int


@dataclass(frozen=True)
class Level:
    """One level of the funnel: files, clips or frames. `beside` tells of what was never counted."""

    unit: str
    found: int
    kept: int
    losses: tuple[Loss, ...]
    beside: str = ""


def funnel_levels(funnel: Mapping[str, Any]) -> list[Level]:
    """Files, clips and frames of a funnel, as `statistics.survivor_funnel` made it."""
    return [_level(unit, funnel) for unit in ("files", "clips", "frames")]


def _level(unit: str, funnel: Mapping[str, Any]) -> Level:
    counts = funnel[unit]
    others = counts.get("no_video", 0)
    return Level(
        unit=unit,
        found=counts["found"] - others,
        kept=counts["kept"],
        losses=tuple(loss for loss in _losses(unit, funnel) if loss.count),
        beside=f"besides {others:,} that held no video" if others else "",
    )


def _losses(unit: str, funnel: Mapping[str, Any]) -> list[Loss]:
    losses = []
    for kind, count in funnel[unit].items():
        if kind in ("found", "kept", "no_video"):
            continue
        if kind == "filtered":
            losses += _filter_losses(unit, funnel)
        else:
            rule = _RULES.get((unit, kind), kind.replace("_", " "))
            losses.append(Loss(kind, rule + _threshold(unit, kind, funnel), count))
    return losses


def _filter_losses(unit: str, funnel: Mapping[str, Any]) -> list[Loss]:
    return [
        Loss("filtered", f"filter {name} = {value_text(entry['limit'])}", entry["dropped"])
        for name, entry in funnel["filters"].items()
        if (name in FILE_FILTERS) == (unit == "files")
    ]


def _threshold(unit: str, kind: str, funnel: Mapping[str, Any]) -> str:
    thresholds = funnel["thresholds"]
    if (unit, kind) == ("frames", "motion") and thresholds["motion"] is not None:
        return f": below {thresholds['motion']:g}"
    if (unit, kind) == ("frames", "duplicate") and thresholds["hash_distance"] is not None:
        return f": hash distance {thresholds['hash_distance']} or less"
    return ""

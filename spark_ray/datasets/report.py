"""The report that people look at: one HTML file that needs nothing beside itself.

It loads nothing, also not by accident: its content policy allows pictures and styles that are in
the file, and one script, the filter box's, by its hash. Without scripts everything can be read.
"""

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from spark_ray.core.storage import Folder
from spark_ray.datasets.contact_sheet import dropped_text, sample_clips
from spark_ray.datasets.display import (
    TEXT_LAYOUT,
    bytes_text,
    percent_text,
    seconds_text,
    split_odd,
    value_text,
    visible,
)
from spark_ray.datasets.funnel import funnel_levels
from spark_ray.datasets.layout import REJECTS, REPORT
from spark_ray.datasets.plots import histogram_svg
from spark_ray.datasets.settings import explain_settings

_TABLE_ROWS = 20
_REJECT_EXAMPLES = 3
_COMPOSITION = ("labels", "languages", "codecs", "sizes", "models")
_HISTOGRAMS = {
    "motion": ("motion", "share of the picture that changed, of each sampled frame"),
    "duration_s": ("length", "seconds of a clip"),
    "frames": ("frames", "kept of a clip"),
    "scenes": ("scenes", "in a clip"),
    "caption_words": ("caption length", "words"),
    "transcript_words": ("transcript length", "words"),
}
_WHOLE_NUMBERS = ("frames", "scenes", "caption_words", "transcript_words")


def write_report(version: Folder, metadata: dict[str, Any]) -> None:
    """Write `report.html` of a version whose manifest, rejects and frames are in place.

    Memory does not grow with the dataset: clips are a sample, rejects a few examples of each kind.

    Raises:
        StorageError: a file of the version can't be read, or the report not be written.
    """
    clips = sample_clips(version, metadata["statistics"]["clips"])
    page = (
        report_environment()
        .get_template("report.html.j2")
        .render(
            metadata=metadata,
            statistics=metadata["statistics"],
            levels=funnel_levels(metadata["funnel"]),
            rejects=_rejects(version, metadata["funnel"]["rejects"]),
            duplicates=metadata["funnel"]["duplicates"],
            plots=_plots(metadata),
            filters=metadata["funnel"]["filters"],
            tables={name: _top(metadata["statistics"][name]) for name in _COMPOSITION},
            steps=_top(metadata["statistics"]["step_seconds"]),
            settings=explain_settings(metadata["config"]),
            clips=clips,
        )
    )
    # Halves of surrogate pairs, which JSON may hold, are no text that UTF-8 could carry.
    version.write(REPORT, page.encode("utf-8", "backslashreplace"))


def report_environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spark_ray.datasets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "name": _name,
        "prose": lambda text: _name(text, TEXT_LAYOUT),
        "plain": visible,
        "count": lambda number: f"{number:,}",
        "bytes": bytes_text,
        "seconds": seconds_text,
        "value": value_text,
        "dropped": dropped_text,
        "csp_hash": _csp_hash,
        "bar_part": lambda loss: (loss.kind, loss.count),
        "rules": lambda dropped: Counter(frame["dropped_by"] for frame in dropped),
    }
    environment.globals |= {"percent": percent_text}
    return environment


def _name(text: str, keep: str = "") -> Markup:
    """A name as HTML, with its odd characters as escapes that look different from the rest."""
    odd = Markup('<span class="odd">{}</span>')
    return Markup("").join(
        odd.format(piece) if is_odd else Markup.escape(piece)
        for piece, is_odd in split_odd(text, keep)
    )


def _csp_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _rejects(version: Folder, counts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Kinds of reject, the most frequent first, each with its first few lines."""
    examples: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for data in version.lines(REJECTS):
        line = json.loads(data)
        of_kind = examples.setdefault((line["stage"], line["error"]), [])
        if len(of_kind) < _REJECT_EXAMPLES:
            of_kind.append(line)
    return [
        {**kind, "examples": examples.get((kind["stage"], kind["error"]), [])}
        for kind in sorted(counts, key=lambda kind: -kind["count"])
    ]


def _plots(metadata: Mapping[str, Any]) -> list[dict[str, str]]:
    """Histograms with a title and a note, those of filters first."""
    plots = []
    for name, entry in metadata["funnel"]["filters"].items():
        if entry["histogram"] is not None:
            svg = histogram_svg(f"filter-{name}", entry["histogram"], entry["limit"], lost="all")
            note = f"what the filter turned away; its limit is {value_text(entry['limit'])}"
            plots.append({"title": name, "note": note, "svg": svg})
    threshold = metadata["funnel"]["thresholds"]["motion"]
    histograms = metadata["statistics"]["histograms"]
    for name in sorted(histograms, key=[*_HISTOGRAMS, *histograms].index):
        if histograms[name] is None:
            continue
        title, note = _HISTOGRAMS.get(name, (name.replace("_", " "), ""))
        line = threshold if name == "motion" else None
        if line is not None:
            note += f"; below {line:g} a frame is dropped"
        svg = histogram_svg(
            name, histograms[name], line, lost="below", whole=name in _WHOLE_NUMBERS
        )
        plots.append({"title": title, "note": note, "svg": svg})
    return plots


def _top(counts: Mapping[str, float]) -> dict[str, Any]:
    """The largest entries of a table, and what the others come to."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = ordered[_TABLE_ROWS:]
    return {
        "rows": ordered[:_TABLE_ROWS],
        "most": max(counts.values(), default=0),
        "more": len(rest),
        "more_count": sum(count for _, count in rest),
    }

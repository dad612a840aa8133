"""Datasets on the terminal: what `spark-ray data inspect` and `spark-ray data stats` print."""

import io
import json
import shutil
import sys
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from spark_ray.core.errors import DatasetError
from spark_ray.core.storage import Folder
from spark_ray.core.wording import counted
from spark_ray.datasets.contact_sheet import dropped_text
from spark_ray.datasets.display import (
    TEXT_LAYOUT,
    bytes_text,
    percent_text,
    seconds_text,
    value_text,
    visible,
)
from spark_ray.datasets.funnel import funnel_levels
from spark_ray.datasets.layout import (
    MANIFEST,
    REPORT,
    frame_name,
    is_published,
    is_unfinished,
    resolve_published,
)
from spark_ray.datasets.reading import BrokenLines, load_metadata, manifest_of, read_manifest
from spark_ray.datasets.settings import explain_settings
from spark_ray.datasets.statistics import ClipStatistics

_FIRST_CLIPS = 8
_TOP = 8
_LIST = 40
_CELL = 60
_PIPE_WIDTH = 120
_BLOCKS = "▁▂▃▄▅▆▇█"
_COUNTERS = ("labels", "languages", "codecs", "sizes", "models")


def inspect_dataset(reference: str, clip_id: str | None = None) -> str:
    """A dataset at a glance, or one of its clips in full, as text for the terminal.

    Args:
        reference: a dataset's folder, with `@version` for another than the newest.
        clip_id: a clip's id, or as much of its beginning as no other clip has.

    Raises:
        DatasetError: there is no such dataset, or no such clip in it.
    """
    version = resolve_published(reference)
    if clip_id is not None:
        return _as_text(_clip_view(version, _find_clip(version, clip_id)))
    metadata = load_metadata(version)
    broken = BrokenLines()
    clips = list(islice(read_manifest(version, broken), _FIRST_CLIPS))
    views = [
        _summary(metadata),
        _section("Versions", _versions(version)),
        _section("Funnel", _funnel(metadata["funnel"])),
        _section("Rejects", _rejects(metadata["funnel"]["rejects"])),
        _section("Contents", _counters(metadata["statistics"])),
        _section("Settings", _settings(metadata["config"])),
        _section("First clips", _clip_table(clips)),
        _broken_view(broken),
        _hints(version),
    ]
    return _as_text(*views)


def dataset_stats(reference: str, *, as_json: bool = False) -> str:
    """Statistics of a manifest, counted anew in one pass, as text for the terminal or as JSON.

    Lines that are empty or broken are counted and the first few named with what is wrong.

    Args:
        reference: a published dataset, or a manifest file by itself.
        as_json: give `{"manifest", "statistics", "broken_lines"}` as JSON.

    Raises:
        DatasetError: there is no such dataset, or the file is no manifest.
        StorageError: the manifest can't be read at all.
    """
    folder, name = manifest_of(reference)
    broken, counted = BrokenLines(), ClipStatistics()
    for line in read_manifest(folder, broken, name):
        counted.add(line)
    if not counted.clips and (broken.count or name != MANIFEST):
        raise DatasetError(
            f"{visible(folder / name)}: it is no manifest, as {_why_none(broken)}; name a dataset, "
            f"or its {MANIFEST}"
        )
    statistics = counted.as_dict()
    if as_json:
        result = {
            "manifest": folder / name,
            "statistics": statistics,
            "broken_lines": broken.as_dict(),
        }
        return json.dumps(result, indent=2)
    return _as_text(
        _fact_table(_counts(statistics), title=visible(folder / name)),
        _section("Contents", _counters(statistics)),
        _section("Distributions", _distributions(statistics["histograms"])),
        _broken_view(broken),
    )


def _why_none(broken: BrokenLines) -> str:
    if not broken.count:
        return "it is empty"
    first = broken.examples[0]
    return f"no line of it is that of a clip (line {first.number}: {visible(first.problem)})"


def _find_clip(version: Folder, clip_id: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    for line in read_manifest(version, BrokenLines()):
        if line["id"] == clip_id:
            return line
        if line["id"].startswith(clip_id) and len(found) <= _FIRST_CLIPS:
            found.append(line)
    if len(found) == 1:
        return found[0]
    if found:
        ids = ", ".join(line["id"] for line in found[:_FIRST_CLIPS])
        raise DatasetError(f"--clip {clip_id}: several clips begin so: {ids}; give more of the id")
    raise DatasetError(
        f"--clip {clip_id}: {version.location} has no clip of this id; ids are the 'id' in its "
        f"{MANIFEST}"
    )


def _summary(metadata: Mapping[str, Any]) -> RenderableType:
    title = f"{metadata['name']}@{metadata['version']}"
    facts = {"published": metadata["created"], "format": metadata["format"]}
    if metadata.get("parent"):
        facts["made from"] = value_text(metadata["parent"])
    return _fact_table(facts | _counts(metadata["statistics"]), title=title)


def _counts(statistics: Mapping[str, Any]) -> dict[str, str]:
    clips = statistics["clips"]
    return {
        "clips": f"{clips:,} from {counted(statistics['videos'], 'video')}",
        "length": seconds_text(statistics["hours"] * 3600),
        "frames": f"{statistics['frames']:,}",
        "scenes": f"{statistics['scenes']:,}",
        "size": bytes_text(statistics["bytes"]),
        "with sound": _share(statistics["with_audio"], clips),
        "captioned": _share(statistics["captioned"], clips),
        "transcribed": _share(statistics["transcribed"], clips),
    }


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({percent_text(part, whole)})"


def _versions(version: Folder) -> Table:
    """Every version beside this one; one that can't be read says so in its own row."""
    parent, _, current = version.location.rstrip("/").rpartition("/")
    dataset = Folder(parent or ".")
    table = _table("version", "clips", "frames", "length", "published")
    for name in dataset.children():
        folder = dataset.sub(name)
        shown = _name(f"{name} *" if name == current else name)
        if is_published(folder):
            try:
                metadata = load_metadata(folder)
            except DatasetError:
                table.add_row(shown, "metadata.json is damaged")
                continue
            counts = _counts(metadata["statistics"])
            row = (counts["clips"], counts["frames"], counts["length"], metadata["created"])
            table.add_row(shown, *map(_name, row))
        elif is_unfinished(folder):
            table.add_row(shown, "not finished")
    return table


def _funnel(funnel: Mapping[str, Any]) -> Table:
    table = _table("", "", "", "", numbers=(1, 2))
    for level in funnel_levels(funnel):
        of_found = f"kept of {level.found:,}{', ' if level.beside else ''}{level.beside}"
        table.add_row(
            Text(level.unit, "bold"),
            Text(f"{level.kept:,}", "bold"),
            percent_text(level.kept, level.found),
            of_found,
        )
        for loss in level.losses:
            table.add_row(
                "", f"−{loss.count:,}", percent_text(loss.count, level.found), _name(loss.rule)
            )
    return table


def _rejects(counts: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("step", "error", "count", numbers=(2,))
    for kind in sorted(counts, key=lambda kind: -kind["count"]):
        table.add_row(_name(kind["stage"]), _name(kind["error"]), f"{kind['count']:,}")
    return table


def _counters(statistics: Mapping[str, Any]) -> Table:
    table = _table("", "")
    for name in _COUNTERS:
        counts = sorted(statistics[name].items(), key=lambda item: (-item[1], item[0]))
        if counts:
            shown = ", ".join(f"{key} {count:,}" for key, count in counts[:_TOP])
            more = f", and {len(counts) - _TOP} more" if len(counts) > _TOP else ""
            table.add_row(name, _name(shown + more))
    if statistics["step_seconds"]:
        steps = sorted(statistics["step_seconds"].items(), key=lambda item: -item[1])
        table.add_row("time", _name(", ".join(f"{step} {seconds_text(s)}" for step, s in steps)))
    return table


def _distributions(histograms: Mapping[str, Any]) -> Table:
    table = _table("", "from", "", "to", numbers=(1,))
    for name, histogram in histograms.items():
        if histogram is not None:
            low, high = histogram["edges"][0], histogram["edges"][-1]
            table.add_row(name, f"{low:g}", _sparkline(histogram["counts"]), f"{high:g}")
    return table


def _sparkline(counts: list[int]) -> str:
    """A bar of eighths for each count; only a count of 0 is blank."""
    most = max(counts)
    return "".join(
        _BLOCKS[(count * len(_BLOCKS) - 1) // most] if count else " " for count in counts
    )


def _settings(config: Mapping[str, Any]) -> Table:
    settings = explain_settings(config)
    changed = [setting for setting in settings if setting.changed]
    table = _table("", "")
    for setting in changed:
        table.add_row(_name(setting.name), _name(value_text(setting.value)))
    table.add_row(Text("…", "dim"), Text(f"{len(settings) - len(changed)} at defaults", "dim"))
    return table


def _clip_table(clips: Iterable[Mapping[str, Any]]) -> Table:
    table = _table("id", "length", "frames", "label", "caption", "speech", numbers=(1, 2))
    for line in clips:
        meta = line["meta"]
        table.add_row(
            _name(line["id"]),
            seconds_text(meta["duration"]),
            f"{meta['num_frames']:,}",
            _name(meta.get("label") or ""),
            _name(_cut(meta["caption"] or "")),
            _name(_cut(meta["transcript"] or "")),
        )
    table.columns[0].no_wrap = True
    return table


def _cut(text: str) -> str:
    return text if len(text) <= _CELL else text[: _CELL - 1] + "…"


def _clip_view(version: Folder, line: Mapping[str, Any]) -> RenderableType:
    meta = line["meta"]
    place = meta.get("shard") or line.get("frames_dir")
    facts = {
        "source": meta["source_path"],
        "span": _span(meta),
        "label": meta.get("label"),
        "video": value_text(meta["video_info"]),
        "caption": meta["caption"],
        "language": meta.get("language"),
        "transcript": meta["transcript"],
        "stored in": version / place if place else None,
        "source hash": meta["provenance"].get("source_hash"),
    }
    return Group(
        _fact_table({name: value for name, value in facts.items() if value}, title=line["id"]),
        _section("Captions", _list(meta.get("all_captions", ()))),
        _section("Speech", _list(map(_segment_text, meta.get("segments", ())))),
        _section("Scenes", _list(map(_scene_text, meta["scenes"]))),
        _section("Frames", _list(_frame_texts(line))),
        _section("Dropped frames", _list(map(dropped_text, meta.get("dropped_frames", ())))),
        _section("Steps", _list(map(_step_text, _steps(meta)))),
    )


def _span(meta: Mapping[str, Any]) -> str:
    start_s = meta.get("start", 0.0)
    end_s = meta.get("end")
    return f"{start_s:.3f} to {start_s + meta['duration'] if end_s is None else end_s:.3f} s"


def _frame_texts(line: Mapping[str, Any]) -> list[str]:
    names = line.get("frames_dir") is not None
    return [
        f"{time:.3f} s" + (f"  {frame_name(line['id'], number)}" if names else "")
        for number, time in enumerate(line["meta"]["frame_times"], 1)
    ]


def _segment_text(segment: Mapping[str, Any]) -> str:
    return f"{segment['start']:.2f}–{segment['end']:.2f} s  {segment['text']}"


def _scene_text(scene: Mapping[str, Any]) -> str:
    return f"{scene['start_time']:.3f}–{scene['end_time']:.3f} s"


def _steps(meta: Mapping[str, Any]) -> list[dict[str, Any]]:
    return meta["provenance"].get("lineage", {}).get("processing_steps", [])


def _step_text(step: Mapping[str, Any]) -> str:
    model = value_text(step["model"]) if step.get("model") else "no model"
    return f"{step['name']}: {seconds_text(step['duration_s'])}, {model}"


def _list(items: Iterable[str]) -> Table:
    table = _table("")
    items = list(items)
    for item in items[:_LIST]:
        table.add_row(Text(visible(item, TEXT_LAYOUT)))
    if len(items) > _LIST:
        table.add_row(Text(f"and {len(items) - _LIST} more", "dim"))
    return table


def _broken_view(broken: BrokenLines) -> RenderableType:
    table = _table("", "")
    for line in broken.examples:
        table.add_row(f"line {line.number}", _name(line.problem))
    return _section(f"{counted(broken.count, 'line')} of the manifest can't be used", table)


def _hints(version: Folder) -> RenderableType:
    return Text(
        f"\nreport    {visible(version / REPORT)}\n"
        f"one clip  spark-ray data inspect {visible(version.location)} --clip ID",
        "dim",
    )


def _fact_table(facts: Mapping[str, Any], title: str) -> RenderableType:
    table = _table("", "")
    for name, value in facts.items():
        table.add_row(Text(name, "dim"), Text(visible(str(value), TEXT_LAYOUT)))
    return Group(Text(visible(title), "bold"), table)


def _section(title: str, table: Table) -> RenderableType:
    return Group(Text(f"\n{title}", "bold"), table) if table.row_count else Group()


def _table(*columns: str, numbers: tuple[int, ...] = ()) -> Table:
    table = Table(box=None, show_header=any(columns), header_style="dim", pad_edge=False)
    for index, column in enumerate(columns):
        justify = "right" if index in numbers else "left"
        table.add_column(column, justify=justify, overflow="fold")  # type: ignore[arg-type]
    return table


def _name(text: str) -> Text:
    """Text from outside: no markup, no control characters."""
    return Text(visible(text))


def _as_text(*views: RenderableType) -> str:
    """With colours and the window's width on a terminal, plain and wide where piped."""
    terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if terminal else _PIPE_WIDTH
    console = Console(
        file=io.StringIO(), force_terminal=terminal, width=width, highlight=False, markup=False
    )
    with console.capture() as capture:
        console.print(*views, sep="\n")
    return "\n".join(line.rstrip() for line in capture.get().rstrip().splitlines())

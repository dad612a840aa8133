"""The work of a build: the units of its plan, handed out by their places in the plan's file.

A unit is a span of a file that one call decodes. The driver sends workers the place of its record,
sixteen bytes a unit, and they read it there: its memory hardly grows with the dataset.
"""

import math
from array import array
from collections.abc import Iterable, Iterator
from itertools import groupby, pairwise
from typing import NamedTuple

import pyarrow as pa

from spark_ray.core.provenance import VIDEO_ID_CHARS, text_hash
from spark_ray.core.schema import Clip, VideoInfo
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.plan import SPAN_TOLERANCE_S, SourceRecord, StoredPlan

_MOST_UNITS_IN_BLOCK = 32
_MOST_SECONDS_IN_BLOCK = 120.0
_BLOCKS_AHEAD = 2
"""Blocks for each worker among which what is left would be divided: more wait less at the end."""


class PlannedUnit(NamedTuple):
    """A unit as the driver knows it.

    `place` is the byte of the plan's file at which its record begins, `number` which of the
    record's units it is, `length_s` about how many seconds of video it has; 0 where nobody knows.
    """

    place: int
    number: int
    unit_id: str
    length_s: float


def units_of(record: SourceRecord, config: BuildConfig) -> Iterator[Clip]:
    """The decode units of a file: rows that so far know only which span of which file they are."""
    if record.verdict not in ("video", "rejected"):
        return
    spans = _spans(record.info, config) if record.verdict == "video" else [(0.0, None)]
    name = record.video_id or "file-" + text_hash(record.location)[:VIDEO_ID_CHARS]
    for start_s, end_s in spans:
        unit_id = _unit_id(name, start_s, end_s)
        if record.units is not None and unit_id not in record.units:
            continue
        yield Clip(
            clip_id=unit_id,
            video_id=record.video_id,
            unit_id=unit_id,
            source_path=record.location,
            source_hash=record.source_hash,
            status="ok" if record.reject is None else "rejected",
            attempt=record.attempt,
            reject=record.reject,
            label=record.label,
            sidecars=record.sidecars,
            start_s=start_s,
            end_s=end_s,
        )


def _unit_id(name: str, start_s: float, end_s: float | None) -> str:
    return f"{name}@{start_s:.3f}-{'' if end_s is None else format(end_s, '.3f')}"


def whole_file(video_id: str) -> str:
    """The id of the unit that is a whole file, which any unit with several clips is."""
    return _unit_id(video_id, 0.0, None)


def _spans(info: VideoInfo | None, config: BuildConfig) -> list[tuple[float, float | None]]:
    """Equal spans of at most `clip_max_s`; the last is open: announced durations are rough."""
    duration_s = info.duration if info else 0.0
    if info is not None and info.container == "avi":
        return [(0.0, None)]  # can't be entered in the middle; its one unit yields all its clips
    if config.split != "fixed" or duration_s <= config.clip_max_s + SPAN_TOLERANCE_S:
        return [(0.0, None)]
    count = math.ceil((duration_s - SPAN_TOLERANCE_S) / config.clip_max_s)
    edges: list[float | None] = [round(duration_s * i / count, 3) for i in range(count)]
    return list(zip(edges, [*edges[1:], None], strict=True))  # type: ignore[arg-type]


def planned_units(version: Folder, config: BuildConfig) -> Iterator[PlannedUnit]:
    """Every unit of a version's plan, in order."""
    for place, record in StoredPlan(version).placed():
        duration_s = record.info.duration if record.info else 0.0
        for number, unit in enumerate(units_of(record, config)):
            end_s = duration_s if unit.end_s is None else unit.end_s
            yield PlannedUnit(place, number, unit.unit_id, max(0.0, end_s - unit.start_s))


def group_units(
    units: Iterable[PlannedUnit], workers: int, count: int
) -> Iterator[list[PlannedUnit]]:
    """Units in blocks, one a task.

    Between two blocks a worker waits some 60 ms for Ray Data, a killed worker does its block again,
    and at the end the others wait for the last one. So blocks are of two minutes at most, and
    shrink with the work that is left, as in factoring (Hummel, Schonberg and Flynn, 1992).
    """
    block: list[PlannedUnit] = []
    block_s = 0.0
    most_units = _most_units(workers, count)
    for unit in units:
        block.append(unit)
        block_s += unit.length_s
        if len(block) >= most_units or block_s >= _MOST_SECONDS_IN_BLOCK:
            yield block
            count -= len(block)
            most_units = _most_units(workers, count)
            block, block_s = [], 0.0
    if block:
        yield block


def _most_units(workers: int, left: int) -> int:
    return max(1, min(_MOST_UNITS_IN_BLOCK, left // (workers * _BLOCKS_AHEAD)))


def place_tables(groups: Iterable[list[PlannedUnit]]) -> list[pa.Table]:
    """A table of places for each group: slices of one, since small tables take far more room."""
    places, numbers, ends = array("q"), array("q"), [0]
    for group in groups:
        places.extend(unit.place for unit in group)
        numbers.extend(unit.number for unit in group)
        ends.append(len(places))
    whole = pa.table({"place": pa.array(places), "number": pa.array(numbers)})
    return [whole.slice(start, end - start) for start, end in pairwise(ends)]


class UnitReader:
    """Reads the units that a table of places names, on the worker."""

    def __init__(self, version: Folder, config: BuildConfig) -> None:
        self._plan, self._config = StoredPlan(version), config

    def __call__(self, table: pa.Table) -> Iterator[Clip]:
        rows = zip(table["place"].to_pylist(), table["number"].to_pylist(), strict=True)
        by_record = [(place, [n for _, n in same]) for place, same in groupby(rows, lambda r: r[0])]
        records = self._plan.at(place for place, _ in by_record)
        for record, (_, numbers) in zip(records, by_record, strict=True):
            units = list(units_of(record, self._config))
            yield from (units[number] for number in numbers)

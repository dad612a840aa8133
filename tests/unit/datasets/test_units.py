"""The work that a plan comes to: spans, their ids, and how they are handed out."""

from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planned import config, record

from spark_ray.core.storage import Folder
from spark_ray.datasets.plan import SourceRecord, store_plan
from spark_ray.datasets.units import (
    UnitReader,
    group_units,
    place_tables,
    planned_units,
    units_of,
)


def stored(folder: Path, records: list[SourceRecord]) -> Folder:
    version = Folder(str(folder))
    store_plan(version, records)
    return version


@given(duration=st.floats(0, 20_000), clip_max=st.floats(30, 600))
@settings(max_examples=60, deadline=None)
def test_spans_cover_a_video_without_overlap_within_the_limit(
    duration: float, clip_max: float
) -> None:
    units = list(units_of(record(duration=duration), config(clip_max_s=clip_max)))
    assert units[0].start_s == 0
    assert units[-1].end_s is None
    for unit, following in pairwise(units):
        assert unit.end_s == following.start_s
        assert 0 < unit.end_s - unit.start_s <= clip_max + 0.502
    assert duration - units[-1].start_s <= clip_max + 0.502


@pytest.mark.parametrize(
    ("chosen", "count"),
    [({"split": "scenes"}, 1), ({"split": "none", "clip_max_s": 2000}, 1), ({}, 17)],
)
def test_only_fixed_spans_divide_the_work(chosen: dict, count: int) -> None:
    assert len(list(units_of(record(duration=1000.0), config(**chosen)))) == count


def test_the_ids_of_units_are_a_contract_with_resumed_builds() -> None:
    units = list(units_of(record(duration=100.0), config(clip_max_s=60)))
    assert [u.unit_id for u in units] == [
        "abababababababab@0.000-50.000",
        "abababababababab@50.000-",
    ]


def test_a_file_without_a_hash_is_a_unit_by_its_location() -> None:
    one, two = (
        next(units_of(record(name, verdict="rejected", source_hash=None), config()))
        for name in ("a", "b")
    )
    assert one.unit_id.startswith("file-")
    assert one.unit_id != two.unit_id
    assert one.end_s is None


@pytest.mark.parametrize("verdict", ["ignored", "duplicate", "filtered"])
def test_what_is_left_out_is_no_work(verdict: str) -> None:
    assert list(units_of(record(verdict=verdict), config())) == []


def test_a_replay_does_only_the_units_that_it_names() -> None:
    wanted = "abababababababab@50.000-"
    units = list(units_of(record(duration=100.0, units=[wanted], attempt=2), config()))
    assert [(u.unit_id, u.attempt) for u in units] == [(wanted, 2)]


def test_blocks_hold_every_unit_once_and_at_most_two_minutes_or_so(tmp_path: Path) -> None:
    version = stored(tmp_path, [record(str(i), duration=100.0) for i in range(9)])
    units = list(planned_units(version, config()))
    assert [unit.length_s for unit in units] == [50.0] * 18
    for workers in (1, 2, 16):
        blocks = list(group_units(units, workers, len(units)))
        assert [u for block in blocks for u in block] == units
        assert all(sum(50 for _ in block) <= 170 for block in blocks)
    assert len(list(group_units(units, 16, len(units)))) == len(units)


def test_blocks_shrink_towards_the_end_so_that_no_worker_is_waited_for_long(tmp_path: Path) -> None:
    version = stored(tmp_path, [record(str(i), duration=1.0) for i in range(600)])
    units = list(planned_units(version, config()))
    sizes = [len(block) for block in group_units(units, 2, len(units))]
    assert sizes == sorted(sizes, reverse=True)
    assert (sizes[0], sizes[-7:], sum(sizes)) == (32, [1] * 7, 600)
    assert len(sizes) < 40


def test_a_worker_reads_exactly_the_units_whose_places_it_is_given(tmp_path: Path) -> None:
    records = [
        record("ü\n.mp4", duration=150.0, sidecars=["x.txt"], label="l"),
        record("copy.mp4", verdict="duplicate", duplicate_of="ü\n.mp4"),
        record("bad.mp4", verdict="rejected", source_hash=None),
        record("last.mp4", duration=70.0, source_hash="cd" * 32),
    ]
    version = stored(tmp_path, records)
    every = [unit for one in records for unit in units_of(one, config())]
    planned = list(planned_units(version, config()))
    assert [unit.unit_id for unit in planned] == [unit.unit_id for unit in every]

    tables = place_tables(group_units(planned, 1, 3 * 2))
    assert [len(table) for table in tables] == [3, 1, 1, 1]
    read = UnitReader(version, config())
    assert [unit for table in tables for unit in read(table)] == every

    some = place_tables([[planned[5], planned[1], planned[0]]])
    assert list(read(some[0])) == [every[5], every[1], every[0]]


def test_a_unit_costs_the_driver_no_more_than_its_place(tmp_path: Path) -> None:
    """Rows of the clip's own schema took a kilobyte each, ten thousand times."""
    version = stored(tmp_path, [record(str(i), label="x" * 1000) for i in range(100)])
    tables = place_tables(group_units(planned_units(version, config()), 1, 100))
    assert sum(len(table) for table in tables) == 100
    assert pa.concat_tables(tables).get_total_buffer_size() == 100 * 16

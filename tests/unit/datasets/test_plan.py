"""Which files are decoded, in which spans, and under which ids."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import VideoInfo
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.plan import (
    SourceRecord,
    StoredPlan,
    _apply_limits,
    group_units,
    mark_duplicates,
    store_plan,
    timed_units,
    units_of,
)


def config(**chosen: object) -> BuildConfig:
    return BuildConfig.from_values(**{"input": ["in"], "output": "out", **chosen})


def record(location: str = "a.mp4", duration: float = 10.0, **fields: object) -> SourceRecord:
    info = VideoInfo(duration=duration, width=64, height=64, fps=25, codec="h264")
    plain = {"verdict": "video", "info": info, "source_hash": "ab" * 32}
    return SourceRecord(location=location, **{**plain, **fields})


def limited(duration: float, **chosen: object) -> SourceRecord:
    found = record(duration=duration)
    _apply_limits(found, config(**chosen))
    return found


def test_of_equal_files_the_first_by_location_stays() -> None:
    records = mark_duplicates(
        [record("a"), record("b", source_hash="cd" * 32), record("c"), record("d")]
    )
    assert [(r.location, r.verdict, r.duplicate_of) for r in records] == [
        ("a", "video", None),
        ("b", "video", None),
        ("c", "duplicate", "a"),
        ("d", "duplicate", "a"),
    ]


def test_the_texts_beside_a_copy_go_to_the_original() -> None:
    first, copy = mark_duplicates(
        [record("a", sidecars=["a.txt"]), record("b", sidecars=["b.srt"])]
    )
    assert first.sidecars == ["a.txt", "b.srt"]
    assert copy.duplicate_of == "a"


def test_a_file_that_is_left_out_does_not_make_its_copy_a_duplicate() -> None:
    first, second = mark_duplicates([record("a", verdict="rejected"), record("b")])
    assert (first.verdict, second.verdict) == ("rejected", "video")


@pytest.mark.parametrize(
    ("duration", "verdict", "name"),
    [
        (0.9, "filtered", "min_duration_s"),
        (1.0, "video", None),
        (5.0, "video", None),
        (5.1, "filtered", "max_duration_s"),
        (0.0, "video", None),  # unknown: nothing to judge by
    ],
)
def test_a_video_outside_the_durations_is_filtered_with_its_value(
    duration: float, verdict: str, name: str | None
) -> None:
    found = limited(duration, min_duration_s=1.0, max_duration_s=5.0)
    assert found.verdict == verdict
    assert (found.filtered.name if found.filtered else None) == name
    if found.filtered:
        assert found.filtered.value == duration


def test_without_splitting_a_long_video_is_rejected_with_the_way_out() -> None:
    found = limited(100.0, split="none", clip_max_s=60)
    assert found.reject is not None
    assert found.reject.error == "MediaLimitExceeded"
    assert "split=fixed" in found.reject.message
    assert limited(60.4, split="none", clip_max_s=60).verdict == "video"


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


def test_a_stored_plan_reads_back_the_same(tmp_path: object) -> None:
    version = Folder(str(tmp_path))
    records = [record("ü\n.mp4", sidecars=["x.txt"], label="l"), limited(0.5, min_duration_s=1)]
    store_plan(version, records)
    assert list(StoredPlan(version)) == records


def test_blocks_hold_every_unit_once_and_at_most_two_minutes_or_so() -> None:
    records = [record(str(i), duration=100.0) for i in range(9)]
    units = list(timed_units(records, config()))
    assert [length_s for _, length_s in units] == [50.0] * 18
    for workers in (1, 2, 16):
        blocks = list(group_units(units, workers, len(units)))
        assert [u for block in blocks for u in block] == [u for u, _ in units]
        assert all(sum(50 for _ in block) <= 170 for block in blocks)
    assert len(list(group_units(units, 16, len(units)))) == len(units)


@pytest.mark.parametrize("empty", [{"input": ""}, {"input": ["a", ""]}, {"output": ""}])
def test_an_empty_place_is_not_the_working_folder(empty: dict) -> None:
    (name,) = empty
    with pytest.raises(ConfigError, match=f"^{name}.*at least 1 character"):
        config(**empty)

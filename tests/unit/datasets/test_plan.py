"""Which files are decoded, in which spans, and under which ids."""

import pytest
from planned import config, record

from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import Folder
from spark_ray.datasets.plan import (
    SourceRecord,
    StoredPlan,
    _apply_limits,
    mark_duplicates,
    store_plan,
)


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


def test_a_text_that_two_copies_share_is_one_text() -> None:
    first, _ = mark_duplicates(
        [record("a.mkv", sidecars=["a.txt"]), record("a.mp4", sidecars=["a.txt", "b.txt"])]
    )
    assert first.sidecars == ["a.txt", "b.txt"]


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


def test_a_stored_plan_reads_back_the_same(tmp_path: object) -> None:
    version = Folder(str(tmp_path))
    records = [record("ü\n.mp4", sidecars=["x.txt"], label="l"), limited(0.5, min_duration_s=1)]
    store_plan(version, records)
    assert list(StoredPlan(version)) == records


@pytest.mark.parametrize("empty", [{"input": ""}, {"input": ["a", ""]}, {"output": ""}])
def test_an_empty_place_is_not_the_working_folder(empty: dict) -> None:
    (name,) = empty
    with pytest.raises(ConfigError, match=f"^{name}.*at least 1 character"):
        config(**empty)

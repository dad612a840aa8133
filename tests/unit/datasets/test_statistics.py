"""Numbers about a dataset, counted while its lines pass by."""

from collections import Counter

import pytest

from spark_ray.core.schema import FilterDecision
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.plan import SourceRecord
from spark_ray.datasets.statistics import (
    ClipStatistics,
    FilteredOut,
    histogram,
    survivor_funnel,
)


def line(**meta: object) -> dict:
    plain = {
        "source_path": "a.mp4", "video_id": "v1", "label": None, "duration": 2.0,
        "num_frames": 3, "num_bytes": 100, "frame_motion": [0.0, 0.5, 1.0],
        "dropped_frames": [{"time": 1.0, "motion": 0.1, "dropped_by": "motion"}],
        "caption": "a red ball", "transcript": None, "language": None,
        "scenes": [{"start_time": 0.0, "end_time": 2.0}],
        "video_info": {"codec": "h264", "width": 640, "height": 480, "audio_codec": None},
        "provenance": {"lineage": {"processing_steps": [
            {"name": "decode", "duration_s": 0.5, "model": None},
            {"name": "caption", "duration_s": 0.25,
             "model": {"name": "blip", "revision": "r1"}},
        ]}},
    }  # fmt: skip
    return {"meta": {**plain, **meta}}


def test_a_histogram_counts_every_value_once() -> None:
    result = histogram([0.0, 0.0, 0.5, 1.0], 0.0, 1.0)
    assert sum(result["counts"]) == 4
    assert (result["counts"][0], result["counts"][10], result["counts"][-1]) == (2, 1, 1)
    assert (len(result["counts"]), result["edges"][0], result["edges"][-1]) == (20, 0.0, 1.0)


@pytest.mark.parametrize("values", [[5.0], [0.0, 0.0], [-1.0, 7.0]])
def test_a_histogram_of_few_or_equal_values_still_counts_them(values: list[float]) -> None:
    assert sum(histogram(values)["counts"]) == len(values)
    assert sum(histogram(values, min(values), None)["counts"]) == len(values)


def test_no_values_make_no_histogram() -> None:
    assert histogram([]) is None


def test_clips_are_counted_and_summed() -> None:
    statistics = ClipStatistics()
    statistics.add(line())
    statistics.add(line(video_id="v2", label="cats", transcript="hello there", language="en",
                        caption=None, duration=3.0))  # fmt: skip
    statistics.add(line(label="cats"))
    found = statistics.as_dict()
    assert (found["clips"], found["videos"], found["frames"], found["bytes"]) == (3, 2, 9, 300)
    assert found["hours"] == pytest.approx(7 / 3600, abs=1e-6)
    assert (found["captioned"], found["transcribed"], found["transcript_words"]) == (2, 1, 2)
    assert (found["labels"], found["languages"]) == ({"cats": 2}, {"en": 1})
    assert (found["codecs"], found["sizes"]) == ({"h264": 3}, {"640×480": 3})
    assert (found["models"], found["step_seconds"]) == (
        {"blip@r1": 3}, {"caption": 0.75, "decode": 1.5},
    )  # fmt: skip
    assert sum(found["histograms"]["motion"]["counts"]) == 9  # kept and dropped, without the first


def test_a_line_that_is_none_is_an_error() -> None:
    with pytest.raises((KeyError, TypeError)):
        ClipStatistics().add({"meta": {}})


def test_the_funnel_adds_up_at_every_level() -> None:
    config = BuildConfig.from_values(input=["x"], output="y")
    too_short = FilterDecision(name="min_duration_s", value=0.5, limit=1.0)
    records = [
        SourceRecord(location="a", verdict="video"),
        SourceRecord(location="b", verdict="duplicate", duplicate_of="a"),
        SourceRecord(location="c", verdict="filtered", filtered=too_short),
        SourceRecord(location="d", verdict="rejected"),
        SourceRecord(location="e", verdict="ignored"),
    ]
    clips = ClipStatistics()
    clips.add(line())
    short = FilteredOut(limit=0.5)
    short.add("a", 0.25)
    rejects = Counter({("ingest", "NotAVideo"): 1, ("decode", "CorruptMedia"): 2})
    funnel = survivor_funnel(records, clips, rejects, {"min_clip_s": short}, config)

    files, found, frames = funnel["files"], funnel["clips"], funnel["frames"]
    assert files["found"] == sum(count for name, count in files.items() if name != "found") == 5
    assert found == {"found": 4, "rejected": 2, "filtered": 1, "kept": 1}
    assert frames == {"found": 4, "motion": 1, "duplicate": 0, "kept": 3}
    assert {n: e["dropped"] for n, e in funnel["filters"].items()} == {
        "min_clip_s": 1, "min_duration_s": 1,
    }  # fmt: skip
    assert funnel["duplicates"] == [{"source_path": "b", "same_as": "a"}]

"""Looking through published versions."""

from pathlib import Path

import pytest
from fake_version import make_clip, write_version

from spark_ray.core.errors import DatasetError
from spark_ray.core.schema import Caption, Clip
from spark_ray.core.storage import Folder
from spark_ray.datasets.browsing import (
    ClipQuery,
    compare_versions,
    find_clips,
    manifest_line_of,
    published_versions,
)
from spark_ray.datasets.samples import load_index

CAPTIONS = ("A red boat (1.5 m)", "a blue boat", None)


def clips() -> list[Clip]:
    return [
        make_clip(number, source=f"/films/{number}.mp4", caption=caption)
        for number, caption in enumerate(CAPTIONS)
    ]


def names(versions: list[Folder]) -> list[str]:
    return [Path(version.location).name for version in versions]


def test_versions_come_from_the_newest_to_the_oldest(tmp_path: Path) -> None:
    for name in ("v2", "v10", "v1", "extra"):
        write_version(tmp_path / "boats", clips(), name=name)
    (tmp_path / "boats" / "v11" / "parts").mkdir(parents=True)
    place = str(tmp_path / "boats")
    assert names(published_versions(place)) == ["v10", "v2", "v1", "extra"]
    assert names(published_versions(f"{place}@v2")) == ["v2"]
    assert names(published_versions(f"{place}/v2")) == ["v2"]
    assert published_versions(str(tmp_path / "nothing")) == []
    with pytest.raises(DatasetError, match="no such published version"):
        published_versions(f"{place}@v11")


@pytest.mark.parametrize(
    ("query", "found"),
    [
        (ClipQuery(), {0, 1, 2}),
        (ClipQuery(text="BOAT red"), {0}),
        (ClipQuery(text="(1.5"), {0}),
        (ClipQuery(text="boat.*"), set()),
        (ClipQuery(text="films/2"), {2}),
        (ClipQuery(text="moves boat"), {0, 1}),
        (ClipQuery(captioned=False), {2}),
        (ClipQuery(captioned=True, text="blue"), {1}),
        (ClipQuery(transcribed=False), set()),
        (ClipQuery(label="films"), {0, 1, 2}),
        (ClipQuery(label="film"), set()),
        (ClipQuery(min_duration_s=6.0, max_duration_s=6.0), {0, 1, 2}),
        (ClipQuery(min_duration_s=6.1), set()),
        (ClipQuery(ids=("nothing",)), set()),
    ],
)
def test_clips_are_found_by_every_filter_that_is_given(
    query: ClipQuery, found: set[int], tmp_path: Path
) -> None:
    version, _ = write_version(tmp_path / "boats", clips())
    table = find_clips(load_index(version.location), query)
    assert {int(Path(path).stem) for path in table["source_path"].to_pylist()} == found


def test_the_splits_share_all_clips_out(tmp_path: Path) -> None:
    many = [make_clip(number, source=f"/films/{number}.mp4") for number in range(40)]
    version, _ = write_version(tmp_path / "boats", many)
    index = load_index(version.location)
    rows = [
        find_clips(index, ClipQuery(split=split)).num_rows
        for split in ("train", "validation", "test")
    ]
    assert sum(rows) == 40
    assert rows[0] > rows[2] > 0


def test_a_clip_is_found_by_its_whole_id(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path / "boats", clips())
    wanted = clips()[1]
    line = manifest_line_of(version, wanted.clip_id)
    assert line["meta"]["source_path"] == "/films/1.mp4"
    for other in (wanted.clip_id[:-1], "", "/films/1.mp4"):
        with pytest.raises(DatasetError, match="has no clip"):
            manifest_line_of(version, other)


def test_what_came_went_and_changed(tmp_path: Path) -> None:
    old, new = clips(), clips()
    new[0].caption = Caption(text="a green boat")
    new[1].label = "boats"
    new[1].caption = None
    added = make_clip(9, source="/films/9.mp4")
    before, _ = write_version(tmp_path / "boats", old)
    after, _ = write_version(tmp_path / "boats", [*new[:2], added], name="v2")
    changes = compare_versions(before, after, most_examples=1)
    assert (changes.same, changes.added, changes.removed) == (0, 1, 1)
    assert changes.changed == {"caption": 2, "label": 1}
    kinds = [example.kind for example in changes.examples]
    assert sorted(kinds) == ["added", "caption", "label", "removed"]
    backwards = compare_versions(after, before, most_examples=1)
    assert (backwards.added, backwards.removed) == (1, 1)
    assert backwards.changed == changes.changed
    same = compare_versions(before, before, most_examples=1)
    assert (same.same, same.examples) == (3, [])

"""What a replay tries again: files as they lie there now, not as they were planned."""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from media_factory import pictures
from planned import config

from spark_ray.core.storage import Folder
from spark_ray.datasets import replay
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile, list_inputs
from spark_ray.datasets.plan import SourceRecord, mark_duplicates, scan_files, store_plan
from spark_ray.datasets.units import units_of
from spark_ray.media.encode import write_video


@pytest.fixture(autouse=True)
def look_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    def plan_inputs(files: list[InputFile], settings: BuildConfig) -> Iterator[SourceRecord]:
        return mark_duplicates(scan_files(files, settings))

    monkeypatch.setattr(replay, "plan_inputs", plan_inputs)


@pytest.fixture
def films(tmp_path: Path) -> Path:
    """A video that was rejected for the text beside it, a copy of that, and a good one."""
    folder = tmp_path / "films"
    folder.mkdir()
    write_video(folder / "a.mp4", pictures(5), Fraction(25))
    (folder / "a.caption.srt").write_text("these are no cues")
    (folder / "copy.mp4").write_bytes((folder / "a.mp4").read_bytes())
    (folder / "copy.txt").write_text("a block moves")
    write_video(folder / "good.mp4", pictures(5, seed=1), Fraction(25))
    return folder


def planned(films: Path) -> tuple[Folder, dict[str, SourceRecord]]:
    parent = Folder(str(films.parent / "v1"))
    records = list(mark_duplicates(scan_files(list_inputs([str(films)]), config())))
    store_plan(parent, records)
    return parent, by_name(records)


def by_name(records: Iterator[SourceRecord] | list[SourceRecord]) -> dict[str, SourceRecord]:
    return {Path(record.location).name: record for record in records}


def retried(films: Path, parent: Folder, rejected: SourceRecord) -> dict[str, SourceRecord]:
    (unit,) = units_of(rejected, config())
    reject = {"source_path": rejected.location, "unit_id": unit.unit_id}
    return by_name(replay._records_to_retry(parent, [reject], config()))


def texts(record: SourceRecord) -> list[str]:
    return [Path(sidecar).name for sidecar in record.sidecars]


def test_the_texts_are_those_that_lie_beside_it_and_its_copies_now(films: Path) -> None:
    parent, before = planned(films)
    assert texts(before["a.mp4"]) == ["a.caption.srt", "copy.txt"]
    (films / "a.caption.srt").unlink()
    (films / "a.txt").write_text("it moves")
    (films / "copy.txt").rename(films / "copy.json")

    now = retried(films, parent, before["a.mp4"])

    assert texts(now["a.mp4"]) == ["a.txt", "copy.json"]
    assert now["a.mp4"].units == [unit.unit_id for unit in units_of(before["a.mp4"], config())]
    assert now["a.mp4"].attempt == 2
    assert now["copy.mp4"].duplicate_of == before["a.mp4"].location
    assert now["good.mp4"].units == []
    assert now["good.mp4"].attempt == 1


def test_no_text_is_added_twice(films: Path) -> None:
    parent, before = planned(films)
    assert texts(retried(films, parent, before["good.mp4"])["a.mp4"]) == texts(before["a.mp4"])


def test_a_file_that_was_replaced_is_another_video_and_its_copy_no_copy(films: Path) -> None:
    parent, before = planned(films)
    write_video(films / "a.mp4", pictures(5, seed=2), Fraction(25))

    now = retried(films, parent, before["a.mp4"])

    assert now["a.mp4"].source_hash != before["a.mp4"].source_hash
    assert now["a.mp4"].units is None, "all of it"
    assert now["copy.mp4"].verdict == "video"
    assert now["copy.mp4"].source_hash == before["a.mp4"].source_hash
    assert texts(now["copy.mp4"]) == ["copy.txt"]


def test_a_file_that_is_gone_is_rejected_unit_by_unit_and_a_copy_is_not_missed(
    films: Path,
) -> None:
    parent, before = planned(films)
    for name in ("a.mp4", "copy.mp4"):
        (films / name).unlink()

    now = retried(films, parent, before["a.mp4"])

    assert now["a.mp4"].verdict == "video"
    assert now["a.mp4"].units == [unit.unit_id for unit in units_of(before["a.mp4"], config())]
    assert now["copy.mp4"].verdict == "duplicate"

"""From parts to a published version: the order of its lines, and what kills leave behind."""

from pathlib import Path

import pytest

from spark_ray.core.storage import Folder
from spark_ray.datasets import publish
from spark_ray.datasets.layout import PARTS, RECIPE, REJECTS, SOURCES
from spark_ray.datasets.ledger import Outcome, commit_part
from spark_ray.datasets.publish import discard


@pytest.fixture
def version(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "v1"))


def outcome(identity: str, unit: str = "u", size: int | None = None, **line: object) -> Outcome:
    return Outcome(id=identity, status="ok", unit_id=unit, unit_size=size, line=line)


@pytest.mark.parametrize("round_bytes", [1 << 30, 500, 40])
def test_outcomes_come_sorted_and_once_in_any_number_of_rounds(
    version: Folder, monkeypatch: pytest.MonkeyPatch, round_bytes: int
) -> None:
    monkeypatch.setattr(publish, "_SORTED_AT_ONCE_BYTES", round_bytes)
    ids = [f"{number * 37 % 256:02x}{number:04x}-clip" for number in range(300)]
    ids += ["file-0123", "ffff-last", "00-first"]
    for start in range(0, len(ids), 40):
        commit_part(version, [outcome(i) for i in ids[start : start + 40]])
    commit_part(version, [outcome(i) for i in ids[30:60]])
    assert [o.id for o in publish.sorted_outcomes(version)] == sorted(ids)


def test_of_a_discarded_build_only_the_rejects_stay(version: Folder) -> None:
    for name in (RECIPE, SOURCES, REJECTS, "data/ab/abc/audio.flac", "shards/00000.parquet"):
        version.write(name, b"{}")
    discard(version)
    assert version.names() == [REJECTS]


def test_a_folder_that_no_build_began_is_left_alone(version: Folder) -> None:
    version.write("data/holiday.jpg", b"")
    discard(version)
    assert version.names() == ["data/holiday.jpg"]


def test_a_kill_while_discarding_leaves_nothing_to_go_on_with(
    version: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (RECIPE, SOURCES, f"{PARTS}/committed/x.jsonl"):
        version.write(name, b"{}")
    removed: list[str] = []

    def remove(self: Folder, name: str) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(name)
        original(self, name)

    original = Folder.remove
    monkeypatch.setattr(Folder, "remove", remove)
    with pytest.raises(KeyboardInterrupt):
        discard(version)
    monkeypatch.undo()
    assert not version.exists(RECIPE)
    discard(version)
    assert version.names() == []

import json
from pathlib import Path
from typing import Any

import pytest
from fake_version import make_clip, write_version

from spark_ray.core.errors import DatasetError, StorageError
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import METADATA
from spark_ray.datasets.reading import (
    BrokenLines,
    load_metadata,
    manifest_of,
    read_manifest,
)


@pytest.fixture
def line(tmp_path: Path) -> dict[str, Any]:
    version, _ = write_version(tmp_path / "films", [make_clip(0)])
    return next(read_manifest(version, BrokenLines()))


def read(folder: Path, *lines: bytes) -> tuple[list[dict[str, Any]], BrokenLines]:
    (folder / "m.jsonl").write_bytes(b"\n".join(lines))
    broken = BrokenLines()
    return list(read_manifest(Folder(str(folder)), broken, "m.jsonl")), broken


def test_a_build_s_own_lines_are_all_read(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path / "films", [make_clip(i) for i in range(5)])
    broken = BrokenLines()
    assert len(list(read_manifest(version, broken))) == 5
    assert broken.count == 0


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"", "it is empty"),
        (b" \t\r", "it is empty"),
        (b'{"id": "a", "me', "it is not valid JSON"),
        (b"[1, 2]", "it is not an object but list"),
        (b"null", "it is not an object but NoneType"),
        (b"\xff\xfe{}", "it is not valid JSON"),
        (b"[" * 200_000, "it is not valid JSON"),
        (b'{"id": "a"}', "it has no meta"),
    ],
)
def test_a_broken_line_is_named_and_the_others_are_read(
    tmp_path: Path, line: dict[str, Any], data: bytes, problem: str
) -> None:
    good = json.dumps(line).encode()
    lines, broken = read(tmp_path, good, data, good)
    assert lines == [line, line]
    assert broken.count == 1
    assert broken.examples[0].number == 2
    assert broken.examples[0].problem.startswith(problem)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("duration", float("nan")),
        ("duration", -1),
        ("num_frames", None),
        ("num_frames", 10**400),
        ("scenes", None),
        ("dropped_frames", [{"time": 1.0}]),
        ("video_info", {}),
        ("provenance", {"lineage": {"processing_steps": [{"name": "x"}]}}),
        ("segments", ["text"]),
    ],
)
def test_a_wrong_field_is_named(
    tmp_path: Path, line: dict[str, Any], name: str, value: object
) -> None:
    line["meta"][name] = value
    lines, broken = read(tmp_path, json.dumps(line).encode())
    assert lines == []
    assert f"meta.{name}" in broken.examples[0].problem


def test_fields_that_we_do_not_know_are_kept(tmp_path: Path, line: dict[str, Any]) -> None:
    line["meta"]["quality"] = 0.5
    assert read(tmp_path, json.dumps(line).encode())[0] == [line]


def test_only_the_first_broken_lines_are_kept(tmp_path: Path) -> None:
    _, broken = read(tmp_path, *[b"x"] * 1000)
    assert broken.count == 1000
    assert [example.number for example in broken.examples] == [1, 2, 3, 4, 5]


def test_manifest_of_a_file_a_dataset_and_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version, _ = write_version(tmp_path / "films", [make_clip(0)])
    assert manifest_of(str(tmp_path / "films")) == (version, "manifest.jsonl")
    assert manifest_of(version / "manifest.jsonl") == (version, "manifest.jsonl")
    assert manifest_of("s3://bucket/set/part.jsonl") == (Folder("s3://bucket/set"), "part.jsonl")
    monkeypatch.chdir(tmp_path / "films" / "v1")
    assert manifest_of("manifest.jsonl") == (Folder("."), "manifest.jsonl")
    with pytest.raises(DatasetError):
        manifest_of(str(tmp_path / "nothing"))
    folder, name = manifest_of(str(tmp_path / "missing.jsonl"))
    with pytest.raises(StorageError):
        list(read_manifest(folder, BrokenLines(), name))


@pytest.mark.parametrize("data", [b"{", b"[]", b'{"statistics": 1}'])
def test_damaged_metadata_is_one_sentence(tmp_path: Path, data: bytes) -> None:
    version, _ = write_version(tmp_path / "films", [make_clip(0)])
    version.write(METADATA, data)
    with pytest.raises(DatasetError, match=r"metadata\.json"):
        load_metadata(version)

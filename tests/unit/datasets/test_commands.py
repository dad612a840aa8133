"""`spark-ray data …`: what it says, and with which status, before and after the work."""

from pathlib import Path

import pytest
from fake_version import make_clip, write_version

from spark_ray.cli import main


def test_an_output_that_cannot_be_written_to_is_wrong_usage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "list.txt").touch()
    (tmp_path / "films").mkdir()
    output = tmp_path / "list.txt" / "set"
    build = ["data", "build", "--input", str(tmp_path / "films"), "--output", str(output)]
    assert main(build) == 2
    assert capsys.readouterr().err == (
        f"error: output: the folder {output}/v1 can't be made or written to (Not a directory); "
        "name one that can\n"
    )


def test_an_export_looks_at_its_target_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "films", [make_clip(0)])
    (tmp_path / "list.txt").touch()
    export = ["data", "export", str(tmp_path / "films"), "--to", str(tmp_path / "list.txt" / "x")]
    assert main(export) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: --to: the folder {tmp_path}/list.txt/x can't be made")
    assert error.count("\n") == 1, "nothing was begun"


def test_a_replay_of_nothing_says_that_there_are_no_rejects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version(tmp_path / "films", [make_clip(0)])
    assert main(["data", "replay", str(tmp_path / "films")]) == 0
    assert capsys.readouterr().out == f"nothing to replay: {tmp_path}/films has no rejects\n"

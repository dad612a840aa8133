"""The command line tells people what it can do, and what they did wrong, in one sentence."""

import subprocess
import sys
from pathlib import Path

import pytest

from spark_ray import __version__
from spark_ray.cli import COMMANDS, main


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command in COMMANDS:
        assert f"spark-ray {' '.join(command.words)}" in text


def test_no_arguments_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "usage:" in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"spark-ray {__version__}\n"


def test_an_unknown_command_is_wrong_usage_and_lists_the_known(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "bild"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: unknown command 'data bild'")
    assert "spark-ray data build" in error
    assert "spark-ray demo" not in error


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(command.words))
def test_every_command_has_help(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        main([*command.words, "--help"])  # type: ignore[attr-defined]
    assert exit_.value.code == 0
    assert "usage: spark-ray" in capsys.readouterr().out


def test_help_and_mistakes_do_not_wait_for_torch_or_ray() -> None:
    program = """
import sys
from spark_ray.cli import COMMANDS, main
for command in COMMANDS:
    try:
        main([*command.words, "--help"])
    except SystemExit:
        pass
    assert main([*command.words, "--no-such-flag"]) == 2, command
heavy = {"torch", "transformers", "ray", "mlflow", "gradio"} & set(sys.modules)
assert not heavy, f"{heavy} were imported"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--input", "x"], "output is required: give --output"),
        (["--input", "x", "--output", "sets/a b"], "'a b' can't be a dataset's name"),
        (["--input", "missing.mp4", "--output", "sets/x"], "'missing.mp4' does not exist"),
        (["--input", "x", "--output", "y", "--fps", "0"], "fps: should be greater than 0"),
        (["--input", "x", "--output", "y", "--fsp", "2"], "did you mean --fps?"),
        (["--input", "x", "--output", "y", "--caption-backend", "blop"], "blip, blip2, florence2"),
        (["--input", "x", "--output", "y", "--min-clip-s", "90"], "no clip can pass both"),
        (["--input", "x", "--output", "y", "--config", "none.yaml"], "none.yaml: can't read it"),
        (["--input", "x", "--output", "y", "--captions-file", __file__], "must be a .jsonl"),
        (["--input", ".", "--output", "sets/x"], "lies in the input folder"),
    ],
)
def test_wrong_usage_of_build_is_one_sentence_and_status_2(
    arguments: list[str],
    expected: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "build", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert expected in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_inspect_of_nothing_says_what_is_published_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "inspect", str(tmp_path / "street")]) == 2
    assert "there is nothing at this path" in capsys.readouterr().err

"""`spark-ray data …`: what it says, and with which status, before and after the work."""

from pathlib import Path

import pytest
import ray
from fake_version import make_clip, write_version

from spark_ray.cli import main
from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import Folder
from spark_ray.datasets import build, session
from spark_ray.datasets.build import BuildResult
from spark_ray.datasets.publish import publication_of


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


@pytest.mark.parametrize(
    ("captions", "settings", "told"),
    [
        (2, {}, "4 clips (2 with a caption), "),
        (0, {}, "4 clips (0 with a caption), "),
        (4, {}, "4 clips, "),
        (0, {"caption_backend": "none"}, "4 clips, "),
        (4, {"transcription_backend": "subtitles"}, "4 clips (3 with a transcript), "),
        (
            2,
            {"transcription_backend": "subtitles"},
            "4 clips (2 with a caption, 3 with a transcript), ",
        ),
    ],
)
def test_the_last_line_of_a_build_says_how_many_clips_have_the_texts_that_were_asked_for(
    captions: int,
    settings: dict[str, str],
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips = [make_clip(n, caption="a street" if n < captions else None) for n in range(4)]
    clips[0] = clips[0].model_copy(update={"transcript": None})
    version, metadata = write_version(tmp_path / "films", clips, **settings)
    result = BuildResult(Folder(version.location), publication_of(metadata), 0)
    monkeypatch.setattr(build, "build_dataset", lambda _: result)

    assert main(["data", "build", "--input", "in", "--output", str(tmp_path / "films")]) == 0

    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"published {version.location}: {told}8 frames, ")


@pytest.fixture
def without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build that is to start a cluster of its own, and ends there."""

    def ray_session(_: object) -> None:
        raise ConfigError("Ray starts here")

    monkeypatch.setattr(build, "ray_session", ray_session)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by tests before this one
    monkeypatch.setattr(session, "_STARTED_HERE", tmp_path / "ray_current_cluster")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


def test_captions_of_videos_that_are_not_there_are_told_before_the_work(
    without_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.mp4").touch()
    captions = tmp_path / "captions.csv"
    captions.write_text("path,caption\na.mp4,a street\nb.mp4,a river\n")
    places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "set")]

    assert main(["data", "build", *places, "--captions-file", str(captions)]) == 2

    *_, careful, error = capsys.readouterr().err.splitlines()
    assert error == "error: Ray starts here"
    assert careful.startswith("  careful      captions_file: 1 of the 2 videos that it names")
    assert "'b.mp4'" in careful


@pytest.mark.parametrize(
    "backend", ["--caption-backend=blip", "--transcription-backend=faster_whisper"]
)
@pytest.mark.parametrize("joins", ["no cluster", "by address", "what ray start started"])
def test_weights_that_are_not_to_be_had_here_are_missed_before_ray_starts(
    without_ray: None,
    backend: str,
    joins: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On a cluster that others started, workers may have what this machine has not."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    if joins == "by address":
        monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    elif joins == "what ray start started":
        (tmp_path / "ray_current_cluster").touch()
    (tmp_path / "in").mkdir()
    places = ["--input", str(tmp_path / "in"), "--output", str(tmp_path / "set")]

    assert main(["data", "build", *places, backend]) == 2

    error = capsys.readouterr().err.splitlines()[-1]
    if joins == "no cluster":
        assert "is not on this machine and HF_HUB_OFFLINE=1 forbids downloading it" in error
        assert not (tmp_path / "set").exists()
    else:
        assert error == "error: Ray starts here"

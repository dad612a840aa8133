"""A bad file costs itself alone: a reject that says why, and everything else is built."""

import os
from pathlib import Path

import builds
import numpy as np
import pytest

from spark_ray.core.storage import local_path
from spark_ray.media.encode import AudioTrack, write_tracks

ODD_NAMES = (
    b"with space.mp4",
    b'it\'s "quoted".mp4',
    b"new\nline.mp4",
    b"not-utf8-\xff\xfe.mp4",
    "ünïcode 視頻.mp4".encode(),
    b"-dash.mp4",
    b"a,b;c.mp4",
    b"[glob]*?.mp4",
    b"%41.mp4",
)

REJECTED = {
    "truncated.mp4": ("ingest", "NotAVideo"),
    "empty.mp4": ("ingest", "NotAVideo"),
    "text.mp4": ("ingest", "NotAVideo"),
    "sound_only.mp4": ("ingest", "NotAVideo"),
    "pipe.mp4": ("ingest", "StorageError"),
    "dangling.mp4": ("ingest", "StorageError"),
    "link_out.mp4": ("ingest", "OutsideInput"),
    "cut_off.mkv": ("decode", "CorruptMedia"),
    "bad_sidecar.mp4": ("caption", "SidecarError"),
}


def write_bad_files(folder: Path, good: Path, outside: Path) -> None:
    """One file of each kind of bad, under the names of `REJECTED`."""
    data = good.read_bytes()
    (folder / "truncated.mp4").write_bytes(data[: len(data) // 3])
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("this is a recipe for soup\n" * 50)
    tone = (8000 * np.sin(np.arange(16_000) / 10)).astype(np.int16)
    write_tracks(folder / "sound_only.mp4", [AudioTrack(pcm=tone, sample_rate=16_000)])
    os.mkfifo(folder / "pipe.mp4")
    (folder / "dangling.mp4").symlink_to(folder / "nothing.mp4")
    (folder / "link_out.mp4").symlink_to(outside)
    cut_off = builds.write_number(folder / "cut_off.mkv", 200, seconds=8)
    cut_off.write_bytes(cut_off.read_bytes()[: cut_off.stat().st_size * 2 // 3])
    builds.write_number(folder / "bad_sidecar.mp4", 201)
    (folder / "bad_sidecar.srt").write_text("these are no subtitles")


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good video in a folder that nobody gave as input."""
    return builds.write_number(tmp_path_factory.mktemp("outside") / "secret.mp4", 250)


def test_good_files_among_bad_ones(
    cluster: str, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(ODD_NAMES):
        path = folder / os.fsdecode(name)
        builds.write_number(tmp_path / "new.mp4", number).rename(path)
        path.with_suffix(".txt").write_text(builds.caption_of_number(number))
    builds.write_number(folder / "sub" / "below.mp4", 50)
    builds.write_number(folder / ".hidden" / "seen_by_nobody.mp4", 51)
    inside = folder / "link_in.mp4"
    inside.symlink_to(builds.write_number(folder / "sub" / "target.mp4", 52))
    original = folder / "sub" / "below.mp4"
    (folder / "z_copy.mp4").write_bytes(original.read_bytes())
    write_bad_files(folder, original, outside)

    status = builds.main_here("data", "build", "--input", folder, "--output", tmp_path / "set")

    assert status == 0
    version = tmp_path / "set" / "v1"
    assert f"{len(REJECTED)} rejects" in capsys.readouterr().out
    found = {Path(line["source_path"]).name: line for line in builds.rejects(version)}
    assert {name: (line["stage"], line["error"]) for name, line in found.items()} == REJECTED
    assert all(line["message"] and "\n" not in line["message"] for line in found.values())

    shown = {}
    for line in builds.manifest(version):
        name = os.fsencode(local_path(line["meta"]["source_path"]).name)
        frame = (version / line["frames_dir"] / "frame_000001.jpg").read_bytes()
        shown[name] = (builds.number_seen(frame), line["meta"]["caption"])
    expected = {name: (n, builds.caption_of_number(n)) for n, name in enumerate(ODD_NAMES)}
    assert shown == {**expected, b"below.mp4": (50, None), b"link_in.mp4": (52, None)}

    verdicts = {}
    for record in builds.json_lines(version / "sources.jsonl"):
        verdicts.setdefault(record["verdict"], []).append(Path(record["location"]).name)
    assert sorted(verdicts["duplicate"]) == ["target.mp4", "z_copy.mp4"]
    assert not any(name.endswith(".mp4") for name in verdicts["ignored"])


def test_a_folder_where_every_file_is_bad(
    cluster: str, outside: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    write_bad_files(folder, outside, outside)

    status = builds.main_here("data", "build", "--input", folder, "--output", tmp_path / "set")

    assert status == 1
    said = capsys.readouterr().err.splitlines()[-1]
    version = tmp_path / "set" / "v1"
    assert said.startswith(
        f"nothing published: every video was rejected; {version / 'rejects.jsonl'} says why"
    )
    assert "(9 rejects)" in said
    assert {Path(line["source_path"]).name for line in builds.rejects(version)} == set(REJECTED)
    assert not (version / "metadata.json").exists()
    assert not (version / "manifest.jsonl").exists()

    builds.write_number(folder / "good.mp4", 1)
    again = builds.build(folder, tmp_path / "set")
    assert again == version, "the number of the build that came to nothing is taken again"
    assert len(builds.manifest(again)) == 1


WRONG = {
    "an unknown flag": (["--fsp", "2"], "did you mean --fps?"),
    "a value out of range": (["--fps", "-1"], "fps"),
    "a value of another kind": (["--fps", "often"], "fps"),
    "a wrong choice": (["--split", "somehow"], "split"),
    "an unknown backend": (["--caption-backend", "clip"], "choose one of"),
    "settings that exclude each other": (
        ["--min-duration-s", "9", "--max-duration-s", "3"],
        "no video can pass both",
    ),
    "an input that is not there": (["--input", "/no/such/folder"], "'/no/such/folder'"),
    "a pattern without a match": (["--input", "/tmp/*.no-such-suffix"], "matches no file"),
    "a name that is no dataset's": (["--output", "my set"], "can't be a dataset's name"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_wrong_usage(
    cluster: str,
    numbers: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    mistake: str,
) -> None:
    """One sentence that names the setting, status 2, and nothing is left behind."""
    arguments, named = WRONG[mistake]
    output = tmp_path / "set"

    status = builds.main_here("data", "build", "--input", numbers, "--output", output, *arguments)

    assert status == 2
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert named in said
    assert not output.exists()


def test_a_file_that_kills_its_decoder_every_time(cluster: str, tmp_path: Path) -> None:
    """A crash of native code can't be caught; the file is found out and given up."""
    folder = builds.write_numbers(tmp_path / "in", range(1, 13))
    builds.write_number(folder / "clip_006_kills_decoders.mp4", 99)

    version = builds.build(f"deadly://{folder}", tmp_path / "set", fps=2)

    (reject,) = builds.rejects(version)
    assert (reject["stage"], reject["error"]) == ("decode", "WorkerCrashed")
    assert reject["source_path"].endswith("clip_006_kills_decoders.mp4")
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(version))
    assert captions == sorted(map(builds.caption_of_number, range(1, 13)))


def test_a_file_that_kills_who_looks_at_it(cluster: str, tmp_path: Path) -> None:
    """So does one that already kills the scan."""
    folder = builds.write_numbers(tmp_path / "in", range(1, 5))
    builds.write_number(folder / "clip_002_kills_everyone.mp4", 99)

    version = builds.build(f"deadly://{folder}", tmp_path / "set", fps=2)

    (reject,) = builds.rejects(version)
    assert (reject["stage"], reject["error"]) == ("ingest", "WorkerCrashed")
    captions = sorted(line["meta"]["caption"] for line in builds.manifest(version))
    assert captions == sorted(map(builds.caption_of_number, range(1, 5)))

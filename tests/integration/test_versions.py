"""Versions: what is unfinished is resumed, what is published never changes, the next is vN+1."""

import csv
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import builds
import pandas as pd
import pytest

from spark_ray.core.claim import alone
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import published_clips
from spark_ray.datasets.build import begin
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import list_inputs
from spark_ray.datasets.plan import make_plan


@pytest.fixture
def few(tmp_path: Path) -> Path:
    """Three good videos and a broken one."""
    folder = builds.write_numbers(tmp_path / "in", (1, 2, 3))
    (folder / "clip_004.mp4").write_bytes(b"broken")
    (folder / "clip_004.txt").write_text(builds.caption_of_number(4))
    return folder


def mend(folder: Path) -> None:
    builds.write_number(folder / "clip_004.mp4", 4)


def captions(version: Path) -> list[str]:
    return sorted(line["meta"]["caption"] for line in builds.manifest(version))


def begun(source: Path, output: Path, **settings: Any) -> Path:
    """A version as a build leaves it that was killed after planning."""
    config = BuildConfig.from_values(input=[str(source)], output=str(output), **settings)
    version = Folder(str(output)).sub("v1")
    begin(version, config, make_plan(list_inputs(config.input), config, lambda _: None))
    return Path(version.location)


def test_an_unfinished_build_goes_on_under_its_own_settings_only(
    cluster: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    version = output / "v1"

    driver = builds.start(builds.build_command(few, output, fps=2))
    builds.wait_until(lambda: builds.parts(version), "a part", driver=driver)
    builds.kill(driver)

    assert builds.main_here(*builds.build_command(few, output, fps=3, jpeg_quality=50)[3:]) == 2
    said = capsys.readouterr().err
    assert "fps (was 2.0, now 3.0)" in said
    assert "jpeg_quality" in said
    assert not (version / "metadata.json").exists()

    unwatched = shutil.copytree(output, tmp_path / "unwatched")
    supersede = [*builds.build_command(few, unwatched, fps=3)[3:], "--supersede"]
    assert builds.main_here(*supersede) == 0
    assert "Building" in capsys.readouterr().err
    told = json.loads((unwatched / "v1" / "metadata.json").read_text())
    assert told["config"]["fps"] == 3
    assert len(captions(unwatched / "v1")) == 3

    assert builds.main_here(*builds.build_command(few, output, fps=2, decode_workers=1)[3:]) == 0
    assert "Resuming" in capsys.readouterr().err, "how work is spread is no other setting"
    assert captions(version) == [builds.caption_of_number(number) for number in (1, 2, 3)]


def test_a_build_that_has_done_nothing_yet_may_begin_anew(
    cluster: str, few: Path, tmp_path: Path
) -> None:
    """Under other settings, since there is nothing with which they could be mixed."""
    version = begun(few, tmp_path / "set", fps=2)
    assert builds.build(few, tmp_path / "set", fps=3) == version
    assert json.loads((version / "metadata.json").read_text())["config"]["fps"] == 3


def test_a_resumed_build_does_what_was_planned(cluster: str, few: Path, tmp_path: Path) -> None:
    """Files that came since wait for the next version; one that went becomes a reject."""
    version = begun(few, tmp_path / "set")
    builds.write_number(few / "clip_009.mp4", 9)
    (few / "clip_002.mp4").unlink()

    assert builds.build(few, tmp_path / "set") == version

    assert captions(version) == [builds.caption_of_number(number) for number in (1, 3)]
    gone = {Path(line["source_path"]).name: line["error"] for line in builds.rejects(version)}
    assert gone == {"clip_002.mp4": "StorageError", "clip_004.mp4": "NotAVideo"}


def test_a_version_that_is_being_built_is_left_alone(
    cluster: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before it has a plan, too, when nothing but the half of one says that somebody builds it."""
    half = tmp_path / "set" / "v1" / "parts" / "writing" / "half"
    half.parent.mkdir(parents=True)
    half.write_text("of a plan")
    build = builds.build_command(few, tmp_path / "set")[3:]
    with alone(Folder(str(tmp_path / "set" / "v1")), "build", "--version"):
        assert builds.main_here(*build) == 2
        assert "v1: another build of it is running" in capsys.readouterr().err
        assert half.read_text() == "of a plan"
        assert builds.main_here(*build, "--version", "special") == 0
    assert builds.main_here(*build) == 0
    assert captions(tmp_path / "set" / "v1") == captions(tmp_path / "set" / "special")


def test_an_input_that_is_gone_for_a_while_ends_the_build_and_loses_nothing(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Unmounted in the middle of a build; whatever was rejected until then can be replayed."""
    numbers = range(1, 97)
    source = builds.write_numbers(tmp_path / "in", numbers)
    output = tmp_path / "set"
    version = begun(source, output)
    source.rename(tmp_path / "elsewhere")

    assert builds.main_here(*builds.build_command(source, output)[3:]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert "16 files in a row could not be read" in said
    assert "run the same command again when it is back" in said
    assert not (version / "metadata.json").exists()

    (tmp_path / "elsewhere").rename(source)
    assert builds.build(source, output) == version
    assert captions(version)
    if builds.rejects(version):
        assert builds.main_here("data", "replay", output) == 0
        version = output / "v2"
    assert captions(version) == sorted(map(builds.caption_of_number, numbers))


def test_an_input_of_links_to_storage_that_is_gone_is_not_a_folder_of_bad_files(
    cluster: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "in"
    source.mkdir()
    for number in range(20):
        (source / f"{number}.mp4").symlink_to(source / "mounted" / f"{number}.mp4")
    assert builds.main_here(*builds.build_command(source, tmp_path / "set")[3:]) == 1
    assert "16 files in a row could not be read" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "set" / "v1" / "sources.jsonl").exists()


def test_a_published_version_is_left_alone(
    cluster: str, few: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "set"
    first = builds.build(few, output)
    before = builds.contents(first)

    assert builds.main_here(*builds.build_command(few, output, version="v1")[3:]) == 2
    assert "published already" in capsys.readouterr().err
    assert builds.build(few, output, fps=2) == output / "v2"
    assert builds.build(few, output, version="nightly") == output / "nightly"
    assert builds.build(few, output) == output / "v3"
    assert builds.contents(first) == before


@pytest.mark.parametrize("form", ["files", "parquet", "both"])
def test_replay_adds_what_was_mended(
    cluster: str, few: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """v2 is v1 with the mended clip; v1 is as it was, to the byte."""
    first = builds.build(few, tmp_path / "set", format=form)
    before = {path: path.read_bytes() for path in first.rglob("*") if path.is_file()}

    assert builds.main_here("data", "replay", tmp_path / "set") == 0
    assert not (tmp_path / "set" / "v2").exists(), "nothing was mended, so nothing is published"

    mend(few)
    monkeypatch.chdir(first)  # workers have other working folders
    assert builds.main_here("data", "replay", ".") == 0

    second = tmp_path / "set" / "v2"
    assert {path: path.read_bytes() for path in first.rglob("*") if path.is_file()} == before
    assert captions(second) == [builds.caption_of_number(number) for number in (1, 2, 3, 4)]
    assert builds.rejects(second) == []
    old = {clip.line["id"]: clip for clip in published_clips(Folder(str(first)))}
    new = {clip.line["id"]: clip for clip in published_clips(Folder(str(second)))}
    assert len(new) == 4
    for identity, clip in old.items():
        for line in (clip.line, new[identity].line):
            line["meta"].pop("shard", None)
        assert new[identity] == clip
    metadata = json.loads((second / "metadata.json").read_text())
    assert metadata["parent"]["version"] == "v1"
    assert metadata["statistics"]["clips"] == 4


def test_replay_after_a_bad_text_was_removed(cluster: str, few: Path, tmp_path: Path) -> None:
    """As its reject says, which names the text and not the video."""
    (few / "clip_002.caption.srt").write_text("these are no cues")
    first = builds.build(few, tmp_path / "set")
    messages = [line["message"] for line in builds.rejects(first)]
    assert any("mend or remove it" in message for message in messages)

    (few / "clip_002.caption.srt").unlink()
    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    assert captions(tmp_path / "set" / "v2") == [builds.caption_of_number(n) for n in (1, 2, 3)]


def test_a_replay_counts_what_its_parents_filters_turned_away(
    cluster: str, few: Path, tmp_path: Path
) -> None:
    """Its funnel is that of one build of the mended files; no clip is filtered twice."""
    builds.write_number(few / "long.mp4", 5, seconds=2)
    # Its scenes have 2, 2 and 1 s, and one bad text: two are rejected, one is filtered.
    builds.write_counting(few / "film.mp4", (0, 0, 255, 255, 0))
    (few / "film.srt").write_text("these are no subtitles")
    settings: dict[str, Any] = {"split": "scenes", "min_clip_s": 1.5}
    first = builds.build(few, tmp_path / "set", **settings)
    assert funnel_of(first)["clips"] == {"found": 7, "rejected": 2, "filtered": 4, "kept": 1}

    mend(few)  # into a clip that is filtered, too
    (few / "film.srt").write_text("1\n00:00:00,000 --> 00:00:05,000\nnumbers\n")
    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    found = funnel_of(tmp_path / "set" / "v2")
    assert found["clips"] == {"found": 8, "rejected": 0, "filtered": 5, "kept": 3}
    assert found == funnel_of(builds.build(few, tmp_path / "clean", **settings))


def test_what_was_filtered_before_a_file_failed_is_counted_once(
    cluster: str, few: Path, tmp_path: Path
) -> None:
    """Its first scene is too short, and the file ends in the middle of its second."""
    film = builds.write_counting(few / "film.mkv", (0, 0, 255, 255, 255, 255))
    film.write_bytes(film.read_bytes()[: film.stat().st_size * 3 // 4])
    builds.write_number(few / "long.mp4", 5, seconds=3)
    settings: dict[str, Any] = {"split": "scenes", "min_clip_s": 2.5}
    first = builds.build(few, tmp_path / "set", **settings)
    assert {line["stage"] for line in builds.rejects(first)} == {"ingest", "decode"}
    assert funnel_of(first)["filters"]["min_clip_s"]["dropped"] == 4

    builds.write_number(few / "clip_004.mp4", 4, seconds=3)
    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    second = tmp_path / "set" / "v2"
    assert [line["source_path"] for line in builds.rejects(second)] == [str(film)]
    assert funnel_of(second)["filters"]["min_clip_s"]["dropped"] == 4
    told = [json.loads(line) for line in (second / "filtered.jsonl").read_text().splitlines()]
    assert len({line["id"] for line in told}) == 4
    assert {(line["name"], line["limit"]) for line in told} == {("min_clip_s", 2.5)}
    assert all(line["value"] < 2.5 for line in told)


def funnel_of(version: Path) -> dict[str, Any]:
    funnel: dict[str, Any] = json.loads((version / "metadata.json").read_text())["funnel"]
    for entry in funnel["filters"].values():
        entry["examples"].sort(key=lambda example: example["source_path"])
    return funnel


def write_film(path: Path, share: float = 1.0) -> None:
    """Five scenes of 2 s, cut off after a share of its bytes."""
    builds.write_counting(path, [0, 0, 255, 255, 0, 0, 255, 255, 0, 0])
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


@pytest.mark.parametrize("split", ["fixed", "scenes"])
def test_a_replay_of_a_mended_film_is_as_a_build_of_it(
    cluster: str, tmp_path: Path, split: str
) -> None:
    """What the damaged file held is no clip any more: its mended bytes hold that as well."""
    source = builds.write_numbers(tmp_path / "in", (1,))
    write_film(source / "film.mkv", share=0.6)
    settings: dict[str, Any] = {"split": split, "clip_max_s": 2.0}
    first = builds.build(source, tmp_path / "set", **settings)
    assert len(builds.manifest(first)) > 1
    assert builds.rejects(first)

    write_film(source / "film.mkv")
    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    clean = builds.build(source, tmp_path / "clean", **settings)
    clips = builds.manifest(tmp_path / "set" / "v2")
    assert [clip["id"] for clip in clips] == [clip["id"] for clip in builds.manifest(clean)]
    assert funnel_of(tmp_path / "set" / "v2") == funnel_of(clean)


def test_a_replay_loses_no_clip_that_was_published(cluster: str, tmp_path: Path) -> None:
    """Beside a film that is cut off as before lies a text now that none of its clips can take."""
    source = builds.write_numbers(tmp_path / "in", (1,))
    (source / "clip_002.mp4").write_bytes(b"broken")
    for number in range(3):
        write_film(source / f"film_{number}.mkv", share=0.6 + 0.05 * number)
    first = builds.build(source, tmp_path / "set", split="scenes")
    had = {line["id"] for line in builds.manifest(first)}
    assert len(had) > 3

    for number in range(3):
        (source / f"film_{number}.caption.srt").write_text("these are no cues")
    builds.write_number(source / "clip_002.mp4", 2)
    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    has = {line["id"] for line in builds.manifest(tmp_path / "set" / "v2")}
    assert had < has
    assert not has & {line["id"] for line in builds.rejects(tmp_path / "set" / "v2")}


@pytest.mark.parametrize("mended", [True, False])
def test_a_replay_that_another_one_was_before_changes_nothing(
    cluster: str,
    few: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mended: bool,
) -> None:
    """The other one publishes while this one waits for its end."""
    builds.build(few, tmp_path / "set")
    mend(few)
    published: dict[Path, bytes] = {}

    def late(*given: Any) -> Any:
        monkeypatch.undo()
        assert builds.main_here("data", "replay", tmp_path / "set") == 0
        files = (tmp_path / "set").rglob("*")
        published.update({path: path.read_bytes() for path in files if path.is_file()})
        if not mended:
            (few / "clip_004.mp4").write_bytes(b"broken")
        return alone(*given)

    monkeypatch.setattr("spark_ray.datasets.replay.alone", late)
    assert builds.main_here("data", "replay", f"{tmp_path / 'set'}@v1") != 0
    assert "ended just now" in capsys.readouterr().err
    files = (tmp_path / "set").rglob("*")
    assert {path: path.read_bytes() for path in files if path.is_file()} == published
    assert (tmp_path / "set" / "v2" / "metadata.json") in published


def test_a_replay_asks_the_weights_that_its_parent_asked(
    cluster: str,
    few: Path,
    tmp_path: Path,
    tiny_checkpoint: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = shutil.copytree(tiny_checkpoint("blip"), tmp_path / "model")
    weights = model / "model.safetensors"
    began_with = weights.read_bytes()
    builds.build(few, tmp_path / "set", caption_backend="blip", caption_model=str(model))

    weights.write_bytes(began_with[:-4] + b"\0\0\0\0")  # a number of its last tensor
    mend(few)
    assert builds.main_here("data", "replay", tmp_path / "set") == 2
    assert "begun with other weights of the caption model" in capsys.readouterr().err

    weights.write_bytes(began_with)
    assert builds.main_here("data", "replay", tmp_path / "set") == 0
    clips = builds.manifest(tmp_path / "set" / "v2")
    assert len(clips) == 4
    used = {
        step["model"]["weights_hash"]
        for clip in clips
        for step in clip["meta"]["provenance"]["lineage"]["processing_steps"]
        if step.get("model")
    }
    assert len(used) == 1


def test_a_replay_that_is_killed_goes_on(cluster: str, few: Path, tmp_path: Path) -> None:
    builds.build(few, tmp_path / "set")
    mend(few)
    for change in (1, 4, 9):
        # The set itself is there, so only one run is made.
        killed = builds.killed_command(change, tmp_path / "set", "data", "replay", tmp_path / "set")
        assert "killed 1 times" in builds.run(killed).stdout
        assert not (tmp_path / "set" / "v2" / "metadata.json").exists()

    assert builds.main_here("data", "replay", tmp_path / "set") == 0

    assert captions(tmp_path / "set" / "v2") == [
        builds.caption_of_number(number) for number in (1, 2, 3, 4)
    ]


def test_nothing_of_a_killed_replay_gets_into_another_build(
    cluster: str, few: Path, tmp_path: Path
) -> None:
    builds.build(few, tmp_path / "set")
    mend(few)
    killed = builds.killed_command(6, tmp_path / "set", "data", "replay", tmp_path / "set")
    assert "killed 1 times" in builds.run(killed).stdout
    assert any((tmp_path / "set" / "v2").rglob("*.jsonl")), "it died too early to leave anything"
    others = builds.write_numbers(tmp_path / "others", range(20, 22))

    assert builds.build(others, tmp_path / "set") == tmp_path / "set" / "v2"

    assert captions(tmp_path / "set" / "v2") == ["the number 20", "the number 21"]
    clean = builds.build(others, tmp_path / "clean")
    assert files_in(tmp_path / "set" / "v2") == files_in(clean), "something of the replay is left"


def files_in(version: Path) -> list[str]:
    return sorted(str(path.relative_to(version)) for path in version.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def spoken(cluster: str, world: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset with sound, transcripts and labels."""
    return builds.build(
        world[0] / "clips",
        tmp_path_factory.mktemp("spoken") / "set",
        fps=1,
        label_from_folder=True,
        transcription_backend="subtitles",
    )


def test_export_as_webdataset(spoken: Path, tmp_path: Path) -> None:
    assert builds.main_here("data", "export", spoken, "--to", tmp_path / "tars") == 0
    with tarfile.open(tmp_path / "tars" / "00000.tar") as tar:
        held = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    expected = {}
    for clip in published_clips(Folder(str(spoken))):
        identity = clip.line["id"]
        expected[f"{identity}.json"] = json.dumps(clip.line, ensure_ascii=False).encode()
        expected[f"{identity}.txt"] = clip.line["meta"]["caption"].encode()
        for number, jpeg in enumerate(clip.frames, 1):
            expected[f"{identity}.{number:06d}.jpg"] = jpeg
        if clip.audio is not None:
            expected[f"{identity}.{Path(clip.line['audio']).suffix[1:]}"] = clip.audio
    assert list(held) == list(expected), "a clip's files stand together, in the manifest's order"
    assert held == expected


def test_export_as_parquet(spoken: Path, tmp_path: Path) -> None:
    export = ("data", "export", spoken, "--to", tmp_path / "shards", "--format", "parquet")
    assert builds.main_here(*export) == 0
    rows = pd.read_parquet(tmp_path / "shards" / "00000.parquet").to_dict("records")
    for row, clip in zip(rows, published_clips(Folder(str(spoken))), strict=True):
        assert (row["id"], row["caption"]) == (clip.line["id"], clip.line["meta"]["caption"])
        assert list(row["frames"]) == clip.frames
        assert row["audio"] == clip.audio


def test_export_as_csv(spoken: Path, tmp_path: Path) -> None:
    export = ("data", "export", spoken, "--to", tmp_path / "csv", "--format", "csv")
    assert builds.main_here(*export) == 0
    text = (tmp_path / "csv" / "clips.csv").read_text(encoding="utf-8")
    rows = list(csv.DictReader(io.StringIO(text)))
    lines = builds.manifest(spoken)
    for name in ("caption", "transcript", "label", "source_path"):
        found = [row[name] for row in rows]
        assert found == [line["meta"][name] or "" for line in lines], name


def test_export_goes_to_an_empty_folder_only(
    spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.txt").write_text("keep me")
    assert builds.main_here("data", "export", spoken, "--to", tmp_path) == 2
    assert "holds files already" in capsys.readouterr().err
    assert builds.main_here("data", "export", spoken, "--to", tmp_path / "x", "--format", "z") == 2
    assert "choose one of: csv, parquet, webdataset" in capsys.readouterr().err


def test_stats_count_what_is_there(spoken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert builds.main_here("data", "stats", spoken, "--json") == 0
    counted = json.loads(capsys.readouterr().out)["statistics"]
    published = json.loads((spoken / "metadata.json").read_text())["statistics"]
    assert counted["clips"] == len(builds.manifest(spoken))
    assert counted == published


def test_inspect_shows_versions_and_a_clip(
    spoken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (first, *_) = builds.manifest(spoken)
    assert builds.main_here("data", "inspect", spoken.parent) == 0
    assert "v1" in capsys.readouterr().out
    assert builds.main_here("data", "inspect", spoken, "--clip", first["id"]) == 0
    shown = capsys.readouterr().out
    assert first["id"] in shown
    assert first["meta"]["caption"] in shown
    assert builds.main_here("data", "inspect", spoken, "--clip", "no-such-clip") == 2

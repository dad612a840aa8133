"""Names of datasets, versions and assets."""

import errno
import tempfile
from pathlib import Path

import pytest
from fake_version import make_clip, write_version

from spark_ray.core.errors import ConfigError, DatasetError, StorageError
from spark_ray.core.storage import Folder
from spark_ray.datasets.build import choose_version
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import (
    METADATA,
    RECIPE,
    audio_name,
    create_output,
    dataset_name,
    frame_name,
    next_version,
    resolve_published,
)
from spark_ray.datasets.ledger import Recipe


@pytest.fixture
def dataset(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "street"))


def make(
    dataset: Folder, published: tuple[str, ...] = (), unfinished: tuple[str, ...] = ()
) -> None:
    for name in published:
        dataset.sub(name).write(METADATA, b"{}")
    for name in unfinished:
        begin(dataset.sub(name))


def begin(version: Folder, parent: dict[str, str] | None = None) -> None:
    recipe = Recipe(fingerprint="f", settings={}, code_version="c", started="now", parent=parent)
    version.write(RECIPE, recipe.model_dump_json().encode())


def chosen(dataset: Folder, version: str | None = None) -> str:
    config = BuildConfig.from_values(input=["x"], output=dataset.location, version=version)
    return choose_version(config).location.rpartition("/")[2]


@pytest.mark.parametrize("output", ["sets/street", "s3://bucket/street/", "/x/y/street"])
def test_the_last_part_of_the_output_is_the_name(output: str) -> None:
    assert dataset_name(output) == "street"


@pytest.mark.parametrize("output", ["", "/", "a b", "ünicode", ".hidden", "x/-y", "a;b"])
def test_a_name_that_needs_quoting_is_refused(output: str) -> None:
    with pytest.raises(ConfigError, match="can't be a dataset's name"):
        dataset_name(output)


def test_versions_count_from_one_above_the_highest(dataset: Folder) -> None:
    assert next_version(dataset) == "v1"
    make(dataset, published=("v1", "v9", "v10", "special"))
    assert next_version(dataset) == "v11"


def test_an_abandoned_folder_is_no_version(dataset: Folder) -> None:
    dataset.sub("v3").write("litter", b"")
    assert next_version(dataset) == "v1"


def test_a_build_takes_up_the_unfinished_version(dataset: Folder) -> None:
    assert chosen(dataset) == "v1"
    make(dataset, published=("v1",), unfinished=("v2",))
    assert chosen(dataset) == "v2"


def test_a_build_leaves_an_unfinished_replay_alone(dataset: Folder) -> None:
    make(dataset, published=("v1",))
    begin(dataset.sub("v2"), parent={"version": "v1"})
    assert chosen(dataset) == "v3"


def test_an_unfinished_version_below_a_published_one_is_left_alone(dataset: Folder) -> None:
    make(dataset, published=("v2",), unfinished=("v1",))
    assert chosen(dataset) == "v3"


def test_a_published_version_never_changes(dataset: Folder) -> None:
    make(dataset, published=("v1",))
    with pytest.raises(DatasetError, match="published already and never changes"):
        chosen(dataset, "v1")
    assert chosen(dataset, "mine") == "mine"


def test_a_dataset_is_found_by_path_by_version_and_by_being_newest(dataset: Folder) -> None:
    make(dataset, published=("v1", "v9", "v10"), unfinished=("v11",))
    place = dataset.location
    for reference, version in (
        (place, "v10"),
        (f"{place}/", "v10"),
        (f"{place}@v9", "v9"),
        (f"{place}/v1", "v1"),
        (f"{place}/v1/", "v1"),
    ):
        assert resolve_published(reference).location.rstrip("/") == f"{place}/{version}"


def test_an_at_sign_in_a_folder_is_no_version(tmp_path: Path) -> None:
    dataset = Folder(str(tmp_path / "me@home" / "street"))
    make(dataset, published=("v1",))
    assert resolve_published(dataset.location).location.endswith("street/v1")


def test_a_version_that_is_not_there_is_answered_with_those_that_are(dataset: Folder) -> None:
    make(dataset, published=("v1", "v10", "v9"), unfinished=("v11",))
    with pytest.raises(DatasetError, match="there are v1, v9, v10"):
        resolve_published(f"{dataset.location}@v7")
    with pytest.raises(DatasetError, match="not finished; run its build command again"):
        resolve_published(f"{dataset.location}@v11")


def test_what_is_no_published_dataset_is_said_to_be_what_it_is(tmp_path: Path) -> None:
    def said_of(name: str) -> str:
        with pytest.raises(DatasetError) as error:
            resolve_published(str(tmp_path / name))
        return str(error.value)

    make(Folder(str(tmp_path / "sets" / "street")), published=("v1",))
    make(Folder(str(tmp_path / "sets" / "begun")), unfinished=("v1",))
    Folder(str(tmp_path / "bad" / "v1")).write("rejects.jsonl", b"{}\n")
    (tmp_path / "other" / "things").mkdir(parents=True)
    assert said_of("none").endswith("no such published dataset; there is nothing at this path")
    assert said_of("other").endswith("no such published dataset; this folder holds none")
    assert said_of("sets").endswith("a folder of some; name one: street")
    for name in ("sets/begun", "sets/begun/v1", "sets/begun@v1"):
        assert said_of(name).endswith(
            "v1 is not finished; run its build command again to resume it"
        )
    for name in ("bad", "bad/v1", "bad@v1"):
        assert "v1 was not published, as no clip was left" in said_of(name)


def test_assets_are_named_after_their_clip() -> None:
    assert frame_name("abcd-0-1", 1) == "data/ab/abcd-0-1/frames/frame_000001.jpg"
    assert audio_name("abcd-0-1", "flac") == "data/ab/abcd-0-1/audio.flac"


def test_a_manifest_opens_in_datasets(tmp_path: Path) -> None:
    """Arrow's JSON reader, which it uses, fails on some files whose lists begin with null."""
    import datasets

    clips = [make_clip(number, frames=1 + number % 3, dropped=()) for number in range(8)]
    write_version(tmp_path, clips)
    rows = datasets.load_dataset(
        "json",
        data_files=str(tmp_path / "v1" / "manifest.jsonl"),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert sorted(rows["id"]) == sorted(clip.clip_id for clip in clips)
    assert {row["meta"]["frame_motion"][0] for row in rows} == {0.0}


@pytest.mark.parametrize("place", ["file/v1", "file", "x" * 300, "ring/v1"])
def test_an_output_that_cannot_be_a_folder_names_its_setting(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "ring").symlink_to("ring")
    with pytest.raises(ConfigError, match=r"^output: the folder .* can't be made .*; name one"):
        create_output(Folder(str(tmp_path / place)), "output")


def test_an_output_in_which_no_file_can_be_made_names_its_setting() -> None:
    if not Path("/proc/self").is_dir():
        pytest.skip("no file system here that takes no files")
    with pytest.raises(ConfigError, match=r"^--to: the folder /proc .*written to \(.*; name one"):
        create_output(Folder("/proc"), "--to")


def test_an_output_is_made_and_nothing_is_left_in_it(tmp_path: Path) -> None:
    for _ in range(2):
        create_output(Folder(str(tmp_path / "a" / "v1")), "output")
    assert list((tmp_path / "a" / "v1").iterdir()) == []


def test_a_full_disk_is_no_mistake_in_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(StorageError, match="the disk is full"):
        create_output(Folder(str(tmp_path)), "output")

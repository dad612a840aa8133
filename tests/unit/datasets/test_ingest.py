"""What the inputs name: each file once, sorted, with the texts beside it."""

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.core.storage import local_path
from spark_ray.datasets.ingest import files_as_they_are, list_inputs


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def names(inputs: list[str], folder: Path) -> list[str]:
    return [str(local_path(f.location).relative_to(folder)) for f in list_inputs(inputs)]


def test_a_folder_is_read_to_its_depth_in_order(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.mp4", "deep/er/c.mp4", "Z.mp4")
    assert names([str(tmp_path)], tmp_path) == ["Z.mp4", "a.mp4", "b.mp4", "deep/er/c.mp4"]


def test_a_file_that_is_named_twice_comes_once(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    given = [str(tmp_path / "a.mp4"), str(tmp_path), str(tmp_path / "*.mp4")]
    assert names(given, tmp_path) == ["a.mp4", "b.mp4"]


def test_hidden_files_and_folders_are_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", ".b.mp4", ".cache/c.mp4", "d/._e.mp4")
    assert names([str(tmp_path)], tmp_path) == ["a.mp4"]
    assert names([str(tmp_path / "*")], tmp_path) == ["a.mp4"]


def test_globs_match_names_and_depths(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mkv", "x/c.mp4", "x/y/d.mp4")
    assert names([str(tmp_path / "*.mp4")], tmp_path) == ["a.mp4"]
    assert names([str(tmp_path / "**/*.mp4")], tmp_path) == ["a.mp4", "x/c.mp4", "x/y/d.mp4"]
    assert names([str(tmp_path / "[ab].m??")], tmp_path) == ["a.mp4", "b.mkv"]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    touch(tmp_path, "clip[1].mp4", "clip1.mp4")
    assert names([str(tmp_path / "clip[1].mp4")], tmp_path) == ["clip[1].mp4"]


def test_a_list_names_files_relative_to_itself(tmp_path: Path) -> None:
    touch(tmp_path, "v/a.mp4", "v/more/b.mp4", "c.mp4")
    (tmp_path / "v" / "all.txt").write_text(f"# videos\n\n a.mp4 \nmore\n{tmp_path}/c.mp4\n")
    listed = names([str(tmp_path / "v" / "all.txt")], tmp_path)
    assert listed == ["c.mp4", "v/a.mp4", "v/more/b.mp4"]


def test_a_file_that_a_list_names_in_vain_is_a_row_with_its_problem(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("gone.mp4\n")
    (file,) = list_inputs([str(tmp_path / "all.txt")])
    assert "does not exist" in str(file.problem)


@pytest.mark.parametrize("odd", [b"sp ace.mp4", b"quo'te\".mp4", b"new\nline.mp4", b"\xff\xe9.mp4",
                                 b"100%41.mp4", b"a,b.mp4"])  # fmt: skip
def test_odd_names_are_found_and_open_again(tmp_path: Path, odd: bytes) -> None:
    path = tmp_path / os.fsdecode(odd)
    path.write_bytes(b"data")
    (file,) = list_inputs([str(tmp_path)])
    file.location.encode()
    assert local_path(file.location).read_bytes() == b"data"


def test_texts_of_the_same_stem_are_sidecars(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.txt", "a.json", "a.srt", "a.VTT", "ab.txt", "x/a.txt", "a.md")
    files = {Path(f.location).name: f for f in list_inputs([str(tmp_path)])}
    assert [Path(s).name for s in files["a.mp4"].sidecars] == ["a.VTT", "a.json", "a.srt", "a.txt"]
    assert str(tmp_path / "a.txt") not in files["a.txt"].sidecars


def test_a_file_named_by_itself_has_its_sidecars(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.txt", "b.txt")
    (file,) = list_inputs([str(tmp_path / "a.mp4")])
    assert [Path(s).name for s in file.sidecars] == ["a.txt"]


def test_a_link_out_of_the_folder_is_refused_and_one_inside_is_followed(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4", "out/secret.mp4", "out/more/b.mp4")
    (tmp_path / "in" / "bad.mp4").symlink_to(tmp_path / "out" / "secret.mp4")
    (tmp_path / "in" / "good.mp4").symlink_to("a.mp4")
    (tmp_path / "in" / "folder").symlink_to(tmp_path / "out")
    found = {Path(f.location).name: f.problem for f in list_inputs([str(tmp_path / "in")])}
    assert set(found) == {"a.mp4", "bad.mp4", "good.mp4", "folder"}
    assert type(found["bad.mp4"]).__name__ == "OutsideInput"
    assert type(found["folder"]).__name__ == "OutsideInput"
    assert found["a.mp4"] is found["good.mp4"] is None


def test_a_text_that_is_a_link_out_of_the_folder_is_no_sidecar(tmp_path: Path) -> None:
    touch(tmp_path, "in/a.mp4")
    (tmp_path / "secret.txt").write_text("password")
    (tmp_path / "in" / "a.txt").symlink_to(tmp_path / "secret.txt")
    files = {Path(f.location).name: f for f in list_inputs([str(tmp_path / "in")])}
    assert files["a.mp4"].sidecars == ()


def test_a_pattern_follows_no_link_out_of_its_folder(tmp_path: Path) -> None:
    touch(tmp_path, "in/x/a.mp4", "out/secret.mp4")
    (tmp_path / "in" / "evil").symlink_to(tmp_path / "out")
    found = {Path(f.location).name: f.problem for f in list_inputs([str(tmp_path / "in/*/*.mp4")])}
    assert found["a.mp4"] is None
    assert type(found["secret.mp4"]).__name__ == "OutsideInput"


def test_subtitles_may_say_their_language(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.srt", "a.de.srt", "a.pt-BR.vtt", "a.de.txt", "a.part2.srt")
    (found,) = list_inputs([str(tmp_path / "*.mp4")])
    names = [Path(s).name for s in found.sidecars]
    assert names == ["a.srt", "a.de.srt", "a.pt-BR.vtt"], "the plain name comes first"


def test_a_file_that_is_named_a_caption_is_beside_its_video(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.srt", "a.caption.srt", "a.caption.txt")
    (found,) = list_inputs([str(tmp_path / "*.mp4")])
    names = [Path(s).name for s in found.sidecars]
    assert names == ["a.srt", "a.caption.srt", "a.caption.txt"]


def test_the_label_is_the_folders_name(tmp_path: Path) -> None:
    touch(tmp_path, "cats/a.mp4")
    (file,) = list_inputs([str(tmp_path)])
    assert file.label == "cats"


def test_a_file_with_an_odd_name_has_the_label_of_its_siblings(tmp_path: Path) -> None:
    touch(tmp_path, "été/a.mp4", os.fsdecode(b"\xc3\xa9t\xc3\xa9/odd-\xff.mp4"))
    assert [file.label for file in list_inputs([str(tmp_path)])] == ["été", "été"]


def test_a_label_is_text_also_where_the_folders_name_is_none(tmp_path: Path) -> None:
    touch(tmp_path, os.fsdecode(b"\xff/a.mp4"))
    (file,) = list_inputs([str(tmp_path)])
    assert file.label == "%FF"


@pytest.mark.parametrize("name", ["nothing.mp4", "*.mp4", "no/such/folder"])
def test_an_input_that_matches_nothing_is_told_by_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="input: ") as caught:
        list_inputs([str(tmp_path / name)])
    assert str(tmp_path / name) in str(caught.value)


def test_a_list_without_files_or_without_text_is_told_by_name(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# nothing\n")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigError, match=r"a\.txt names no file"):
        list_inputs([str(tmp_path / "a.txt")])
    with pytest.raises(ConfigError, match=r"b\.txt is not UTF-8"):
        list_inputs([str(tmp_path / "b.txt")])


@pytest.fixture
def bucket() -> Iterator[str]:
    """Object storage without a server: fsspec's own in-memory file system."""
    fs = fsspec.filesystem("memory")
    for name in ("in/a.mp4", "in/a.txt", "in/b.mp4", "in/.cache/h.mp4", "in/.h.mp4", "c.mp4"):
        fs.pipe_file(f"/films/{name}", b"data")
    yield "memory://films"
    fs.rm("/films", recursive=True)


def keys(*inputs: str) -> dict[str, tuple[str, ...]]:
    """Names of what was found, with those of its sidecars."""
    return {
        PurePosixPath(file.location).name: tuple(PurePosixPath(s).name for s in file.sidecars)
        for file in list_inputs(inputs)
        if file.problem is None
    }


@pytest.mark.parametrize("given", ["in", "in/a.mp4", "in/*.mp4", "all.lst"])
def test_a_file_in_a_bucket_has_its_sidecars_however_it_was_named(bucket: str, given: str) -> None:
    fsspec.filesystem("memory").pipe_file("/films/all.lst", b"in/a.mp4\n")
    assert keys(f"{bucket}/{given}")["a.mp4"] == ("a.txt",)
    (again,) = files_as_they_are([f"{bucket}/in/a.mp4"])
    assert [Path(s).name for s in again.sidecars] == ["a.txt"]


def test_what_is_hidden_in_a_bucket_is_left_out(bucket: str) -> None:
    assert set(keys(f"{bucket}/in")) == {"a.mp4", "a.txt", "b.mp4"}
    assert set(keys(f"{bucket}/**/*.mp4")) == {"a.mp4", "b.mp4", "c.mp4"}


def test_a_list_in_a_bucket_may_name_itself_and_what_is_not_there(bucket: str) -> None:
    fsspec.filesystem("memory").pipe_file("/films/all.lst", b"all.lst\ngone.mp4\n# x\nc.mp4\n")
    found = {PurePosixPath(f.location).name: f.problem for f in list_inputs([f"{bucket}/all.lst"])}
    assert found["all.lst"] is found["c.mp4"] is None
    assert "does not exist" in str(found["gone.mp4"])


def test_a_local_list_may_name_what_is_not_in_the_bucket(bucket: str, tmp_path: Path) -> None:
    (tmp_path / "all.lst").write_text(f"{bucket}/gone.mp4\n{bucket}/c.mp4\n")
    problems = [f.problem for f in list_inputs([str(tmp_path / "all.lst")])]
    assert [problem is None for problem in problems] == [True, False]

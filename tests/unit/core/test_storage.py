"""Files under folders: they appear whole or not at all, and names stay inside."""

import os
import threading
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.spec import AbstractBufferedFile

from spark_ray.core.errors import StorageError
from spark_ray.core.storage import (
    Folder,
    filesystem,
    is_remote,
    local_path,
    location_of,
    open_read,
    read_bytes,
    storage_errors,
)
from spark_ray.core.transfers import transfers


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "set"))


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a/.."])
def test_no_name_leaves_the_folder(folder: Folder, name: str) -> None:
    for use in (folder.read, folder.exists, folder.size, folder.remove, folder.sub):
        with pytest.raises(StorageError, match="would leave the folder"):
            use(name)


def test_what_is_written_is_read(folder: Folder) -> None:
    folder.write("a/b/one.txt", b"1")
    folder.write("a/two.txt", b"22")
    with folder.writer("three.txt") as file:
        file.write(b"3\n")
        file.write(b"33\n")
    assert folder.read("a/b/one.txt") == b"1"
    assert list(folder.lines("three.txt")) == [b"3\n", b"33\n"]
    assert folder.names() == ["a/b/one.txt", "a/two.txt", "three.txt"]
    assert folder.names("a") == ["a/b/one.txt", "a/two.txt"]
    assert folder.children() == ["a"]
    assert folder.size("a/two.txt") == 2
    assert folder.exists("three.txt")


class Requests(fsspec.AbstractFileSystem):
    """An object store of one object that counts what is asked of it, in blocks as large as S3's."""

    protocol = "requests"
    cachable = False
    data = b""
    made: ClassVar[list[int]] = []
    copied = 0

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": len(self.data), "type": "file"}

    def _open(self, path: str, mode: str, block_size: int | None = None, **how: Any) -> Any:
        class Object(AbstractBufferedFile):
            def _fetch_range(self, start: int, end: int) -> bytes:
                Requests.made.append(len(Requests.data[start:end]))
                return Requests.data[start:end]

            def read(self, length: int = -1) -> bytes:
                data: bytes = super().read(length)
                Requests.copied += len(data)
                return data

        return Object(self, path, mode, block_size=block_size or 50 << 20, **how)


@pytest.fixture
def object_store(monkeypatch: pytest.MonkeyPatch) -> Folder:
    """A folder whose every file has `lines_of_all_lengths`."""
    fsspec.register_implementation("requests", Requests, clobber=True)
    monkeypatch.setattr(Requests, "made", [])
    monkeypatch.setattr(Requests, "copied", 0)
    monkeypatch.setattr(Requests, "data", b"".join(lines_of_all_lengths()))
    return Folder("requests://bucket/set")


def lines_of_all_lengths() -> list[bytes]:
    """Some 12 MB: short lines, empty ones, two longer than any request, and one without an end."""
    lengths = [300] * 5000 + [0, 0, 5 << 20] + [301] * 5000 + [5 << 20]
    return [b"%d" % n + b"x" * length + b"\n" for n, length in enumerate(lengths)] + [b"the end"]


def test_lines_of_an_object_are_read_in_few_requests(object_store: Folder) -> None:
    assert list(object_store.lines("x")) == lines_of_all_lengths()
    assert len(Requests.made) < 10
    assert sum(Requests.made) == Requests.copied == len(Requests.data), "nothing goes twice"


def test_a_few_lines_of_an_object_are_read_without_the_rest(object_store: Folder) -> None:
    lines = lines_of_all_lengths()
    places = list(accumulate(map(len, lines), initial=0))[:-1]
    near = range(2000, 2032)
    wanted = [*near, 5002, 9000, len(lines) - 1]
    found = object_store.lines_at("x", [places[number] for number in wanted])
    for number in near:
        assert next(found) == lines[number]
    assert sum(Requests.made) <= 128 << 10, "they lie together"
    assert list(found) == [lines[number] for number in wanted[len(near) :]]
    assert sum(Requests.made) < 6 << 20, "a line of 5 MiB, and little more"


def test_writing_again_replaces(folder: Folder) -> None:
    folder.write("x", b"long old content")
    folder.write("x", b"new")
    assert folder.read("x") == b"new"


def test_removing_is_for_files_and_folders_and_for_nothing(folder: Folder) -> None:
    folder.write("a/x", b"")
    folder.write("a/y", b"")
    folder.remove("a/x")
    assert folder.names() == ["a/y"]
    folder.remove("a")
    folder.remove("a")
    assert folder.names() == []
    assert folder.children() == []


def test_a_writer_that_fails_leaves_what_was_there(folder: Folder) -> None:
    folder.write("x", b"old")

    def fail_midway() -> None:
        with folder.writer("x") as file:
            file.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_midway()
    assert folder.read("x") == b"old"
    assert folder.names() == ["x"]


def test_a_writer_shows_nothing_before_its_end(folder: Folder) -> None:
    with folder.writer("x") as file:
        file.write(b"not yet")
        assert not folder.exists("x")
    assert folder.exists("x")


def test_a_write_that_fails_leaves_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "x"
    target.mkdir()
    (target / "in the way").touch()
    with pytest.raises(StorageError):
        Folder(str(tmp_path)).write("x", b"data")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_a_file_taken_over_from_another_folder_is_the_same(folder: Folder) -> None:
    source = folder.sub("source")
    source.write("a/x", b"data")
    folder.sub("target").copy_from(source, "a/x")
    assert folder.sub("target").read("a/x") == b"data"


def test_taking_over_goes_between_kinds_of_storage(tmp_path: Path) -> None:
    local, remote = Folder(str(tmp_path)), Folder(f"memory://{tmp_path.name}-copy")
    local.write("x", b"data")
    remote.copy_from(local, "x")
    assert remote.read("x") == b"data"


def test_writing_to_a_linked_file_does_not_change_its_twin(tmp_path: Path) -> None:
    one, two = Folder(str(tmp_path / "one")), Folder(str(tmp_path / "two"))
    one.write("x", b"old")
    two.copy_from(one, "x")
    two.write("x", b"new")
    assert one.read("x") == b"old"


@pytest.mark.parametrize(
    "name",
    [b"plain.mp4", b"sp ace.mp4", "ünïcode.mp4".encode(), b"latin-\xe9\xff.mp4", b"new\nline.mp4",
     b"100%41.mp4", b"quote'\".mp4"],
)  # fmt: skip
def test_any_file_name_survives_as_text(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    path.write_bytes(b"data")
    location = location_of(path)
    location.encode("utf-8")
    assert local_path(location) == path
    assert not is_remote(location)
    assert read_bytes(location, 10) == b"data"
    fs, inside = filesystem(location)
    assert fs.exists(inside)


def test_a_missing_file_is_named(folder: Folder) -> None:
    for use in (folder.read, folder.size, lambda name: list(folder.lines(name))):
        with pytest.raises(StorageError, match=r"gone\.txt: can't .* it does not exist"):
            use("gone.txt")
    with pytest.raises(StorageError, match="does not exist"):
        open_read(folder / "gone.txt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_forbidden_file_is_told_so(tmp_path: Path) -> None:
    (tmp_path / "x").touch(mode=0)
    with pytest.raises(StorageError, match="access denied"):
        open_read(str(tmp_path / "x"))


def test_a_refusal_of_the_storage_is_told_as_one(tmp_path: Path) -> None:
    class Forbidden(fsspec.AbstractFileSystem):
        protocol = "forbidden"

        def _open(self, *_: object, **__: object) -> None:
            raise PermissionError(13, "Permission denied")

    fsspec.register_implementation("forbidden", Forbidden, clobber=True)
    with pytest.raises(StorageError, match="access denied; check permissions or credentials"):
        open_read("forbidden://bucket/x")


def test_a_folder_a_pipe_and_a_device_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", Path("/dev/zero")):
        with pytest.raises(StorageError, match="not a regular file"):
            open_read(str(place))


def test_an_unknown_protocol_is_told_by_name() -> None:
    with pytest.raises(StorageError, match="unknown protocol nosuch://"):
        open_read("nosuch://bucket/x")


def test_a_file_too_large_to_hold_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_bytes(str(tmp_path / "x"), 5) == b"12345"
    with pytest.raises(StorageError, match="larger than the 4 bytes"):
        read_bytes(str(tmp_path / "x"), 4)


def test_a_full_disk_says_how_to_go_on() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with (
        pytest.raises(StorageError, match="disk is full; free some space"),
        storage_errors("x", "write"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"data")


def test_what_is_in_the_way_of_a_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file/v1: this folder can't be made: Not a directory"):
        Folder(str(tmp_path / "file" / "v1")).create()
    Folder(str(tmp_path / "a" / "b")).create()
    assert (tmp_path / "a" / "b").is_dir()


def test_a_folder_in_which_somebody_else_removes_files_goes_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker renames its file into place while the folder is being removed."""
    import shutil

    folder = Folder(str(tmp_path))
    folder.write("parts/a", b"")
    rmtree, calls = shutil.rmtree, []

    def interrupted(path: str) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(path)
        rmtree(path)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    folder.remove("parts")
    assert len(calls) == 2
    assert not folder.exists("parts")


def test_remote_transfers_go_side_by_side_and_come_in_order() -> None:
    together = threading.Barrier(16, timeout=20)

    def transfer(number: int) -> int:
        together.wait()  # breaks unless sixteen are under way at once
        return -number

    assert list(transfers("s3://sets/a", transfer, range(48))) == [-n for n in range(48)]


def test_of_transfers_only_a_few_are_held() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    for given, number in enumerate(transfers("s3://sets/a", abs, items())):
        assert number == given
        assert len(taken) - given <= 16


def test_local_transfers_are_done_by_who_asks_for_them() -> None:
    here = threading.get_ident()
    done = transfers("/sets/a", lambda _: threading.get_ident(), range(3))
    assert list(done) == [here] * 3


def test_a_transfer_that_fails_fails_in_its_place() -> None:
    done = transfers("s3://sets/a", lambda number: 1 // number, [2, 1, 0, 1])
    assert [next(done), next(done)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(done)

"""One bad file costs a bounded time and its own row."""

import io
import multiprocessing
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pytest
from media_factory import pictures

from spark_ray.core.errors import MediaError, MediaTimeout, StorageUnavailable
from spark_ray.core.provenance import running_hash
from spark_ray.core.schema import Clip
from spark_ray.core.storage import Folder
from spark_ray.datasets import plan, stages
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.datasets.plan import SourceRecord, mark_duplicates, scan_file
from spark_ray.datasets.stages import DecodeStage
from spark_ray.media import deadline
from spark_ray.media.deadline import iterate_with_deadline, within
from spark_ray.media.encode import write_video
from spark_ray.models import sidecar_files
from spark_ray.models.sidecar_files import read_cues


def config(**settings: object) -> BuildConfig:
    return BuildConfig.from_values(**{"input": ["in"], "output": "out", **settings})


def scan(location: str, **settings: object) -> SourceRecord:
    return scan_file(InputFile(location), config(**settings))


@pytest.fixture
def released() -> Iterator[threading.Event]:
    """Set at the end of the test, so that hanging threads end with it."""
    event = threading.Event()
    yield event
    event.set()


class OddStorage(fsspec.AbstractFileSystem):
    """A file system on which opening is easy and reading does what the test says."""

    protocol = "odd"
    cachable = False
    read: Any = None

    def info(self, path: str, **_: object) -> dict[str, object]:
        return {"name": path, "size": 1000, "type": "file"}

    def open(self, path: str, *_: object, **__: object) -> Any:
        class Odd(io.RawIOBase):
            def readable(self) -> bool:
                return True

            def seekable(self) -> bool:
                return True

            def seek(self, offset: int, whence: int = 0) -> int:
                return offset

            def tell(self) -> int:
                return 0

            def read(self, size: int = -1) -> bytes:
                return OddStorage.read()

        return Odd()


@pytest.fixture
def odd_storage(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    fsspec.register_implementation("odd", OddStorage, clobber=True)
    monkeypatch.setattr(deadline, "_GRACE_S", 0.2)
    return monkeypatch


def test_a_read_that_never_returns_ends_in_a_reject(
    odd_storage: pytest.MonkeyPatch, released: threading.Event
) -> None:
    odd_storage.setattr(OddStorage, "read", staticmethod(lambda: released.wait(60) and b""))
    started = time.monotonic()
    record = scan("odd://share/a.mp4", decode_timeout_s=0.3)
    assert time.monotonic() - started < 30, "the read would have taken a minute"
    assert record.reject is not None
    assert (record.verdict, record.reject.error) == ("rejected", "MediaTimeout")
    assert "decode_timeout_s" in record.reject.message


def test_a_read_that_fails_ends_in_a_reject(odd_storage: pytest.MonkeyPatch) -> None:
    def fail() -> bytes:
        raise OSError(5, "Input/output error")

    odd_storage.setattr(OddStorage, "read", staticmethod(fail))
    record = scan("odd://share/a.mp4")
    assert record.verdict == "rejected"
    assert record.reject is not None
    assert record.reject.error in ("StorageError", "NotAVideo", "CorruptMedia")


def test_files_that_fail_while_they_are_hashed_are_no_copies_of_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(io.BytesIO):
        def read(self, _: int | None = -1) -> bytes:
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(plan, "running_hash", lambda _: running_hash(Failing()))
    for name, frames in (("a.mp4", 10), ("b.mp4", 20)):
        write_video(tmp_path / name, pictures(frames), Fraction(25))
    scanned = [scan(str(tmp_path / name)) for name in ("a.mp4", "b.mp4")]
    records = list(mark_duplicates(scanned))
    assert [(r.verdict, r.source_hash) for r in records] == [("rejected", None)] * 2
    assert all(r.reject is not None and r.reject.error == "StorageError" for r in records)


def test_items_come_through_in_order_and_then_the_error() -> None:
    def produce() -> Iterator[int]:
        yield 1
        yield 2
        raise MediaError("broken")

    items = iterate_with_deadline(produce, 5.0, "counting")
    assert [next(items), next(items)] == [1, 2]
    with pytest.raises(MediaError, match="broken"):
        next(items)


def test_each_item_has_its_own_time(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    monkeypatch.setattr(deadline, "_GRACE_S", 0.0)

    def produce() -> Iterator[int]:
        yield 1
        released.wait(60)
        yield 2

    items = iterate_with_deadline(produce, 0.2, "counting")
    assert next(items) == 1
    with pytest.raises(MediaTimeout, match=r"counting made no progress for 0\.2 s"):
        next(items)


def test_whoever_stops_listening_leaves_no_thread_behind() -> None:
    closed = threading.Event()

    def produce() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            closed.set()

    items = iterate_with_deadline(produce, 5.0, "counting")
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]
    assert closed.wait(5)


def test_one_thread_makes_what_is_asked_for_one_after_the_other() -> None:
    """Each new one would fault its memory in again."""

    def thread_of_producer(failing: bool = False) -> int:
        def produce() -> Iterator[int]:
            yield threading.get_ident()
            if failing:
                raise MediaError("broken")

        items = iterate_with_deadline(produce, 5.0, "counting")
        (ident,) = [next(items)] if failing else list(items)
        if failing:
            with pytest.raises(MediaError, match="broken"):
                next(items)
        return ident

    assert len({thread_of_producer(failing) for failing in (False, True, False)}) == 1


def test_a_thread_that_is_stuck_gets_no_more_work(
    monkeypatch: pytest.MonkeyPatch, released: threading.Event
) -> None:
    monkeypatch.setattr(deadline, "_GRACE_S", 0.0)
    with pytest.raises(MediaTimeout):
        within(lambda: released.wait(60), 0.05, "waiting")
    assert within(lambda: "made", 5.0, "making") == "made"


def test_one_that_is_made_while_another_is_asked_for_has_a_thread_of_its_own() -> None:
    def outer() -> Iterator[int]:
        yield 1
        yield 2

    items = iterate_with_deadline(outer, 5.0, "counting")
    assert next(items) == 1
    assert within(lambda: "between", 5.0, "making") == "between"
    assert list(items) == [2]


def test_a_forked_process_does_not_count_on_its_parents_threads() -> None:
    assert within(lambda: 1, 5.0, "making") == 1
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as processes:
        assert processes.submit(_made_in_child).result(30) == 2


def _made_in_child() -> int:
    return within(lambda: 2, 5.0, "making")


def test_a_text_beside_a_video_whose_storage_hangs(
    odd_storage: pytest.MonkeyPatch, released: threading.Event
) -> None:
    odd_storage.setattr(deadline, "_GRACE_S", 0.0)
    odd_storage.setattr(sidecar_files, "_READ_TIMEOUT_S", 0.2)
    odd_storage.setattr(OddStorage, "read", staticmethod(lambda: released.wait(60) and b""))
    with pytest.raises(
        MediaTimeout, match=r"reading odd://share/a\.srt made no progress for 0\.2 s"
    ):
        read_cues("odd://share/a.srt")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    started = time.monotonic()
    record = scan(str(tmp_path / "a.mp4"))
    assert time.monotonic() - started < 30, "opening it would have waited for a writer"
    assert record.reject is not None
    assert "not a regular file" in record.reject.message


@pytest.mark.parametrize(
    ("name", "verdict", "error"),
    [
        ("empty.mp4", "rejected", "NotAVideo"),
        ("text.mp4", "rejected", "NotAVideo"),
        ("text.txt", "ignored", None),
        ("noise.jpg", "ignored", None),
        ("gone.mp4", "rejected", "StorageError"),
    ],
)
def test_only_what_is_called_a_video_is_rejected_for_being_none(
    tmp_path: Path, name: str, verdict: str, error: str | None
) -> None:
    data = {"empty": b"", "text": b"hello\n", "noise": os.urandom(1000)}
    if name != "gone.mp4":
        (tmp_path / name).write_bytes(data[name.partition(".")[0]])
    record = scan(str(tmp_path / name))
    assert record.verdict == verdict
    assert (record.reject.error if record.reject else None) == error


def test_a_video_is_known_by_its_content(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(10), Fraction(25))
    (tmp_path / "b.dat").write_bytes((tmp_path / "a.mp4").read_bytes())
    records = [scan(str(tmp_path / name)) for name in ("a.mp4", "b.dat")]
    assert [r.verdict for r in records] == ["video", "video"]
    assert records[0].video_id == records[1].video_id
    assert records[0].info is not None
    assert records[0].info.duration == pytest.approx(0.4)


def test_storage_that_fails_altogether_makes_no_rejects(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(location: str) -> BinaryIO:
        raise StorageUnavailable(f"{location}: the endpoint can't be reached")

    (tmp_path / "a.mp4").write_bytes(b"data")
    monkeypatch.setattr(plan, "open_read", unreachable)
    monkeypatch.setattr(stages, "open_read", unreachable)
    with pytest.raises(StorageUnavailable):
        scan(str(tmp_path / "a.mp4"))
    config = BuildConfig.from_values(input=["x"], output="y")
    decode = DecodeStage(config, Folder(str(tmp_path / "v1")), "run", {})
    unit = Clip(clip_id="u", video_id="v", unit_id="u", source_path="s3://x/a.mp4", status="ok")
    with pytest.raises(StorageUnavailable):
        list(decode.process([unit]))


def test_credentials_that_expire_while_a_file_is_read_make_no_reject(
    tmp_path: Path, odd_storage: pytest.MonkeyPatch
) -> None:
    def expire() -> bytes:
        answer = Exception()
        answer.response = {"Error": {"Code": "ExpiredToken"}}  # type: ignore[attr-defined]
        raise PermissionError("The provided token has expired.") from answer

    odd_storage.setattr(OddStorage, "read", staticmethod(expire))
    decode = DecodeStage(config(), Folder(str(tmp_path / "v1")), "run", {})
    unit = Clip(clip_id="u", video_id="v", unit_id="u", source_path="odd://share/a.mp4")
    with pytest.raises(StorageUnavailable):
        list(decode.process([unit]))


def test_a_file_that_vanishes_before_it_is_decoded_is_a_reject(tmp_path: Path) -> None:
    write_video(tmp_path / "stays.mp4", pictures(10), Fraction(25))
    units = [
        Clip(
            clip_id=name,
            video_id=name * 4,
            unit_id=name,
            source_path=str(tmp_path / f"{name}.mp4"),
            status="ok",
        )
        for name in ("gone", "stays")
    ]
    decode = DecodeStage(config(min_clip_s=0), Folder(str(tmp_path / "v1")), "run", {})
    gone, stays = decode.process(units)
    assert gone.status == "rejected"
    assert gone.reject is not None
    assert gone.reject.stage == "decode"
    assert "gone.mp4" in gone.reject.message
    assert stays.status == "ok"
    assert stays.frames


def test_storage_that_is_gone_ends_the_build_and_single_files_do_not(tmp_path: Path) -> None:
    """Unmounted, or forbidden altogether, it looks from each file as if that one were missing."""
    write_video(tmp_path / "stays.mp4", pictures(10), Fraction(25))

    def decode(names: list[str]) -> list[str]:
        stage = DecodeStage(config(min_clip_s=0), Folder(str(tmp_path / "v1")), "run", {})
        units = [
            Clip(
                clip_id=f"{number}",
                video_id=f"{number:016x}",
                unit_id=f"{number}",
                source_path=str(tmp_path / name),
                status="ok",
            )
            for number, name in enumerate(names)
        ]
        # Blocks of five units: what a worker has seen counts across them.
        blocks = (units[at : at + 5] for at in range(0, len(units), 5))
        return [clip.status for block in blocks for clip in stage.process(block)]

    few = ["gone.mp4"] * 15
    assert decode([*few, "stays.mp4", *few]) == ["rejected"] * 15 + ["ok"] + ["rejected"] * 15
    with pytest.raises(StorageUnavailable, match=r"gone\.mp4.*16 files in a row.*command again"):
        decode(["stays.mp4", *few, "gone.mp4"])


def test_a_file_above_the_size_limit_is_refused(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", pictures(10), Fraction(25))
    size = (tmp_path / "a.mp4").stat().st_size
    assert scan(str(tmp_path / "a.mp4"), max_file_bytes=size).verdict == "video"
    record = scan(str(tmp_path / "a.mp4"), max_file_bytes=size - 1)
    assert record.reject is not None
    assert record.reject.error == "MediaLimitExceeded"
    assert f"max_file_bytes={size - 1}" in record.reject.message


@pytest.mark.parametrize(
    ("name", "begins", "verdict"),
    [
        ("film.mp4", b"no film", "rejected"),
        ("upload", b"\x00\x00\x00\x20ftypisom and then nothing", "rejected"),
        ("upload", b"a text", "ignored"),
        ("upload", b"\xff\xd8\xff and then nothing", "ignored"),
        ("film.txt", b"\x00\x00\x00\x20ftypisom and then nothing", "ignored"),
    ],
)
def test_what_was_meant_as_a_video_and_is_none_is_told(
    name: str, begins: bytes, verdict: str, tmp_path: Path
) -> None:
    """Uploads have no ending: one that was cut off was left out of its job without a word."""
    file = tmp_path / name
    file.write_bytes(begins)
    record = scan(str(file))
    assert record.verdict == verdict
    assert (record.reject is not None) == (verdict == "rejected")

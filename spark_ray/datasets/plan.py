"""From a listing to a plan: which files are videos, which are copies, and which spans to decode.

The plan is made once for a version and stored, so that a resumed build does the same work although
files may have come or gone since.
"""

import tempfile
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal

import ray
from pydantic import Field
from ray.exceptions import OutOfMemoryError, RayTaskError, WorkerCrashedError

from spark_ray.core.errors import (
    MediaLimitExceeded,
    NotAVideo,
    SparkRayError,
    StorageError,
    StorageUnavailable,
    WorkerCrashed,
)
from spark_ray.core.outages import OutageWatch
from spark_ray.core.provenance import VIDEO_ID_CHARS, running_hash
from spark_ray.core.schema import FilterDecision, Record, Reject, VideoInfo
from spark_ray.core.storage import (
    Folder,
    filesystem,
    is_remote,
    local_path,
    open_read,
    storage_errors,
)
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.datasets.layout import SOURCES
from spark_ray.media.deadline import iterate_with_deadline
from spark_ray.media.sniff import SNIFFED_BYTES, media_type
from spark_ray.media.source import VIDEO_EXTENSIONS, probe

_FILES_PER_TASK = 16

SPAN_TOLERANCE_S = 0.5
"""A video that is longer than `clip_max_s` by no more is not cut for it."""


class SourceRecord(Record):
    """What a look at one input file found.

    `info` is as its headers tell; the manifest has it as it was decoded.
    `units` are the ids of the spans that this build decodes; None, as in every first build, all.
    """

    location: str
    verdict: Literal["video", "ignored", "duplicate", "filtered", "rejected"]
    label: str | None = None
    sidecars: list[str] = Field(default_factory=list)
    source_hash: str | None = None
    info: VideoInfo | None = None
    duplicate_of: str | None = None
    filtered: FilterDecision | None = None
    reject: Reject | None = None
    units: list[str] | None = None
    attempt: int = 1

    @property
    def video_id(self) -> str | None:
        return self.source_hash[:VIDEO_ID_CHARS] if self.source_hash else None


class StoredPlan:
    """The records of a version's plan, in order, read from its file each time they are wanted.

    They are never held together, so that a build's memory hardly grows with the number of files.
    """

    def __init__(self, version: Folder) -> None:
        self._version = version

    def __iter__(self) -> Iterator[SourceRecord]:
        return (record for _, record in self.placed())

    def placed(self) -> Iterator[tuple[int, SourceRecord]]:
        """Each record behind its place, the byte of the file at which it begins."""
        place = 0
        for line in self._version.lines(SOURCES):
            yield place, SourceRecord.model_validate_json(line)
            place += len(line)

    def at(self, places: Iterable[int]) -> Iterator[SourceRecord]:
        """The records at these places."""
        for line in self._version.lines_at(SOURCES, places):
            yield SourceRecord.model_validate_json(line)


def store_plan(version: Folder, records: Iterable[SourceRecord]) -> None:
    with version.writer(SOURCES) as file:
        for record in records:
            file.write(record.model_dump_json(exclude_defaults=True).encode() + b"\n")


def make_plan(
    files: Sequence[InputFile], config: BuildConfig, advance: Callable[[int], None]
) -> Iterator[SourceRecord]:
    """Look at every file, in Ray tasks, and find the copies among them.

    `files` are sorted by location, each once, as `list_inputs` gives them; so are the records.
    """
    with tempfile.TemporaryDirectory(prefix="spark-ray-plan-") as folder:
        looked_at = Folder(folder)
        store_plan(looked_at, _in_order(files, _scan_all(files, config, advance)))
        yield from mark_duplicates(StoredPlan(looked_at))


def _scan_all(
    files: Sequence[InputFile], config: BuildConfig, advance: Callable[[int], None]
) -> Iterator[SourceRecord]:
    """A record of every file, in the order in which they happen to be ready.

    Raises:
        StorageUnavailable: file after file could not be read.
    """
    outage = OutageWatch()
    starts = range(0, len(files), _FILES_PER_TASK)
    waiting = deque(list(files[at : at + _FILES_PER_TASK]) for at in starts)
    scan = ray.remote(scan_files).options(num_cpus=1, max_retries=3)
    settings = ray.put(config)
    running: dict[Any, list[InputFile]] = {}
    window = 2 * max(1, int(ray.cluster_resources().get("CPU", 1)))
    while True:
        while len(running) < window and waiting:
            chunk = waiting.popleft()
            running[scan.remote(chunk, settings)] = chunk
        if not running:
            return
        (ready, *_), _ = ray.wait(list(running), num_returns=1)
        chunk = running.pop(ready)
        try:
            found = ray.get(ready)
        except (WorkerCrashedError, OutOfMemoryError):
            if len(chunk) > 1:  # One of them kills whoever looks at it: find out which.
                waiting.extendleft([file] for file in chunk)
                continue
            crash = WorkerCrashed("looking at it killed its worker process again and again")
            found = scan_files([replace(chunk[0], problem=crash)], config)
        except RayTaskError as error:
            raise (error.cause if isinstance(error.cause, SparkRayError) else error) from None
        for file, record in zip(chunk, found, strict=True):
            if file.problem is None:  # else nobody tried to read it
                outage.note(_storage_failure(record))
            yield record
        advance(len(found))


def _storage_failure(record: SourceRecord) -> str | None:
    reject = record.reject
    return reject.message if reject and reject.error == StorageError.__name__ else None


def _in_order(
    files: Sequence[InputFile], records: Iterable[SourceRecord]
) -> Iterator[SourceRecord]:
    early: dict[str, SourceRecord] = {}
    following = iter(files)
    awaited = next(following, None)
    for record in records:
        early[record.location] = record
        while awaited is not None and awaited.location in early:
            yield early.pop(awaited.location)
            awaited = next(following, None)


def scan_files(files: Iterable[InputFile], config: BuildConfig) -> list[SourceRecord]:
    return [scan_file(file, config) for file in files]


def scan_file(file: InputFile, config: BuildConfig) -> SourceRecord:
    """Open one file, read what it says of itself, and hash it. Never raises for a bad file."""
    record = SourceRecord(
        location=file.location,
        verdict="video",
        label=file.label if config.label_from_folder else None,
        sidecars=list(file.sidecars),
    )
    try:
        if file.problem:
            raise file.problem
        found = iterate_with_deadline(
            lambda: _look_inside(file.location, config), config.decode_timeout_s, "reading it"
        )
        # The last is that of the whole. Those before must not stay on a reject: failing at the same
        # byte, say the first, different files would have the same hash, and be copies.
        ((record.info, record.source_hash),) = deque(found, maxlen=1)
    except StorageUnavailable:
        raise  # it would make a reject of every file that is left
    except NotAVideo as error:
        if not _is_meant_as_video(file.location):
            record.verdict = "ignored"
        else:
            _reject(record, error)
    except Exception as error:  # noqa: BLE001 - no file, however odd, may stop the build
        _reject(record, error)
    else:
        _apply_limits(record, config)
    return record


def _is_meant_as_video(location: str) -> bool:
    """By its name, or where that has no ending, as those of uploads, by how it begins."""
    suffix = PurePosixPath(location).suffix.lower()
    if suffix:
        return suffix in VIDEO_EXTENSIONS
    try:
        with storage_errors(location, "read"), open_read(location) as file:
            found = media_type(file.read(SNIFFED_BYTES))
    except StorageError:
        return True  # it was read just now: whatever this is, somebody should hear of it
    return found is not None and found[0] == "video"


def _look_inside(location: str, config: BuildConfig) -> Iterator[tuple[VideoInfo, str]]:
    with storage_errors(location, "read"):
        yield from _probe_and_hash(location, config)


def _probe_and_hash(location: str, config: BuildConfig) -> Iterator[tuple[VideoInfo, str]]:
    """What the file says of itself, and its hash so far: again after each piece that was read."""
    size_bytes = _size_bytes(location)
    if size_bytes > config.max_file_bytes:
        raise MediaLimitExceeded(
            f"its {size_bytes} bytes are more than max_file_bytes={config.max_file_bytes}"
        )
    if size_bytes == 0:
        raise NotAVideo("it is empty")
    with open_read(location) as file:
        info = probe(file, config)
        file.seek(0)
        for digest in running_hash(file):
            yield info, digest


def _size_bytes(location: str) -> int:
    if not is_remote(location):
        path = local_path(location)
        return path.stat().st_size if path.is_file() else -1
    fs, path_in_fs = filesystem(location)
    return int(fs.size(path_in_fs) or 0)


def _reject(record: SourceRecord, error: Exception) -> None:
    record.verdict = "rejected"
    record.reject = Reject(
        stage="ingest", error=type(error).__name__, message=str(error), attempt=record.attempt
    )


def _apply_limits(record: SourceRecord, config: BuildConfig) -> None:
    assert record.info is not None
    duration_s = record.info.duration
    limits = [("min_duration_s", config.min_duration_s, duration_s < config.min_duration_s)]
    if config.max_duration_s is not None:
        limits.append(("max_duration_s", config.max_duration_s, duration_s > config.max_duration_s))
    for name, limit, fails in limits:
        if duration_s and fails:
            record.verdict = "filtered"
            record.filtered = FilterDecision(name=name, value=duration_s, limit=limit)
            return
    if config.split == "none" and duration_s > config.clip_max_s + SPAN_TOLERANCE_S:
        _reject(
            record,
            MediaLimitExceeded(
                f"it lasts {duration_s:.1f} s, more than clip_max_s={config.clip_max_s:g}; "
                "raise that, or let split=fixed or split=scenes cut it"
            ),
        )


def mark_duplicates(records: Iterable[SourceRecord]) -> Iterator[SourceRecord]:
    """Of files with the same bytes the first stays, with the texts beside each.

    `records`, sorted by location, are gone through twice.
    """
    first: dict[tuple[bytes, str], int] = {}
    beside_copies: defaultdict[int, list[str]] = defaultdict(list)
    for number, record in enumerate(records):
        original = _first_alike(record, number, first)
        if original != number:
            beside_copies[original] += record.sidecars
    originals: dict[int, str] = {}
    for number, record in enumerate(records):
        original = _first_alike(record, number, first)
        if original != number:
            record.verdict, record.duplicate_of = "duplicate", originals[original]
        elif number in beside_copies:
            originals[number] = record.location
            beside = dict.fromkeys((*record.sidecars, *beside_copies[number]))
            record.sidecars = list(beside)  # each once: a.mp4 and a.mkv have one a.txt
        yield record


def _first_alike(record: SourceRecord, number: int, first: dict[tuple[bytes, str], int]) -> int:
    """The number of the first record of the same bytes; a reject is no original of a video."""
    if record.verdict not in ("video", "rejected") or record.source_hash is None:
        return number
    return first.setdefault((bytes.fromhex(record.source_hash), record.verdict), number)

"""The stages of a build. Each turns a stream of clip rows into a stream of clip rows.

A stage is made on the driver, cheap and without weights; a worker calls `setup` once. Identity is
kept by the rows themselves: a stage may reorder, merge or split them, and never pairs by position.
A row that is not `ok` passes through untouched.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Protocol
from uuid import uuid4

import cv2
import pyarrow as pa

from spark_ray.core.errors import (
    CorruptMedia,
    SparkRayError,
    StorageError,
    StorageUnavailable,
    WorkerCrashed,
)
from spark_ray.core.logging import configure_logging, get_logger
from spark_ray.core.outages import OutageWatch
from spark_ray.core.provenance import code_version
from spark_ray.core.schema import (
    Clip,
    FilterDecision,
    Reject,
    Step,
    check_storable,
    clip_id,
    clips_to_table,
    table_to_clips,
)
from spark_ray.core.storage import (
    Folder,
    open_read,
    storage_errors,
)
from spark_ray.core.transfers import transfers
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import (
    audio_name,
    clip_provenance,
    filtered_line,
    frame_name,
    manifest_line,
    reject_line,
)
from spark_ray.datasets.ledger import CrashGuard, Outcome, commit_part
from spark_ray.datasets.telemetry import count_committed
from spark_ray.media.deadline import iterate_with_deadline
from spark_ray.media.decode import DecodedClip, Span, decode_clips
from spark_ray.monitoring.logs import job_ids

log = get_logger(__name__)

_TABLE_BYTES = 32 << 20

_pools_here: dict[str, "StagePool"] = {}


class Stage(Protocol):
    """A step of the build."""

    name: str
    holds_weights: bool
    """Whether it deserves actors, and a GPU, of its own."""

    def setup(self) -> None: ...

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]: ...


class StagePool:
    """Consecutive stages in one worker process: rows pass between them without leaving it.

    Ray Data keeps it in an actor if one of its stages holds weights. Otherwise `run` is a task, and
    the worker process, which outlives the task, keeps the pool for the next one.
    """

    def __init__(
        self, stages: list[Stage], read: Callable[[pa.Table], Iterable[Clip]] = table_to_clips
    ) -> None:
        self.stages = stages
        self.read = read
        self.key = uuid4().hex
        self._ids = job_ids()  # of the driver, which makes the pool
        self._ready = False

    @property
    def holds_weights(self) -> bool:
        return any(stage.holds_weights for stage in self.stages)

    def run(self, table: pa.Table) -> Iterator[pa.Table]:
        """As a task: use this process's own copy, set up once."""
        return _pools_here.setdefault(self.key, self)(table)

    def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
        try:
            self._setup()
            clips = self.read(table)
            for stage in self.stages:
                clips = stage.process(clips)
            yield from _tables(clips)
        except SparkRayError as error:
            # Raised, it would reach the user inside two pages of Ray's own traceback.
            yield clips_to_table([aborted(error)])

    def _setup(self) -> None:
        if not self._ready:
            configure_logging(ids=lambda: self._ids)
            # Ray places one worker a core; OpenCV would start a thread for every core in each.
            cv2.setNumThreads(1)
            for stage in self.stages:
                stage.setup()
            self._ready = True


def _tables(clips: Iterable[Clip]) -> Iterator[pa.Table]:
    """The rows in tables of bounded size, so that a film that is cut at its scenes is not held."""
    held: list[Clip] = []
    size = 0
    for clip in clips:
        held.append(clip)
        size += sum(map(len, clip.frames)) + len(clip.audio or b"")
        if size >= _TABLE_BYTES:
            yield clips_to_table(held)
            held, size = [], 0
    yield clips_to_table(held)


class DecodeStage:
    """Decodes each unit once and yields its clips. A file that can't be used becomes a reject."""

    name = "decode"
    holds_weights = False

    def __init__(
        self,
        config: BuildConfig,
        version: Folder,
        run_id: str,
        committed: Mapping[str, Set[str]],
    ) -> None:
        self._config = config
        self._guard = CrashGuard(version, f"{run_id}/{self.name}")
        self._committed = committed
        self._outage = OutageWatch()

    def setup(self) -> None:
        pass

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        units = list(clips)
        careful = self._guard.begin_block(units)
        for unit in units:
            if unit.status != "ok":
                yield unit.model_copy(update={"unit_size": 1})
            elif not careful:
                yield from self._numbered(unit)
            elif self._guard.begin_unit(unit):
                yield from self._numbered(unit)
                self._guard.end_unit(unit)
            else:
                crash = WorkerCrashed("decoding it killed its worker process twice")
                yield rejected(unit, self.name, crash).model_copy(update={"unit_size": 1})

    def _numbered(self, unit: Clip) -> Iterator[Clip]:
        """The unit's rows without those committed before, the last with the count of all."""
        skip = self._committed.get(unit.unit_id, frozenset())
        last: Clip | None = None
        size = 0
        for clip in self._rows(unit):
            if last is not None and last.clip_id not in skip:
                yield last
            last, size = clip, size + 1
        assert last is not None, "a unit yields at least a reject"
        yield last.model_copy(update={"unit_size": size})

    def _rows(self, unit: Clip) -> Iterator[Clip]:
        count = 0
        try:
            for decoded in self._decode(unit):
                count += 1
                row = self._filter(_decoded_row(unit, decoded))
                check_storable(row)
                yield row
            if count == 0:
                raise CorruptMedia("no frame lies in this span of it")
        except StorageUnavailable:
            raise  # it would make a reject of every file that is left
        except Exception as error:  # noqa: BLE001 - no file, however odd, may stop the build
            self._outage.note(str(error) if isinstance(error, StorageError) else None)
            yield rejected(unit, self.name, error)
        else:
            self._outage.note(None)

    def _decode(self, unit: Clip) -> Iterator[DecodedClip]:
        def decode() -> Iterator[DecodedClip]:
            path = unit.source_path
            with storage_errors(path, "read"), open_read(path) as file:
                span, config = Span(unit.start_s, unit.end_s), self._config
                yield from decode_clips(file, span, config, config.transcription_language)

        return iterate_with_deadline(decode, self._config.decode_timeout_s, "decoding one clip")

    def _filter(self, clip: Clip) -> Clip:
        limit_s = self._config.min_clip_s
        if clip.duration_s >= limit_s:
            return clip
        decision = FilterDecision(name="min_clip_s", value=clip.duration_s, limit=limit_s)
        return clip.model_copy(
            update={"status": "filtered", "filtered": decision, "frames": [], "audio": None}
        )


def _decoded_row(unit: Clip, decoded: DecodedClip) -> Clip:
    assert unit.video_id is not None
    return unit.model_copy(
        update={
            "clip_id": clip_id(unit.video_id, decoded.start_s, decoded.end_s),
            "start_s": round(decoded.start_s, 6),
            "end_s": round(decoded.end_s, 6),
            "video": decoded.info,
            "samples": decoded.samples,
            "frames": decoded.frames,
            "audio": decoded.audio,
            "scenes": decoded.scenes,
            "subtitles": decoded.subtitles,
            "subtitle_language": decoded.subtitle_language,
            "steps": [Step(name="decode", duration_s=round(decoded.decode_s, 6))],
        }
    )


def rejected(clip: Clip, stage: str, error: Exception) -> Clip:
    """The row as a reject: bytes go, what is known of it stays."""
    log.info("rejected", clip=clip.clip_id, stage=stage, error=type(error).__name__)
    reject = Reject(
        stage=stage, error=type(error).__name__, message=str(error), attempt=clip.attempt
    )
    return clip.model_copy(
        update={"status": "rejected", "reject": reject, "frames": [], "audio": None}
    )


def aborted(error: SparkRayError) -> Clip:
    """A row that tells the driver why a stage can't go on."""
    reject = Reject(stage="build", error=type(error).__name__, message=str(error))
    return Clip(
        clip_id="", video_id=None, unit_id="", source_path="", status="aborted", reject=reject
    )


class CommitStage:
    """Stores pictures and sound, then commits what became of every row in one part.

    Assets go first: a part never names a file that is not there. Killed between the two, the next
    attempt writes the same bytes to the same places.
    """

    name = "commit"
    holds_weights = False

    def __init__(self, config: BuildConfig, version: Folder) -> None:
        self._config = config
        self._version = version

    def setup(self) -> None:
        pass

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        rows: list[Clip] = []
        outcomes: list[Outcome] = []
        seconds = 0.0
        for clip in clips:
            if clip.status == "aborted":
                yield clip
                continue
            started = time.perf_counter()
            if clip.status == "ok":
                self._store_assets(clip)
            outcomes.append(self._outcome(clip))
            rows.append(clip.model_copy(update={"frames": [], "audio": None}))
            seconds += time.perf_counter() - started
        if outcomes:
            started = time.perf_counter()
            commit_part(self._version, outcomes)
            count_committed(rows, seconds + time.perf_counter() - started)
        yield from rows

    def _store_assets(self, clip: Clip) -> None:
        assets = {
            frame_name(clip.clip_id, number): jpeg for number, jpeg in enumerate(clip.frames, 1)
        }
        if clip.audio is not None:
            assets[audio_name(clip.clip_id, self._config.audio_format)] = clip.audio
        list(transfers(self._version.location, lambda a: self._version.write(*a), assets.items()))

    def _outcome(self, clip: Clip) -> Outcome:
        if clip.status == "ok":
            provenance = clip_provenance(clip, code_version(), full=self._config.provenance)
            line = manifest_line(clip, self._config.audio_format, provenance)
        elif clip.status == "rejected":
            line = reject_line(clip)
        else:
            line = filtered_line(clip)
        return Outcome(
            id=clip.clip_id,
            status=clip.status,
            unit_id=clip.unit_id,
            unit_size=clip.unit_size,
            line=line,
        )

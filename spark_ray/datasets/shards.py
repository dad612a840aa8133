"""Parquet shards: the same clips with their bytes inline, cut by bytes, for training at scale."""

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.exceptions import RayTaskError

from spark_ray.core.schema import CLIP_SCHEMA
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import ClipAssets, all_assets
from spark_ray.datasets.layout import SHARDS

_LEAST_RUNNING = 4
# One clip can't be read without its whole row group. Of clips of 200 kB, 1.1 ms for each against
# 9.5 ms with groups of 64; the file grows by 1 %, and takes three times as long to be read whole.
_ROW_GROUP_BYTES = 1 << 20

SHARD_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "video_id": pa.string(),
        "source_path": pa.string(),
        "label": pa.string(),
        "start": pa.float64(),
        "end": pa.float64(),
        "duration": pa.float64(),
        "num_frames": pa.int32(),
        "frame_times": pa.list_(pa.float64()),
        "frames": pa.list_(pa.binary()),
        "audio": pa.binary(),
        "caption": pa.string(),
        "all_captions": pa.list_(pa.string()),
        "transcript": pa.string(),
        "language": pa.string(),
        "segments": CLIP_SCHEMA.field("transcript").type.field("segments").type,
        "scenes": CLIP_SCHEMA.field("scenes").type,
        "video_info": CLIP_SCHEMA.field("video").type,
        "meta": pa.string(),
    }
)
"""`frames` are JPEG files, `audio` is a FLAC or WAV file, `meta` the manifest's as JSON."""

# Those of the others would be half of the footer, which comes before any clip that is read.
_STATISTICS = ["id", "video_id", "source_path", "label", "duration", "num_frames", "language"]


class ShardWriter:
    """Cuts a stream of manifest lines into shards and has Ray tasks write them.

    Which clips share a shard follows from their order and sizes alone, so doing it again writes the
    same shards.
    """

    def __init__(self, version: Folder, shard_bytes: int) -> None:
        self._version = version
        self._shard_bytes = shard_bytes
        # As many as the cluster has CPUs, and some for a small one that grows while they run.
        cpus = int(ray.cluster_resources().get("CPU", 1))
        self._most_running = max(_LEAST_RUNNING, cpus)
        self._write = ray.remote(write_shard).options(num_cpus=1, max_retries=3)
        self._lines: list[dict[str, Any]] = []
        self._bytes = 0
        self._count = 0
        self._running: list[Any] = []
        version.remove(SHARDS)

    def add(self, line: Mapping[str, Any]) -> str:
        """Put a clip into the current shard, whose name is returned."""
        size = line["meta"]["num_bytes"]
        if self._lines and self._bytes + size > self._shard_bytes:
            self._flush()
        # The caller goes on to change its line.
        self._lines.append(json.loads(json.dumps(line)))
        self._bytes += size
        return self._name

    def close(self) -> None:
        """Write the last shard and wait for all."""
        if self._lines:
            self._flush()
        self._finish(self._running)

    @staticmethod
    def _finish(tasks: list[Any]) -> None:
        try:
            ray.get(tasks)
        except RayTaskError as error:
            # As an error of ours, e.g. of a full disk, it is one sentence; Ray's has two pages.
            raise error.cause from None

    @property
    def _name(self) -> str:
        return f"{SHARDS}/{self._count:05d}.parquet"

    def _flush(self) -> None:
        if len(self._running) >= self._most_running:
            (done, *_), self._running = ray.wait(self._running, num_returns=1)
            self._finish([done])
        self._running.append(self._write.remote(self._version, self._name, self._lines))
        self._lines, self._bytes, self._count = [], 0, self._count + 1


def write_shard(version: Folder, name: str, lines: list[dict[str, Any]]) -> None:
    """Read the clips' files and write one Parquet file."""
    version.write(name, parquet_bytes(all_assets(version, lines)))


def parquet_bytes(clips: Iterable[ClipAssets]) -> bytes:
    """One Parquet file of `SHARD_SCHEMA`."""
    file = io.BytesIO()
    with pq.ParquetWriter(
        file, SHARD_SCHEMA, compression="zstd", write_statistics=_STATISTICS
    ) as writer:
        for group in _row_groups(clips):
            writer.write_table(pa.Table.from_pylist(group, schema=SHARD_SCHEMA))
    return file.getvalue()


def _row_groups(clips: Iterable[ClipAssets]) -> Iterator[list[dict[str, Any]]]:
    group: list[dict[str, Any]] = []
    size = 0
    for clip in clips:
        clip_size = sum(map(len, clip.frames)) + len(clip.audio or b"")
        if group and size + clip_size > _ROW_GROUP_BYTES:
            yield group
            group, size = [], 0
        group.append(_row(clip))
        size += clip_size
    if group:
        yield group


def _row(clip: ClipAssets) -> dict[str, Any]:
    meta = clip.line["meta"]
    return {
        **{name: meta[name] for name in SHARD_SCHEMA.names if name in meta},
        "id": clip.line["id"],
        "frames": clip.frames,
        "audio": clip.audio,
        "meta": json.dumps(meta, ensure_ascii=False),
    }

"""A published dataset as training and evaluation see it: an index of clips, split by content.

The index is one Arrow table of a few hundred bytes a clip, so that every worker can have it (in
Ray's object store it exists once a node); pictures and sound are read when a clip's turn comes.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NamedTuple, get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from spark_ray.core.errors import DatasetError, StorageError, unknown_choice
from spark_ray.core.provenance import content_hash
from spark_ray.core.storage import Folder, open_read
from spark_ray.datasets.layout import frame_name, has_audio
from spark_ray.datasets.reading import BrokenLines, manifest_of, read_manifest

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)

# Of twenty videos, 2 are for the test and 1 is for validation.
_TEST, _VALIDATION, _OF = 2, 1, 20

INDEX_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "video_id": pa.string(),
        "split": pa.string(),
        "label": pa.string(),
        "source_path": pa.string(),
        "duration": pa.float64(),
        "caption": pa.string(),
        "transcript": pa.string(),
        "frame_times": pa.list_(pa.float64()),
        "has_files": pa.bool_(),
        "audio": pa.string(),
        "has_audio": pa.bool_(),
        "shard": pa.string(),
        "row": pa.int64(),
    }
)
"""`shard` and `row` say where a clip's bytes lie inline; `has_files` that they also are files."""


class ClipBytes(NamedTuple):
    """What a clip looks and sounds like: JPEG files in order, and a FLAC or WAV file."""

    frames: list[bytes]
    audio: bytes | None


@dataclass(frozen=True)
class SampleIndex:
    """Clips of one dataset version, in the order of its manifest. Rows are of `INDEX_SCHEMA`."""

    version: Folder
    manifest: str
    table: pa.Table
    broken: int

    @property
    def location(self) -> str:
        return self.version / self.manifest

    def manifest_sha256(self) -> str:
        """SHA-256 of the manifest, as 64 hex characters."""
        with open_read(self.location) as file:
            return content_hash(file)

    def split(self, name: str) -> "SampleIndex":
        """The clips of one split, or of all for `all`.

        Raises:
            ConfigError: there is no such split.
            DatasetError: it has no clip.
        """
        if name == "all":
            chosen = self.table
        elif name in SPLITS:
            chosen = self.table.filter(pc.equal(self.table["split"], name))
        else:
            raise unknown_choice("split", name, [*SPLITS, "all"])
        if not chosen.num_rows:
            counts = Counter(self.table["split"].to_pylist())
            found = ", ".join(f"{key} {counts[key]}" for key in SPLITS)
            raise DatasetError(
                f"{self.location}: its {name} split is empty (clips: {found}); videos are dealt "
                "to the splits by their content, so a larger dataset fills them all"
            )
        return SampleIndex(self.version, self.manifest, chosen, self.broken)

    def count(self, column: str) -> int:
        """Clips that have a caption, a transcript, sound (`has_audio`), frames (`frame_times`)."""
        values = self.table[column]
        if column == "frame_times":
            return int(pc.sum(pc.greater(pc.list_value_length(values), 0)).as_py() or 0)
        if column == "has_audio":
            return int(pc.sum(values).as_py() or 0)
        return int(values.length() - values.null_count)


def split_of(video_id: str) -> Split:
    """The split of a video, from its content alone.

    It is the same in every version and every dataset that holds the video, under whatever name, and
    all clips of a video share it: nothing that was learned from can come up in a test.
    """
    number = int.from_bytes(hashlib.sha256(f"split:{video_id}".encode()).digest()[:8], "big") % _OF
    if number < _TEST:
        return "test"
    return "validation" if number < _TEST + _VALIDATION else "train"


def load_index(reference: str) -> SampleIndex:
    """Read the manifest that a dataset's reference (`path[@version]`) or a `.jsonl` file means.

    Broken and empty lines are counted and left out.

    Raises:
        DatasetError: there is no such dataset, or it has no clip.
    """
    folder, name = manifest_of(reference)
    broken = BrokenLines()
    rows_of_shard: Counter[str] = Counter()
    rows = []
    for line in read_manifest(folder, broken, name):
        meta = line["meta"]
        shard = meta.get("shard")
        rows.append(
            {
                "id": line["id"],
                "video_id": meta.get("video_id") or line["id"],
                "split": split_of(meta.get("video_id") or line["id"]),
                "label": meta.get("label"),
                "source_path": meta["source_path"],
                "duration": meta["duration"],
                "caption": meta["caption"] or None,
                "transcript": meta["transcript"] or None,
                "frame_times": meta["frame_times"],
                "has_files": line["frames_dir"] is not None,
                "audio": line["audio"],
                "has_audio": has_audio(line),
                "shard": shard,
                "row": rows_of_shard[shard] if shard else None,
            }
        )
        if shard:
            rows_of_shard[shard] += 1
    if not rows:
        raise DatasetError(
            f"{folder / name}: holds no clip ({broken.count} broken or empty lines); "
            "'spark-ray data stats' says what is wrong with them"
        )
    return SampleIndex(folder, name, pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), broken.count)


def read_clip(
    version: Folder,
    row: Mapping[str, Any],
    *,
    frames: Sequence[int] | None = None,
    audio: bool = True,
) -> ClipBytes:
    """Pictures and sound of a row of the index, from its files or from its shard.

    Args:
        frames: which of its frames, counted from 0; all of them if not given.
        audio: whether the sound is wanted.

    Raises:
        DatasetError: they are not where the manifest says.
    """
    try:
        wanted = range(len(row["frame_times"])) if frames is None else frames
        if not row["has_files"]:
            found = _read_from_shard(version, row, audio=audio)
            return ClipBytes([found.frames[number] for number in wanted], found.audio)
        pictures = [version.read(frame_name(row["id"], number + 1)) for number in wanted]
        return ClipBytes(pictures, version.read(row["audio"]) if audio and row["audio"] else None)
    except StorageError as error:
        raise DatasetError(
            f"clip {row['id']}: a file that the manifest names is gone or unreadable ({error}); "
            "restore it, or build the dataset again"
        ) from error


def _read_from_shard(version: Folder, row: Mapping[str, Any], *, audio: bool) -> ClipBytes:
    wanted = ["id", "frames", *(["audio"] if audio else [])]
    location = version / row["shard"]
    with open_read(location) as source:
        file = pq.ParquetFile(source, metadata=_footer(location))
        place = row["row"]
        for group in range(file.num_row_groups):
            count = file.metadata.row_group(group).num_rows
            if place < count:
                columns = file.read_row_group(group, columns=wanted)
                found = columns.slice(place, 1).to_pylist()[0]
                if found["id"] == row["id"]:
                    return ClipBytes(found["frames"], found.get("audio"))
                break
            place -= count
    raise DatasetError(f"{location}: does not hold clip {row['id']} in row {row['row']}")


@lru_cache(maxsize=64)  # of some hundred kB each
def _footer(location: str) -> pq.FileMetaData:
    with open_read(location) as source:
        return pq.read_metadata(source)

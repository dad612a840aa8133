"""The bytes of published clips, wherever the format put them."""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow.parquet as pq

from spark_ray.core.errors import DatasetError
from spark_ray.core.storage import Folder, open_read
from spark_ray.core.transfers import transfers
from spark_ray.datasets.layout import MANIFEST, asset_folder

_ROWS_AT_ONCE = 16


class ClipAssets(NamedTuple):
    """A manifest line with what it stands for."""

    line: dict[str, Any]
    frames: list[bytes]
    audio: bytes | None


def manifest_lines(version: Folder) -> Iterator[dict[str, Any]]:
    """The lines of a published manifest in order.

    Raises:
        DatasetError: a line is broken, which publishing never leaves behind.
    """
    for number, raw in enumerate(version.lines(MANIFEST), 1):
        try:
            yield json.loads(raw)
        except ValueError as error:
            raise DatasetError(
                f"{version / MANIFEST}, line {number}: is not JSON; the file was changed after it "
                "was published ('spark-ray data stats' lists every such line)"
            ) from error


def published_clips(version: Folder) -> Iterator[ClipAssets]:
    """Every clip with its bytes, in manifest order, holding a few clips at a time."""
    for shard, lines in groupby(manifest_lines(version), _inline_shard):
        if shard is None:
            yield from all_assets(version, lines)
        else:
            yield from _from_shard(version, shard, lines)


def all_assets(version: Folder, lines: Iterable[dict[str, Any]]) -> Iterator[ClipAssets]:
    """Clips that have files, each with its bytes, in the order of their lines."""
    return transfers(version.location, lambda line: read_assets(version, line), lines)


def read_assets(version: Folder, line: dict[str, Any]) -> ClipAssets:
    """Pictures and sound of a clip from its files."""
    folder, audio = f"{asset_folder(line['id'])}/frames", line["audio"]
    numbers = range(1, line["meta"]["num_frames"] + 1)
    frames = [version.read(f"{folder}/frame_{number:06d}.jpg") for number in numbers]
    return ClipAssets(line, frames, version.read(audio) if audio else None)


def _inline_shard(line: dict[str, Any]) -> str | None:
    """The shard that alone holds the clip's bytes; None where it has files."""
    return line["meta"].get("shard") if line["frames_dir"] is None else None


def _from_shard(
    version: Folder, shard: str, lines: Iterator[dict[str, Any]]
) -> Iterator[ClipAssets]:
    with open_read(version / shard) as file:
        batches = pq.ParquetFile(file).iter_batches(
            _ROWS_AT_ONCE, columns=["id", "frames", "audio"]
        )
        rows = (row for batch in batches for row in batch.to_pylist())
        for line, row in zip(lines, rows, strict=True):
            if line["id"] != row["id"]:
                raise DatasetError(
                    f"{version / shard}: holds {row['id']} where {line['id']} belongs"
                )
            yield ClipAssets(line, row["frames"], row["audio"])

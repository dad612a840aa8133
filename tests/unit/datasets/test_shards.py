"""Shards are read a clip at a time by training, and as a whole by others."""

import io
import json
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow.parquet as pq
import pytest
from fake_version import make_clip

from spark_ray.core.storage import Folder
from spark_ray.datasets import samples
from spark_ray.datasets.assets import ClipAssets
from spark_ray.datasets.layout import clip_provenance, manifest_line
from spark_ray.datasets.samples import load_index, read_clip
from spark_ray.datasets.shards import parquet_bytes

CLIPS, FRAME = 40, 100_000


class CountingFile(io.BytesIO):
    """A shard in memory that counts the bytes that are taken from it."""

    taken = 0

    def read(self, size: int | None = -1, /) -> bytes:
        data = super().read(size)
        CountingFile.taken += len(data)
        return data


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """A manifest and one shard: clips of two incompressible frames, 200 kB each."""
    version = Folder(str(tmp_path_factory.mktemp("set")))
    rng = np.random.default_rng(0)
    clips = []
    for number in range(CLIPS):
        clip = make_clip(number, source=f"/films/{number}.mp4")
        line = manifest_line(clip, None, clip_provenance(clip, "test", full=False))
        line |= {"frames_dir": None, "audio": None}
        line["meta"]["shard"] = "shards/00000.parquet"
        clips.append(ClipAssets(line, [rng.bytes(FRAME) for _ in range(2)], None))
    version.write("shards/00000.parquet", parquet_bytes(clips))
    lines = [json.dumps(clip.line).encode() for clip in clips]
    version.write("clips.jsonl", b"\n".join(lines) + b"\n")
    return version


def rows(version: Folder) -> list[dict[str, Any]]:
    return load_index(version / "clips.jsonl").table.to_pylist()


def test_every_clip_is_found_where_the_index_says(version: Folder):
    table = pq.read_table(version / "shards/00000.parquet")
    assert table["id"].to_pylist() == [row["id"] for row in rows(version)]
    for row, frames in zip(rows(version), table["frames"].to_pylist(), strict=True):
        assert read_clip(version, row).frames == frames


def test_one_clip_takes_about_its_own_bytes(version: Folder, monkeypatch: pytest.MonkeyPatch):
    """Training reads clips in random order: with their neighbours, it would wait for data."""

    def open_counting(location: str) -> BinaryIO:
        return CountingFile(Path(location).read_bytes())

    monkeypatch.setattr(samples, "open_read", open_counting)
    row = rows(version)[CLIPS // 2]
    read_clip(version, row)  # the footer is read once
    CountingFile.taken = 0
    read_clip(version, row)
    assert 2 * FRAME <= CountingFile.taken < 1_200_000

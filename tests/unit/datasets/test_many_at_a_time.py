"""Clips' bytes on object storage are read and copied many at a time, in order."""

import io
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow.parquet as pq
import pytest
from fake_version import make_clip, write_version

from spark_ray.core.storage import Folder
from spark_ray.datasets import replay, shards
from spark_ray.datasets.assets import manifest_lines, published_clips
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.shards import ShardWriter, write_shard

REMOTE = "memory://sets/films"
CLIPS = 16


@pytest.fixture
def version(tmp_path: Path) -> Iterator[Folder]:
    """A published version on what fsspec takes for remote storage."""
    clips = [make_clip(number, frames=1) for number in range(CLIPS)]
    local, _ = write_version(tmp_path / "films", clips)
    remote = Folder(f"{REMOTE}/v1")
    for name in local.names():
        remote.write(name, local.read(name))
    yield remote
    fsspec.filesystem("memory").rm("/sets", recursive=True)


@pytest.fixture
def together(version: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are read and copied only while several others are, too."""
    barrier = threading.Barrier(CLIPS, timeout=20)

    def wait_for_others(method: str, name_at: int) -> None:
        original = getattr(Folder, method)

        def waiting(self: Folder, *arguments: Any) -> Any:
            if arguments[name_at].endswith(".jpg"):
                barrier.wait()
            return original(self, *arguments)

        monkeypatch.setattr(Folder, method, waiting)

    wait_for_others("read", 0)
    wait_for_others("copy_from", 1)


@pytest.mark.usefixtures("together")
def test_a_shard_is_read_many_files_at_a_time(version: Folder) -> None:
    lines = list(manifest_lines(version))
    write_shard(version, "shards/00000.parquet", lines)
    rows = pq.read_table(io.BytesIO(version.read("shards/00000.parquet"))).to_pylist()
    assert [row["id"] for row in rows] == [line["id"] for line in lines]


@pytest.mark.usefixtures("together")
def test_clips_to_export_are_read_many_at_a_time(version: Folder) -> None:
    clips = list(published_clips(version))
    assert [clip.line for clip in clips] == list(manifest_lines(version))


@pytest.mark.usefixtures("together")
def test_a_replay_copies_many_files_at_a_time(version: Folder) -> None:
    config = BuildConfig.from_values(input=["/films"], output=REMOTE)
    videos = {line["meta"]["video_id"] for line in manifest_lines(version)}
    carried = replay._Carried(videos, retried=frozenset())
    replay._carry_over(version, Folder(f"{REMOTE}/v2"), config, CLIPS, carried)
    there, copied = (
        fsspec.filesystem("memory").find(f"/sets/films/{v}/data") for v in ("v1", "v2")
    )
    assert [name.replace("/v1/", "/v2/") for name in there] == copied
    assert len(copied) == CLIPS


@pytest.mark.parametrize(("cpus", "running"), [(1, 4), (12, 12)])
def test_as_many_shards_are_written_at_once_as_the_cluster_has_cpus(
    version: Folder, monkeypatch: pytest.MonkeyPatch, cpus: int, running: int
) -> None:
    most: list[int] = []

    class Remote:
        def options(self, **_: object) -> "Remote":
            return self

        def remote(self, *_: object) -> object:
            return object()

    def wait(tasks: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        most.append(len(tasks))
        return tasks[:1], tasks[1:]

    fake = {"remote": lambda _: Remote(), "wait": wait, "get": lambda _: None}
    for name, value in {**fake, "cluster_resources": lambda: {"CPU": float(cpus)}}.items():
        monkeypatch.setattr(shards.ray, name, value)
    writer = ShardWriter(version, shard_bytes=1)
    for line in manifest_lines(version):
        writer.add(line)
    writer.close()
    assert set(most) == {running}

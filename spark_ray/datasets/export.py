"""A published dataset in forms that other tools read."""

import csv
import io
import json
import tarfile
from collections.abc import Iterable, Iterator

from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.progress import ProgressReport
from spark_ray.core.storage import Folder
from spark_ray.datasets.assets import ClipAssets, manifest_lines, published_clips
from spark_ray.datasets.layout import EXPORT_FORMATS, METADATA, create_output, resolve_published
from spark_ray.datasets.shards import parquet_bytes

_SHARD_BYTES = 256 << 20
_CSV_COLUMNS = (
    "source_path", "label", "start", "end", "duration", "num_frames", "caption", "transcript",
    "language",
)  # fmt: skip


def export_dataset(reference: str, to: str, form: str) -> int:
    """Write the clips of a dataset to the folder `to`; returns how many.

    WebDataset shards hold, for each clip, `<id>.json` (the manifest line), `<id>.txt` (the
    caption), `<id>.000001.jpg` … and the sound. `metadata.json` goes along and is written last.

    Raises:
        ConfigError: the form is unknown, or `to` already holds files, or can't be written to.
        DatasetError: there is no such dataset.
    """
    if form not in EXPORT_FORMATS:
        raise unknown_choice("--format", form, EXPORT_FORMATS)
    version = resolve_published(reference)
    target = Folder(to.rstrip("/"))
    create_output(target, "--to")
    if target.names():
        raise ConfigError(f"--to {to}: holds files already; name a new or empty folder")
    total = json.loads(version.read(METADATA))["statistics"]["clips"]
    with ProgressReport("Exporting", total, "clips") as progress:
        if form == "csv":
            count = _write_csv(version, target)
            progress.advance(count)
        else:
            count = 0
            for number, clips in enumerate(_by_size(published_clips(version))):
                data = parquet_bytes(clips) if form == "parquet" else _tar_bytes(clips)
                target.write(f"{number:05d}.{'parquet' if form == 'parquet' else 'tar'}", data)
                count += len(clips)
                progress.advance(len(clips))
    target.write(METADATA, version.read(METADATA))
    return count


def _by_size(clips: Iterable[ClipAssets]) -> Iterator[list[ClipAssets]]:
    shard: list[ClipAssets] = []
    size = 0
    for clip in clips:
        if shard and size + clip.line["meta"]["num_bytes"] > _SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(clip)
        size += clip.line["meta"]["num_bytes"]
    if shard:
        yield shard


def _tar_bytes(clips: Iterable[ClipAssets]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for clip in clips:
            for name, data in _members(clip):
                member = tarfile.TarInfo(f"{clip.line['id']}.{name}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def _members(clip: ClipAssets) -> Iterator[tuple[str, bytes]]:
    yield "json", json.dumps(clip.line, ensure_ascii=False).encode()
    yield "txt", (clip.line["meta"]["caption"] or "").encode()
    for number, jpeg in enumerate(clip.frames, 1):
        yield f"{number:06d}.jpg", jpeg
    if clip.audio is not None:
        yield ("flac" if clip.audio[:4] == b"fLaC" else "wav"), clip.audio


def _write_csv(version: Folder, target: Folder) -> int:
    count = 0
    with target.writer("clips.csv") as file:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        writer = csv.writer(text)
        writer.writerow(("id", *_CSV_COLUMNS))
        for count, line in enumerate(manifest_lines(version), 1):  # noqa: B007
            writer.writerow((line["id"], *(line["meta"].get(name) for name in _CSV_COLUMNS)))
        text.detach()
    return count

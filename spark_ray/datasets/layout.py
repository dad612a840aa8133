"""Names inside a dataset version, and the shape of its lines."""

import errno
import re
import tempfile
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from spark_ray import __version__
from spark_ray.core.errors import ConfigError, DatasetError
from spark_ray.core.provenance import now_iso
from spark_ray.core.schema import Clip
from spark_ray.core.storage import Folder, is_remote, local_path, storage_errors

MANIFEST = "manifest.jsonl"
METADATA = "metadata.json"
REJECTS = "rejects.jsonl"
FILTERED = "filtered.jsonl"
REPORT = "report.html"
DATA = "data"
PARTS = "parts"
RECIPE = f"{PARTS}/recipe.json"
_WRITING = f"{PARTS}/writing"
SOURCES = "sources.jsonl"
SHARDS = "shards"
EXPORT_FORMATS = ("webdataset", "parquet", "csv")

_VERSION = re.compile(r"v(\d+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_WRONG_PLACE = frozenset(
    (
        errno.EACCES, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR,
        errno.EPERM, errno.EROFS,
    )
)  # fmt: skip
"""Why a folder can't be made or written to, where another one could."""


def dataset_name(output: str) -> str:
    """The dataset's name: the last part of its location.

    Raises:
        ConfigError: it has characters that don't go into a URL or a shell line unquoted.
    """
    name = PurePosixPath(output.rstrip("/")).name
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"output: {name!r} can't be a dataset's name; use letters, digits, '.', '_' and '-'"
        )
    return name


def writable(version: Folder) -> Folder:
    """The version as a build uses it: half-written files lie among the parts, and go with them."""
    return Folder(version.location, scratch=_WRITING)


def create_output(folder: Folder, setting: str) -> None:
    """Make the folder that a setting named, if it is local, and see that it can be written to.

    Raises:
        ConfigError: it can't; the message names the setting.
        StorageError: the disk is full, or fails.
    """
    if is_remote(folder.location):
        return
    path = local_path(folder.location)
    with storage_errors(folder.location, "write"):
        try:
            path.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=path).close()
        except OSError as error:
            if error.errno not in _WRONG_PLACE:
                raise
            raise ConfigError(
                f"{setting}: the folder {folder.location} can't be made or written to "
                f"({error.strerror}); name one that can"
            ) from error


def is_published(version: Folder) -> bool:
    return version.exists(METADATA)


def is_unfinished(version: Folder) -> bool:
    return not is_published(version) and version.exists(RECIPE)


def numbered_versions(dataset: Folder) -> list[str]:
    """Versions called vN, in order of N."""
    numbered = [name for name in dataset.children() if _VERSION.fullmatch(name)]
    return sorted(numbered, key=_version_number)


def _version_number(name: str) -> int:
    match = _VERSION.fullmatch(name)
    return int(match[1]) if match else 0


def next_version(dataset: Folder) -> str:
    """The number after the highest that is in use; an empty or abandoned folder is not."""
    used = [
        _version_number(name)
        for name in numbered_versions(dataset)
        if is_published(dataset.sub(name)) or is_unfinished(dataset.sub(name))
    ]
    return f"v{max(used, default=0) + 1}"


def resolve_published(reference: str) -> Folder:
    """The version folder that `path`, `path@version` or `path/version` names; the newest if none.

    Raises:
        DatasetError: there is no such published version; it lists those that exist.
    """
    location, separator, version = reference.rpartition("@")
    if not separator or "/" in version:
        location, version = reference, ""
    folder = Folder(location.rstrip("/"))
    if not version and is_published(folder):
        return folder
    published = [name for name in _versions(folder) if is_published(folder.sub(name))]
    if version and version in published:
        return folder.sub(version)
    if not version and published:
        return folder.sub(published[-1])
    raise DatasetError(f"{reference}: {_why_none(folder, version, published)}")


def _why_none(dataset: Folder, version: str, published: list[str]) -> str:
    """What stands where a published version was looked for."""
    children = dataset.children()
    at_hand = [] if published else [dataset, *map(dataset.sub, children)]
    for at in [dataset.sub(version)] if version else at_hand:
        name = at.location.rpartition("/")[2]
        if is_unfinished(at):
            return f"{name} is not finished; run its build command again to resume it"
        if at.exists(REJECTS):
            return (
                f"{name} was not published, as no clip was left: {at / REJECTS} says what failed, "
                "and filters took the rest; its build command, run again, tries all files"
            )
    if published:
        return f"no such published version; there are {', '.join(published)}"
    datasets = [name for name in children if _holds_published(dataset.sub(name))]
    if datasets:
        return f"no such published dataset, but a folder of some; name one: {', '.join(datasets)}"
    is_there = children or dataset.names()
    nothing = "this folder holds none" if is_there else "there is nothing at this path"
    return f"no such published dataset; {nothing}"


def _holds_published(dataset: Folder) -> bool:
    return any(is_published(dataset.sub(name)) for name in dataset.children())


def _versions(dataset: Folder) -> list[str]:
    names = dataset.children()
    return sorted(names, key=lambda name: (_version_number(name), name))


def asset_folder(clip_id: str) -> str:
    return f"{DATA}/{clip_id[:2]}/{clip_id}"


def frame_name(clip_id: str, number: int) -> str:
    """Path of a frame, counted from 1."""
    return f"{asset_folder(clip_id)}/frames/frame_{number:06d}.jpg"


def audio_name(clip_id: str, audio_format: str) -> str:
    return f"{asset_folder(clip_id)}/audio.{audio_format}"


def manifest_line(clip: Clip, audio_format: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The published record of a clip. Field names are a contract: more may come, none may go."""
    assert clip.video is not None
    assert clip.end_s is not None
    transcript, caption = clip.transcript, clip.caption
    return {
        "id": clip.clip_id,
        "frames_dir": f"{asset_folder(clip.clip_id)}/frames",
        "audio": audio_name(clip.clip_id, audio_format) if clip.audio else None,
        "meta": {
            "source_path": clip.source_path,
            "video_id": clip.video_id,
            "label": clip.label,
            "start": round(clip.start_s, 6),
            "end": round(clip.end_s, 6),
            "duration": round(clip.duration_s, 6),
            "num_frames": len(clip.frames),
            "num_bytes": sum(map(len, clip.frames)) + len(clip.audio or b""),
            "has_audio": clip.audio is not None,
            "frame_times": clip.frame_times,
            # 0 for the first, which has none: Arrow's JSON reader, and so `datasets`, fails on
            # files in which a list begins with null.
            "frame_motion": [s.motion or 0.0 for s in clip.samples if s.dropped_by is None],
            "dropped_frames": [
                sample.model_dump() for sample in clip.samples if sample.dropped_by is not None
            ],
            "caption": caption.text if caption else None,
            "all_captions": caption.all_captions if caption else [],
            "transcript": transcript.text if transcript else None,
            "language": transcript.language if transcript else None,
            "segments": [s.model_dump() for s in transcript.segments] if transcript else [],
            "scenes": [scene.model_dump() for scene in clip.scenes],
            "video_info": clip.video.model_dump(),
            "provenance": provenance,
        },
    }


def has_audio(line: Mapping[str, Any]) -> bool:
    """Whether a clip has sound, from its manifest line.

    Lines of older versions don't tell, so that for a clip without files the source's codec must do.
    """
    meta = line["meta"]
    if meta.get("has_audio") is not None:
        return bool(meta["has_audio"])
    if line.get("frames_dir") is not None:
        return line.get("audio") is not None
    return meta["video_info"].get("audio_codec") is not None


def clip_provenance(clip: Clip, code: str, *, full: bool) -> dict[str, Any]:
    """Where a clip comes from. The configuration, the same for all, is added when publishing."""
    return {
        "source_hash": clip.source_hash,
        "processing_timestamp": now_iso(),
        "pipeline_version": __version__,
        "code_version": code,
        "lineage": {
            "parent_hash": clip.source_hash,
            "processing_steps": [step.model_dump() for step in clip.steps] if full else [],
        },
    }


def reject_line(clip: Clip) -> dict[str, Any]:
    """What is known of a clip or file that failed, enough to try it again."""
    assert clip.reject is not None
    return _identity(clip) | clip.reject.model_dump()


def filtered_line(clip: Clip) -> dict[str, Any]:
    """What is known of a sound clip that a filter turned away, and the value that it saw."""
    assert clip.filtered is not None
    return _identity(clip) | clip.filtered.model_dump()


def _identity(clip: Clip) -> dict[str, Any]:
    """Which span of which file a clip is."""
    return {
        "id": clip.clip_id,
        "unit_id": clip.unit_id,
        "source_path": clip.source_path,
        "source_hash": clip.source_hash,
        "start": clip.start_s,
        "end": clip.end_s,
    }

"""From committed parts to a published version: sorted, de-duplicated, and visible all at once."""

import hashlib
import json
import platform
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import av
import ray

from spark_ray import __version__
from spark_ray.core.provenance import code_version, git_commit, now_iso
from spark_ray.core.storage import Folder, storage_errors
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import (
    DATA,
    FILTERED,
    MANIFEST,
    METADATA,
    PARTS,
    RECIPE,
    REJECTS,
    REPORT,
    SHARDS,
    SOURCES,
    dataset_name,
)
from spark_ray.datasets.ledger import (
    Outcome,
    Recipe,
    dump_json,
    part_names,
    read_models,
)
from spark_ray.datasets.plan import SourceRecord
from spark_ray.datasets.report import write_report
from spark_ray.datasets.shards import ShardWriter
from spark_ray.datasets.statistics import ClipStatistics, FilteredOut, survivor_funnel

_SORTED_AT_ONCE_BYTES = 2 << 20
_MOST_FILES = 128
_RANKS = {"ok": 0, "filtered": 1, "rejected": 2}
"""A clip that came once is not lost when another attempt at it fails, as that of a replay may."""


@dataclass(frozen=True)
class Publication:
    """What was published. `captioned` and `transcribed` are None where nobody was asked to."""

    clips: int
    captioned: int | None
    transcribed: int | None
    rejects: int
    copies: int
    filtered: int
    frames: int
    hours: float
    manifest_sha256: str


@dataclass
class _Compaction:
    """What one pass over the parts found."""

    statistics: ClipStatistics = field(default_factory=ClipStatistics)
    rejects: Counter[tuple[str, str]] = field(default_factory=Counter)
    filtered: dict[str, FilteredOut] = field(default_factory=dict)
    manifest: Any = field(default_factory=hashlib.sha256)


def publish(
    config: BuildConfig, version: Folder, recipe: Recipe, records: Iterable[SourceRecord]
) -> Publication | None:
    """Publish what the parts hold, or None, with the rejects written, if that is no clip.

    `metadata.json` comes last: until then nobody sees a dataset here, and a publication that was
    interrupted is done again from the parts, with the same result.
    """
    found = _compact(config, version)
    if not found.statistics.clips:
        discard(version)
        return None
    metadata = _metadata(config, version, recipe, records, found)
    write_report(version, metadata)
    version.write(METADATA, dump_json(metadata))
    clear_scaffold(version, metadata)
    return publication_of(metadata)


def publication_of(metadata: Mapping[str, Any]) -> Publication:
    """What the `metadata.json` of a published version says of it."""
    statistics, funnel = metadata["statistics"], metadata["funnel"]
    config = metadata["config"]
    return Publication(
        clips=statistics["clips"],
        captioned=statistics["captioned"] if config["caption_backend"] != "none" else None,
        transcribed=(
            statistics["transcribed"] if config["transcription_backend"] != "none" else None
        ),
        rejects=sum(entry["count"] for entry in funnel["rejects"]),
        copies=funnel["files"]["duplicate"],
        filtered=funnel["files"]["filtered"] + funnel["clips"]["filtered"],
        frames=statistics["frames"],
        hours=statistics["hours"],
        manifest_sha256=metadata["manifest_sha256"],
    )


def clear_scaffold(version: Folder, metadata: Mapping[str, Any]) -> None:
    """Remove what only the build of a published version needed; may be done again at any time."""
    if metadata["format"] == "parquet":
        version.remove(DATA)
    version.remove(PARTS)


def discard(version: Folder) -> None:
    """Undo an unfinished build, or what a kill left of one; only what it says of losses stays.

    The recipe goes first: without it nothing here is taken for a build to go on with. The parts go
    last: where they are, this is done again.
    """
    if version.exists(PARTS):
        for name in (RECIPE, DATA, SHARDS, MANIFEST, SOURCES, PARTS):
            version.remove(name)


def _compact(config: BuildConfig, version: Folder) -> _Compaction:
    """Write manifest, shards, and what was rejected or filtered, from the parts, sorted by id."""
    found = _Compaction()
    settings = config.content_settings() if config.provenance else None
    shards = ShardWriter(version, config.shard_bytes) if config.format != "files" else None
    with (
        version.writer(MANIFEST) as manifest,
        version.writer(REJECTS) as rejects,
        version.writer(FILTERED) as filtered,
    ):
        for outcome in sorted_outcomes(version):
            line = outcome.line
            if outcome.status == "rejected":
                found.rejects[line["stage"], line["error"]] += 1
                rejects.write(json_line(line))
                continue
            if outcome.status == "filtered":
                entry = found.filtered.setdefault(line["name"], FilteredOut(line["limit"]))
                entry.add(line["source_path"], line["value"])
                filtered.write(json_line(line))
                continue
            found.statistics.add(line)
            if settings is not None:
                line["meta"]["provenance"]["config"] = settings
            if shards is not None:
                line["meta"]["shard"] = shards.add(line)
                if config.format == "parquet":
                    line["frames_dir"] = line["audio"] = None
            data = json_line(line)
            found.manifest.update(data)
            manifest.write(data)
        if shards is not None:
            shards.close()
    return found


def sorted_outcomes(version: Folder) -> Iterator[Outcome]:
    """Outcomes of all parts in order of id, each once: the best, where there are several.

    Parts come in the order in which work happened to finish. They are dealt out to files on the
    local disk by the first two digits of their ids, which are of a hash, so that each file is small
    enough to be sorted in memory. The files have no names, and go when the process does.
    """
    names = part_names(version)
    count = min(_MOST_FILES, 1 + sum(version.size(name) for name in names) // _SORTED_AT_ONCE_BYTES)
    bounds = [f"{256 * i // count:02x}" for i in range(1, count)]
    with storage_errors(tempfile.gettempdir(), "write"), ExitStack() as stack:
        files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(count)]
        for name in names:
            for line in version.lines(name):
                identity = json.loads(line)["id"]
                files[bisect_right(bounds, identity)].write(line)
        for file in files:
            file.seek(0)
            outcomes: dict[str, Outcome] = {}
            for outcome in map(Outcome.model_validate_json, file):
                other = outcomes.get(outcome.id)
                if other is None or _RANKS[outcome.status] < _RANKS[other.status]:
                    outcomes[outcome.id] = outcome
            for identity in sorted(outcomes):
                yield outcomes.pop(identity)


def json_line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, separators=(",", ":")) + "\n").encode()


def _metadata(
    config: BuildConfig,
    version: Folder,
    recipe: Recipe,
    records: Iterable[SourceRecord],
    found: _Compaction,
) -> dict[str, Any]:
    return {
        "name": dataset_name(config.output),
        "version": version.location.rpartition("/")[2],
        "parent": recipe.parent,
        "created": now_iso(),
        "started": recipe.started,
        "format": config.format,
        "manifest_sha256": found.manifest.hexdigest(),
        "fingerprint": recipe.fingerprint,
        "config": recipe.settings,
        "models": {stage: model.model_dump() for stage, model in read_models(version)},
        "pipeline_version": __version__,
        "code_version": code_version(),
        "git_commit": git_commit(),
        "environment": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "ray": ray.__version__,
            "av": av.__version__,
            "ffmpeg": {name: ".".join(map(str, v)) for name, v in av.library_versions.items()},
        },
        "statistics": found.statistics.as_dict(),
        "funnel": survivor_funnel(records, found.statistics, found.rejects, found.filtered, config),
        "files": {
            "manifest": MANIFEST,
            "rejects": REJECTS,
            "filtered": FILTERED,
            "sources": SOURCES,
            "report": REPORT,
        },
    }

"""Trying only the rejects of a version again.

A published version never changes. A replay is a build of the next version whose first parts are all
that its parent holds, and whose plan is the parent's rejects: what could not be used then, because
a file was damaged or a model fell over, is tried once more with the same settings.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

from spark_ray.core.claim import alone, ended_meanwhile
from spark_ray.core.errors import OutsideInput
from spark_ray.core.progress import ProgressReport
from spark_ray.core.provenance import VIDEO_ID_CHARS
from spark_ray.core.schema import ModelInfo
from spark_ray.core.storage import Folder, absolute
from spark_ray.core.transfers import transfers
from spark_ray.core.wording import counted
from spark_ray.datasets.assets import ClipAssets, manifest_lines, published_clips
from spark_ray.datasets.build import (
    BuildResult,
    begin,
    finish,
    plan_inputs,
    run_units,
)
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import files_as_they_are
from spark_ray.datasets.layout import (
    FILTERED,
    METADATA,
    PARTS,
    RECIPE,
    REJECTS,
    asset_folder,
    audio_name,
    frame_name,
    is_published,
    is_unfinished,
    next_version,
    numbered_versions,
    resolve_published,
    writable,
)
from spark_ray.datasets.ledger import (
    Outcome,
    check_model,
    commit_part,
    read_parts,
    read_recipe,
)
from spark_ray.datasets.model_stages import model_stages
from spark_ray.datasets.plan import SourceRecord, StoredPlan, mark_duplicates
from spark_ray.datasets.publish import clear_scaffold, discard
from spark_ray.datasets.session import ray_session
from spark_ray.datasets.units import whole_file

_CARRYING = f"{PARTS}/carrying"
_LINES_PER_PART = 1000


@dataclass(frozen=True)
class Replay:
    """What a replay came to: how many rejects there were, and what was built.

    `result` is None when no reject became a clip; then nothing is published.
    """

    rejects: int
    result: BuildResult | None


def replay_rejects(reference: str, **operational: Any) -> Replay:
    """Try the rejects of a published version again; publish what came of it as the next version.

    `operational` are settings that don't decide the content, such as `decode_timeout_s` or
    `caption_batch_size`.

    Raises:
        DatasetError: there is no such dataset, or the next version is being built by somebody else.
    """
    parent = resolve_published(absolute(reference))
    metadata = json.loads(parent.read(METADATA))
    clear_scaffold(parent, metadata)  # what a kill may have left of its build
    rejects = [json.loads(line) for line in parent.lines(REJECTS)]
    if not rejects:
        return Replay(0, None)
    dataset = Folder(parent.location.rpartition("/")[0])
    origin = {"version": metadata["version"], "manifest_sha256": metadata["manifest_sha256"]}
    version = writable(_unfinished_replay(dataset, origin) or dataset.sub(next_version(dataset)))
    config = BuildConfig.from_values(
        **metadata["config"],
        **operational,
        output=dataset.location,
        version=version.location.rpartition("/")[2],
    ).located()
    rejected = counted(len(rejects), "reject")
    print(f"Replaying {rejected} of {parent.location} into {version.location}", file=sys.stderr)
    stages = model_stages(config)
    version.create()
    with alone(version, "build", "--version"), ray_session(config):
        if not _is_begun(version, origin):
            records = list(_records_to_retry(parent, rejects, config))
            retried = {line["unit_id"] for line in rejects}
            carried = _Carried({record.video_id for record in records}, retried)
            _begin_from(parent, version, config, metadata, carried)
            begin(version, config, records, origin)
        run_units(config, version, stages)
        if not _recovered(parent, version):
            discard(version)
            version.delete()
            return Replay(len(rejects), None)
        return Replay(len(rejects), finish(config, version))


def _unfinished_replay(dataset: Folder, origin: dict[str, Any]) -> Folder | None:
    for name in numbered_versions(dataset):
        version = dataset.sub(name)
        if is_unfinished(version) and read_recipe(version).parent == origin:
            return version
    return None


def _is_begun(version: Folder, origin: dict[str, Any]) -> bool:
    """Whether there is a replay to go on with.

    Raises:
        FolderInUse: another build of this version ended since it was chosen.
    """
    if not is_published(version):
        if not version.exists(RECIPE):
            return False
        if read_recipe(version).parent == origin:
            return True
    raise ended_meanwhile(version.location, "build")


def _begin_from(
    parent: Folder,
    version: Folder,
    config: BuildConfig,
    metadata: dict[str, Any],
    carried: "_Carried",
) -> None:
    """Bring in what the parent holds, and with which weights it was made."""
    discard(version)
    version.write(_CARRYING, b"")  # so that what a kill leaves is known to be of a build
    _carry_over(parent, version, config, metadata["statistics"]["clips"], carried)
    _carry_filtered(parent, version, carried)
    for stage, model in metadata.get("models", {}).items():
        check_model(version, stage, ModelInfo.model_validate(model))


@dataclass(frozen=True)
class _Carried:
    """Which rows of the parent come into the new version: `videos` are those that still exist, not
    what a mended file held before, and `retried` the ids of units that are decoded again."""

    videos: Set[str | None]
    retried: Set[str]

    def has(self, video_id: str) -> bool:
        return video_id in self.videos

    def outcome(self, line: dict[str, Any]) -> Outcome:
        """A clip's line as it was before publishing, which adds the configuration and the shard.

        Of a file that is decoded again it is what is committed already, and not done again.
        """
        meta = line["meta"]
        meta["provenance"].pop("config", None)
        meta.pop("shard", None)
        meta.setdefault("has_audio", line["audio"] is not None)  # older parents don't tell
        unit = whole_file(meta["video_id"])
        if unit in self.retried:
            return Outcome(id=line["id"], status="ok", unit_id=unit, unit_size=None, line=line)
        return Outcome(id=line["id"], status="ok", unit_id=line["id"], unit_size=1, line=line)


def _carry_over(
    parent: Folder, version: Folder, config: BuildConfig, clips: int, carried: _Carried
) -> None:
    """Bring clips of the parent into the new version, as if they had been built here."""
    link = partial(_link_assets, parent, version)
    write = partial(_write_assets, version, config.audio_format)
    if config.format != "parquet":
        told = (line for line in manifest_lines(parent) if carried.has(line["meta"]["video_id"]))
        lines = transfers(version.location, link, told)
    else:
        held = (c for c in published_clips(parent) if carried.has(c.line["meta"]["video_id"]))
        lines = transfers(version.location, write, held)
    with ProgressReport("Carrying over", clips, "clips") as progress:
        while group := list(islice(lines, _LINES_PER_PART)):
            commit_part(version, [carried.outcome(line) for line in group])
            progress.advance(len(group))


def _carry_filtered(parent: Folder, version: Folder, carried: _Carried) -> None:
    """Bring in what filters turned away; units that are decoded again will tell it themselves."""
    told = parent.lines(FILTERED) if parent.exists(FILTERED) else ()  # older parents don't tell
    outcomes = (
        Outcome(id=line["id"], status="filtered", unit_id=line["id"], unit_size=1, line=line)
        for line in map(json.loads, told)
        if line["unit_id"] not in carried.retried
        and carried.has(line["source_hash"][:VIDEO_ID_CHARS])
    )
    while group := list(islice(outcomes, _LINES_PER_PART)):
        commit_part(version, group)


def _link_assets(parent: Folder, version: Folder, line: dict[str, Any]) -> dict[str, Any]:
    for number in range(1, line["meta"]["num_frames"] + 1):
        version.copy_from(parent, frame_name(line["id"], number))
    if line["audio"]:
        version.copy_from(parent, line["audio"])
    return line


def _write_assets(version: Folder, audio_format: str, clip: ClipAssets) -> dict[str, Any]:
    for number, jpeg in enumerate(clip.frames, 1):
        version.write(frame_name(clip.line["id"], number), jpeg)
    clip.line["frames_dir"] = f"{asset_folder(clip.line['id'])}/frames"
    if clip.audio is not None:
        clip.line["audio"] = audio_name(clip.line["id"], audio_format)
        version.write(clip.line["audio"], clip.audio)
    return clip.line


def _records_to_retry(
    parent: Folder, rejects: Iterable[dict[str, Any]], config: BuildConfig
) -> Iterator[SourceRecord]:
    """The parent's plan, reduced to what was rejected. The files of that are looked at anew, with
    their copies and the texts beside them, since any of these may have been mended; links out of
    the input folder stay where they are."""
    units: defaultdict[str, list[str]] = defaultdict(list)
    for line in rejects:
        units[line["source_path"]].append(line["unit_id"])
    records = {record.location: record for record in StoredPlan(parent)}
    retried: dict[str, SourceRecord] = {}
    for record in records.values():
        if record.verdict == "video":
            record.units = units.get(record.location, [])
        if _may_be_mended(record) or record.duplicate_of in retried:
            retried[record.location] = record
    for anew in plan_inputs(list(files_as_they_are(retried)), config):
        records[anew.location] = _to_retry(retried[anew.location], anew)
    return mark_duplicates([records[location] for location in sorted(records)])


def _may_be_mended(record: SourceRecord) -> bool:
    if record.reject is not None:
        return record.reject.error != OutsideInput.__name__
    return bool(record.units)


def _to_retry(before: SourceRecord, anew: SourceRecord) -> SourceRecord:
    """What is to be done with a file, by what was known of it and what another look at it found."""
    if before.verdict != "rejected" and anew.source_hash is None:
        # It can't be read now. As a video, its units say so; as a copy, it is not missed.
        return before.model_copy(update={"sidecars": anew.sidecars, "attempt": before.attempt + 1})
    if before.verdict == "video" and anew.source_hash == before.source_hash:
        anew.units = before.units
    anew.attempt = before.attempt + 1
    if anew.reject is not None:
        anew.reject.attempt = anew.attempt
    return anew


def _recovered(parent: Folder, version: Folder) -> bool:
    had = {line["id"] for line in manifest_lines(parent)}
    return any(o.status == "ok" and o.id not in had for o in read_parts(version))

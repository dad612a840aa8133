"""Published datasets as they are looked through over HTTP.

Indices of versions, some hundred bytes a clip, stay in memory: a version never changes, and reading
a manifest of 100,000 clips takes seconds.
"""

import base64
import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import pyarrow as pa

from spark_ray.core.errors import SparkRayError
from spark_ray.core.storage import Folder
from spark_ray.datasets.browsing import (
    ClipQuery,
    compare_versions,
    find_clips,
    manifest_line_of,
    published_versions,
)
from spark_ray.datasets.contact_sheet import spread
from spark_ray.datasets.funnel import funnel_levels
from spark_ray.datasets.layout import resolve_published
from spark_ray.datasets.reading import load_metadata
from spark_ray.datasets.samples import SampleIndex, load_index, read_clip
from spark_ray.datasets.settings import explain_settings
from spark_ray.media.thumbnails import thumbnail
from spark_ray.serving.dataset_names import without_location
from spark_ray.serving.dataset_schemas import (
    ClipChange,
    ClipDetails,
    ClipPage,
    ClipSummary,
    DatasetSummary,
    FunnelLevel,
    FunnelLoss,
    Histogram,
    RejectCount,
    SettingInfo,
    VersionComparison,
    VersionDetails,
    VersionSummary,
)
from spark_ray.serving.errors import not_found
from spark_ray.serving.messages import DatasetPlace
from spark_ray.serving.schemas import Thumbnail
from spark_ray.serving.shown import shown_source, values_without_paths

_MOST_CLIPS_HELD = 1_000_000
_MOST_VERSIONS_HELD = 64
_COUNTS = ("labels", "languages", "codecs", "sizes", "models")
_MOST_COUNTED = 50
_MOST_EXAMPLES = 20
_THUMBNAIL_PX = (200, 112)
_PLACES = frozenset(("input", "output", "captions_file"))


class Library:
    """Reads published versions. Its methods block; each may be called by several threads."""

    def __init__(self) -> None:
        self._indices: OrderedDict[str, SampleIndex] = OrderedDict()
        self._lock = threading.Lock()

    def summary(self, place: DatasetPlace) -> DatasetSummary:
        """A dataset with its versions; one that can't be read says why."""
        described = {"name": place.name, "owned": place.owned, "searchable": place.searchable}
        try:
            versions = [self._version(folder)[0] for folder in published_versions(place.reference)]
        except SparkRayError as error:
            return DatasetSummary.model_validate(
                {**described, "versions": [], "problem": without_location(place, str(error))}
            )
        return DatasetSummary.model_validate({**described, "versions": versions})

    def version(self, place: DatasetPlace, version: str) -> VersionDetails:
        """
        Raises:
            ApiError: there is no such version.
        """
        summary, metadata = self._version(self._folder(place, version))
        statistics, funnel = metadata["statistics"], metadata["funnel"]
        return VersionDetails(
            **summary.model_dump(),
            dataset=place.name,
            funnel=[
                FunnelLevel(
                    unit=level.unit,
                    found=level.found,
                    kept=level.kept,
                    losses=[
                        FunnelLoss(kind=loss.kind, rule=loss.rule, count=loss.count)
                        for loss in level.losses
                    ],
                    beside=level.beside,
                )
                for level in funnel_levels(funnel)
            ],
            rejects=[RejectCount.model_validate(kind) for kind in funnel["rejects"]],
            counts={name: values_without_paths(_largest(statistics[name])) for name in _COUNTS},
            histograms={
                name: Histogram.model_validate(histogram)
                for name, histogram in statistics["histograms"].items()
                if histogram is not None
            },
            settings=[
                SettingInfo(
                    name=setting.name,
                    value=values_without_paths(setting.value),
                    meaning=setting.meaning,
                )
                for setting in explain_settings(metadata["config"])
                if setting.changed and setting.name not in _PLACES
            ],
        )

    def clips(
        self, place: DatasetPlace, version: str, query: ClipQuery, window: tuple[int, int],
        thumbnails: int,
    ) -> ClipPage:  # fmt: skip
        """Clips that fit, `window` being the first's number and how many; with small pictures.

        Raises:
            ApiError, DatasetError: there is no such version, or a file of it is gone.
        """
        index = self.index(self._folder(place, version).location)
        found = find_clips(index, query)
        offset, limit = window
        rows = found.slice(offset, limit).to_pylist()
        return ClipPage(
            dataset=place.name,
            version=version,
            total=found.num_rows,
            offset=offset,
            clips=[_summary_of(index, row, thumbnails) for row in rows],
        )

    def clip(self, place: DatasetPlace, version: str, clip_id: str, thumbnails: int) -> ClipDetails:
        """
        Raises:
            ApiError, DatasetError: there is no such version or clip.
        """
        folder = self._folder(place, version)
        index, row = self._row(folder, clip_id)
        meta = manifest_line_of(folder, clip_id)["meta"]
        return ClipDetails(
            **_summary_of(index, row, thumbnails).model_dump(),
            record={
                **meta,
                "source_path": shown_source(meta["source_path"]),
                "provenance": values_without_paths(meta.get("provenance")),
            },
        )

    def frame(self, place: DatasetPlace, version: str, clip_id: str, number: int) -> bytes:
        """A stored frame, counted from 1, as JPEG.

        Raises:
            ApiError, DatasetError: there is no such version, clip or frame.
        """
        index, row = self._row(self._folder(place, version), clip_id)
        if not 1 <= number <= len(row["frame_times"]):
            raise not_found("frame", f"{clip_id}/{number}")
        return read_clip(index.version, row, frames=[number - 1], audio=False).frames[0]

    def sound(self, place: DatasetPlace, version: str, clip_id: str) -> bytes:
        """A clip's sound as FLAC or WAV.

        Raises:
            ApiError, DatasetError: there is no such version or clip, or it has no sound.
        """
        index, row = self._row(self._folder(place, version), clip_id)
        audio = read_clip(index.version, row, frames=[]).audio if row["has_audio"] else None
        if audio is None:
            raise not_found("sound", clip_id)
        return audio

    def compare(self, place: DatasetPlace, before: str, after: str) -> VersionComparison:
        """
        Raises:
            ApiError: there is no such version.
        """
        folders = [self._folder(place, version) for version in (before, after)]
        summaries = [self._version(folder)[0] for folder in folders]
        changes = compare_versions(folders[0], folders[1], _MOST_EXAMPLES)
        return VersionComparison(
            dataset=place.name,
            before=summaries[0],
            after=summaries[1],
            same=changes.same,
            added=changes.added,
            removed=changes.removed,
            changed=changes.changed,
            examples=[
                ClipChange(
                    clip_id=change.clip_id, kind=change.kind,
                    before=change.before, after=change.after,
                )
                for change in changes.examples
            ],
        )  # fmt: skip

    def index(self, reference: str) -> SampleIndex:
        """The index of a published version (the newest, where none is named).

        Raises:
            DatasetError: there is no such dataset.
        """
        folder = resolve_published(reference)
        # Not the location alone: a dataset may be removed, and another be published there.
        key = f"{folder.location} {load_metadata(folder).get('manifest_sha256')}"
        with self._lock:
            if key in self._indices:
                self._indices.move_to_end(key)
                return self._indices[key]
        made = _as_shown(load_index(folder.location))
        with self._lock:
            self._indices[key] = made
            while len(self._indices) > 1 and (
                len(self._indices) > _MOST_VERSIONS_HELD
                or sum(index.table.num_rows for index in self._indices.values()) > _MOST_CLIPS_HELD
            ):
                self._indices.popitem(last=False)
        return made

    def _row(self, folder: Folder, clip_id: str) -> tuple[SampleIndex, dict[str, Any]]:
        index = self.index(folder.location)
        rows = find_clips(index, ClipQuery(ids=(clip_id,))).to_pylist()
        if not rows:
            raise not_found("clip", clip_id)
        return index, rows[0]

    def _folder(self, place: DatasetPlace, version: str) -> Folder:
        """The folder of a version, looked up among those that are there: no name makes a path."""
        for folder in published_versions(place.reference):
            if _name(folder) == version:
                return folder
        raise not_found("version", f"{place.name}@{version}")

    def _version(self, folder: Folder) -> tuple[VersionSummary, dict[str, Any]]:
        metadata = load_metadata(folder)
        counted = {
            name: metadata["statistics"][name]
            for name in VersionSummary.model_fields
            if name in metadata["statistics"]
        }
        parent = metadata.get("parent")
        return VersionSummary.model_validate(
            {
                "version": _name(folder),
                "created": metadata["created"],
                "parent": parent["version"] if isinstance(parent, dict) else parent,
                "format": metadata["format"],
                **counted,
            }
        ), metadata


def _as_shown(index: SampleIndex) -> SampleIndex:
    """The index with sources as callers may see them, and search for them."""
    column = index.table.schema.get_field_index("source_path")
    shown = [shown_source(path) for path in index.table["source_path"].to_pylist()]
    table = index.table.set_column(column, "source_path", pa.array(shown, pa.string()))
    return replace(index, table=table)


def _summary_of(index: SampleIndex, row: dict[str, Any], thumbnails: int) -> ClipSummary:
    numbers = spread(len(row["frame_times"]), thumbnails) if thumbnails else []
    frames = read_clip(index.version, row, frames=numbers, audio=False).frames if numbers else []
    return ClipSummary(
        id=row["id"],
        split=row["split"],
        label=row["label"],
        source_path=row["source_path"],
        duration_s=row["duration"],
        frames=len(row["frame_times"]),
        has_audio=row["has_audio"],
        caption=row["caption"],
        transcript=row["transcript"],
        thumbnails=small_pictures(frames, [row["frame_times"][number] for number in numbers]),
    )


def small_pictures(frames: list[bytes], times_s: list[float]) -> list[Thumbnail]:
    """
    Raises:
        CorruptMedia: a frame is no picture.
    """
    return [
        Thumbnail(time_s=time_s, jpeg=base64.b64encode(thumbnail(frame, *_THUMBNAIL_PX)).decode())
        for frame, time_s in zip(frames, times_s, strict=True)
    ]


def _largest(counts: dict[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_MOST_COUNTED])


def _name(folder: Folder) -> str:
    return folder.location.rstrip("/").rpartition("/")[2]

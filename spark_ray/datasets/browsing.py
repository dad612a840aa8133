"""Published datasets to look through: versions, single clips, and in what two versions differ.

Nothing here holds a manifest whole; paging over clips is done on the index of `samples`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from spark_ray.core.errors import DatasetError
from spark_ray.core.storage import Folder
from spark_ray.datasets.layout import (
    MANIFEST,
    is_published,
    numbered_versions,
    resolve_published,
)
from spark_ray.datasets.reading import BrokenLines, read_manifest
from spark_ray.datasets.samples import SampleIndex

_ID_WITHIN_BYTES = 200  # `publish` writes the id first into a line
_SEARCHED = ("caption", "transcript", "label", "source_path", "id")


def published_versions(reference: str) -> list[Folder]:
    """The versions that `path` has, the newest first, or the one that `path[@/]version` names.

    Raises:
        DatasetError: `path@version` is not published.
    """
    location, separator, version = reference.rpartition("@")
    if separator and "/" not in version:
        return [resolve_published(reference)]
    dataset = Folder((location + separator + version).rstrip("/"))
    if is_published(dataset):
        return [dataset]
    numbered = numbered_versions(dataset)
    others = [name for name in dataset.children() if name not in numbered]
    found = [dataset.sub(name) for name in [*numbered[::-1], *others]]
    return [folder for folder in found if is_published(folder)]


@dataclass(frozen=True)
class ClipQuery:
    """Which clips are wanted. A text is looked for in caption, transcript, label, file and id."""

    text: str | None = None
    ids: tuple[str, ...] = ()
    split: str | None = None
    label: str | None = None
    captioned: bool | None = None
    transcribed: bool | None = None
    min_duration_s: float | None = None
    max_duration_s: float | None = None


def find_clips(index: SampleIndex, query: ClipQuery) -> pa.Table:
    """The rows of an index that fit, in its order; case does not matter in texts."""
    table = index.table
    tests: list[Any] = []
    if query.text:
        for word in query.text.split():
            found = [
                pc.fill_null(pc.match_substring(table[name], word, ignore_case=True), False)
                for name in _SEARCHED
            ]
            anywhere = found[0]
            for other in found[1:]:
                anywhere = pc.or_(anywhere, other)
            tests.append(anywhere)
    if query.ids:
        tests.append(pc.is_in(table["id"], pa.array(query.ids)))
    for name, wanted in (("split", query.split), ("label", query.label)):
        if wanted is not None:
            tests.append(pc.fill_null(pc.equal(table[name], wanted), False))
    for name, there in (("caption", query.captioned), ("transcript", query.transcribed)):
        if there is not None:
            tests.append(pc.equal(pc.is_valid(table[name]), there))
    if query.min_duration_s is not None:
        tests.append(pc.greater_equal(table["duration"], query.min_duration_s))
    if query.max_duration_s is not None:
        tests.append(pc.less_equal(table["duration"], query.max_duration_s))
    for test in tests:
        # Each is as long as the whole table, so they are put together before anything is taken out.
        tests[0] = pc.and_(tests[0], test)
    return table.filter(tests[0]) if tests else table


def manifest_line_of(version: Folder, clip_id: str) -> dict[str, Any]:
    """The manifest's line of a clip.

    Raises:
        DatasetError: there is no such clip.
    """
    wanted = json.dumps(clip_id).encode()
    for data in version.lines(MANIFEST):
        if wanted in data[:_ID_WITHIN_BYTES]:
            line: dict[str, Any] = json.loads(data)
            if line["id"] == clip_id:
                return line
    raise DatasetError(f"{version.location.rpartition('/')[2]}: has no clip {clip_id!r}")


@dataclass
class Changes:
    """What became of the clips of one version in another; `examples` are the first of each kind."""

    same: int = 0
    added: int = 0
    removed: int = 0
    changed: dict[str, int] = field(default_factory=dict)
    examples: list["Change"] = field(default_factory=list)


@dataclass(frozen=True)
class Change:
    """A clip that differs. `kind` is added, removed, or the field that changed."""

    clip_id: str
    kind: str
    before: str | None
    after: str | None


_COMPARED = ("caption", "transcript", "label", "num_frames")


def compare_versions(before: Folder, after: Folder, most_examples: int) -> Changes:
    """Go along both manifests, which are sorted by id, once.

    Broken lines of either are passed over, as everywhere.
    """
    changes, shown = Changes(), dict.fromkeys(("added", "removed", *_COMPARED), 0)

    def example(clip_id: str, kind: str, old: object, new: object) -> None:
        if shown[kind] < most_examples:
            shown[kind] += 1
            texts = [None if value is None else str(value) for value in (old, new)]
            changes.examples.append(Change(clip_id, kind, *texts))

    for old, new in _side_by_side(before, after):
        if old is None:
            assert new is not None
            changes.added += 1
            example(new["id"], "added", None, new["meta"]["caption"])
        elif new is None:
            changes.removed += 1
            example(old["id"], "removed", old["meta"]["caption"], None)
        else:
            pairs = {name: (old["meta"].get(name), new["meta"].get(name)) for name in _COMPARED}
            differing = {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}
            changes.same += not differing
            for name, pair in differing.items():
                changes.changed[name] = changes.changed.get(name, 0) + 1
                example(old["id"], name, *pair)
    return changes


_Line = Mapping[str, Any]


def _side_by_side(before: Folder, after: Folder) -> Iterator[tuple[_Line | None, _Line | None]]:
    olds = read_manifest(before, BrokenLines())
    news = read_manifest(after, BrokenLines())
    old, new = next(olds, None), next(news, None)
    while old is not None or new is not None:
        if new is None or (old is not None and old["id"] < new["id"]):
            yield old, None
            old = next(olds, None)
        elif old is None or new["id"] < old["id"]:
            yield None, new
            new = next(news, None)
        else:
            yield old, new
            old, new = next(olds, None), next(news, None)

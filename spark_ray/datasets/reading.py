"""Published datasets read back, by people who may have touched them since.

A manifest can be edited, cut off or concatenated by hand. A line that is empty or broken is counted
and reported, with its number and what is wrong with it, and everything else is used.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import BaseModel, Field, FiniteFloat, ValidationError

from spark_ray.core.errors import DatasetError
from spark_ray.core.storage import Folder, is_remote, local_path
from spark_ray.datasets.layout import MANIFEST, METADATA, resolve_published

_EXAMPLES = 5

_Count = Annotated[int, Field(ge=0, le=1 << 53)]
_Seconds = Annotated[FiniteFloat, Field(ge=0)]


@dataclass(frozen=True)
class BrokenLine:
    """A line that could not be used; lines count from 1."""

    number: int
    problem: str


@dataclass
class BrokenLines:
    """Collects what tolerant reading passed over: how many lines, and the first few of them."""

    count: int = 0
    examples: list[BrokenLine] = field(default_factory=list)

    def add(self, number: int, problem: str) -> None:
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append(BrokenLine(number, problem))

    def as_dict(self) -> dict[str, Any]:
        return {
            "count": self.count,
            "examples": [{"line": line.number, "problem": line.problem} for line in self.examples],
        }


def read_manifest(
    folder: Folder, broken: BrokenLines, name: str = MANIFEST
) -> Iterator[dict[str, Any]]:
    """The lines of a manifest that have everything a clip's line must have, one at a time.

    Raises:
        StorageError: the file can't be read at all.
    """
    yield from _read_lines(folder, name, _ManifestLine, broken)


def manifest_of(reference: str) -> tuple[Folder, str]:
    """The folder and name of the manifest that a dataset's reference, or a `.jsonl` file's, means.

    Raises:
        DatasetError: it is neither such a file nor a published dataset.
    """
    is_file = not is_remote(reference) and local_path(reference).is_file()
    if is_file or reference.endswith(".jsonl"):
        parent, _, name = reference.rpartition("/")
        return Folder(parent or ("/" if reference.startswith("/") else ".")), name
    return resolve_published(reference), MANIFEST


def load_metadata(version: Folder) -> dict[str, Any]:
    """A published version's `metadata.json`.

    Raises:
        DatasetError: it is damaged.
    """
    try:
        metadata = json.loads(version.read(METADATA))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{version / METADATA}: it is not valid JSON ({error})") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get("statistics"), dict):
        raise DatasetError(f"{version / METADATA}: it holds no dataset's metadata")
    return metadata


def _read_lines(
    folder: Folder, name: str, shape: type[BaseModel], broken: BrokenLines
) -> Iterator[dict[str, Any]]:
    for number, data in enumerate(folder.lines(name), 1):
        if not data.strip():
            broken.add(number, "it is empty")
            continue
        try:
            line = json.loads(data)
        except (ValueError, RecursionError) as error:
            broken.add(number, f"it is not valid JSON ({error})")
            continue
        if not isinstance(line, dict):
            broken.add(number, f"it is not an object but {type(line).__name__}")
            continue
        try:
            shape.model_validate(line)
        except ValidationError as error:
            broken.add(number, _explain(error))
            continue
        yield line


def _explain(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    place = ".".join(map(str, detail["loc"]))
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if detail["type"] == "missing":
        return f"it has no {place}{more}"
    return f"{place}: {detail['msg']}{more}"


class _Span(BaseModel):
    start_time: FiniteFloat
    end_time: FiniteFloat


class _Segment(BaseModel):
    start: FiniteFloat
    end: FiniteFloat
    text: str


class _Dropped(BaseModel):
    time: FiniteFloat
    motion: FiniteFloat | None
    hash_distance: int | None = None
    dropped_by: str


class _Model(BaseModel):
    name: str
    revision: str | None


class _Step(BaseModel):
    name: str
    duration_s: FiniteFloat
    model: _Model | None = None


class _Lineage(BaseModel):
    processing_steps: list[_Step] = []


class _Provenance(BaseModel):
    lineage: _Lineage = _Lineage()


class _VideoInfo(BaseModel):
    codec: str
    width: int
    height: int
    audio_codec: str | None = None
    decode_errors: _Count = 0


class _Meta(BaseModel):
    source_path: str
    video_id: str | None = None
    label: str | None = None
    start: FiniteFloat = 0.0
    end: FiniteFloat | None = None
    duration: _Seconds
    num_frames: _Count
    num_bytes: _Count = 0
    has_audio: bool | None = None
    frame_times: list[FiniteFloat]
    frame_motion: list[FiniteFloat | None] = []
    dropped_frames: list[_Dropped] = []
    caption: str | None
    all_captions: list[str] = []
    transcript: str | None
    language: str | None = None
    segments: list[_Segment] = []
    scenes: list[_Span]
    video_info: _VideoInfo
    provenance: _Provenance


class _ManifestLine(BaseModel):
    """What every reader of a manifest relies on; the line may hold more."""

    id: str
    frames_dir: str | None = None
    audio: str | None = None
    meta: _Meta

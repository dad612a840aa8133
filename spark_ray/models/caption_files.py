"""Captions as others store them: JSON beside a video, or one JSONL, JSON or CSV for a whole set."""

import csv
import io
import json
import logging
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import Caption, Clip
from spark_ray.core.storage import read_bytes
from spark_ray.core.wording import counted
from spark_ray.models.sidecar_files import SidecarError, decode_text, suffix

log = logging.getLogger(__name__)

MAX_CAPTIONS_FILE_BYTES = 512 << 20
"""Some three million captions; each worker holds them all."""

_KEY_FIELDS = (
    "clip_id", "video_id", "path", "source_path", "file_name", "filename", "file", "video", "name",
    "key", "id",
)  # fmt: skip
_TEXT_FIELDS = ("caption", "text", "description")
_LIST_FIELDS = ("captions", "segments", "cues")
_START_FIELDS = ("start", "start_s", "start_time")
_END_FIELDS = ("end", "end_s", "end_time")


@dataclass(frozen=True)
class TextAt:
    """A text about a whole video, or about `[start, end)` in seconds of the source file.

    One without an end lasts until the next one starts.
    """

    text: str
    start: float | None = None
    end: float | None = None


def caption_of(texts: list[TextAt], clip: Clip) -> Caption | None:
    """The clip's caption from its video's texts, or None if none of them is about it.

    Timed texts that overlap the clip are joined in order of time. Only a video without any gets its
    untimed ones: the first is the caption.
    """
    said = [TextAt(_clean(text.text), text.start, text.end) for text in texts]
    starts = sorted(text.start for text in said if text.start is not None)
    timed = sorted(
        (text.start, _next(starts, text.start) if text.end is None else text.end, text.text)
        for text in said
        if text.start is not None and text.text
    )
    if timed:
        clip_end = float("inf") if clip.end_s is None else clip.end_s
        here = [text for start, end, text in timed if start < clip_end and end > clip.start_s]
        return Caption(text=" ".join(here), all_captions=here) if here else None
    untimed = [text.text for text in said if text.text]
    return Caption(text=untimed[0], all_captions=untimed) if untimed else None


def _next(starts: list[float], start: float) -> float:
    later = bisect_right(starts, start)
    return starts[later] if later < len(starts) else float("inf")


def _clean(text: str) -> str:
    """One line of valid text; JSON may escape half a surrogate pair."""
    return " ".join(text.split()).encode("utf-8", "replace").decode()


def keys_of(clip: Clip) -> Iterator[str]:
    """What a captions file may call the clip: its id, its video's, or a name of its file."""
    yield clip.clip_id
    if clip.video_id is not None:
        yield clip.video_id
    yield from names_of(clip.source_path)


def names_of(location: str) -> Iterator[str]:
    """What a captions file may call a file, the most precise name first.

    Its path, whole and then shorter from the left, so that `train/a.mp4` and `a.mp4` both find
    `s3://raw/train/a.mp4`; last the name without its suffix.
    """
    yield location
    parts = location.split("/")
    yield from ("/".join(parts[first:]) for first in range(1, len(parts)))
    yield PurePosixPath(location).stem


def parse_json_captions(text: str, uri: str) -> list[TextAt]:
    """The texts of a JSON file beside a video; none if it is an object about something else.

    Downloaders leave a JSON file of metadata with each video, and most say nothing to caption.

    Raises:
        SidecarError: it is no JSON, or holds no text where one is expected.
    """
    try:
        value = json.loads(text)
        if isinstance(value, dict) and not value.keys() & {*_TEXT_FIELDS, *_LIST_FIELDS}:
            return []
        return list(_texts(value))
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"{uri} can't be understood: {error}; mend or remove it") from error


def read_captions_file(uri: str) -> dict[str, list[TextAt]]:
    """Texts by the key that each row gives: a clip's or video's id, a path, or a file name.

    Rows that can't be used are counted and logged, with the first of them.

    Raises:
        ConfigError: its name does not end in .jsonl, .json, .csv or .tsv.
        StorageError: it can't be read.
        SidecarError: no row of it can be used.
    """
    kind = suffix(uri)
    if kind not in {".jsonl", ".ndjson", ".json", ".csv", ".tsv"}:
        raise ConfigError(f"captions_file: {uri} must be a .jsonl, .json, .csv or .tsv file")
    text = decode_text(read_bytes(uri, MAX_CAPTIONS_FILE_BYTES))

    by_key: dict[str, list[TextAt]] = {}
    broken: list[str] = []
    for name, row in _rows(text, kind, uri):
        try:
            key, texts = _keyed(row)
        except ValueError as error:
            broken.append(f"{name}: {error}")
            continue
        by_key.setdefault(key, []).extend(texts)

    if not by_key:
        reason = broken[0] if broken else "it is empty"
        raise SidecarError(f"captions_file: {uri} holds no caption that can be used ({reason})")
    if broken:
        log.warning(
            "captions_file: %s: skipped %s, %s", uri, counted(len(broken), "row"), broken[0]
        )
    return by_key


def captioned_videos(uri: str) -> set[str]:
    """What a captions file calls its videos, read before any work is done.

    Raises:
        ConfigError: the file can't be used.
        StorageError: it can't be read.
    """
    try:
        return set(read_captions_file(uri))
    except SidecarError as error:
        raise ConfigError(str(error)) from error


def _rows(text: str, kind: str, uri: str) -> Iterator[tuple[str, Any]]:
    """Each row with a name for messages; JSON lines stay text, for `_keyed` to parse or refuse."""
    if kind in {".csv", ".tsv"}:
        delimiter = "\t" if kind == ".tsv" else ","
        try:
            table = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
        except csv.Error as error:
            raise SidecarError(f"captions_file: {uri} is no valid {kind[1:]}: {error}") from error
        yield from ((f"row {number}", row) for number, row in enumerate(table, 1))
        return
    if kind != ".json":
        lines = enumerate(text.splitlines(), 1)
        yield from ((f"line {number}", line) for number, line in lines if line.strip())
        return
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise SidecarError(f"captions_file: {uri} is no valid JSON: {error}") from error
    rows = whole if isinstance(whole, list) else _mapped(whole)
    yield from ((f"entry {number}", row) for number, row in enumerate(rows, 1))


def _mapped(whole: Any) -> Iterable[Any]:
    """Rows of a JSON object: a list under one of its names, or `{key: captions}`."""
    if not isinstance(whole, dict):
        return [whole]
    for field in ("annotations", "sentences", "data", *_LIST_FIELDS):
        if isinstance(whole.get(field), list):
            rows: list[Any] = whole[field]
            return rows
    return [{"key": key, "captions": value} for key, value in whole.items()]


def _keyed(row: Any) -> tuple[str, list[TextAt]]:
    if isinstance(row, str):
        row = json.loads(row)
    if not isinstance(row, dict):
        raise ValueError("expected an object with a key and a caption")  # noqa: TRY004
    key = _first(row, _KEY_FIELDS)
    if key is None:
        raise ValueError(f"no video is named; expected one of: {', '.join(_KEY_FIELDS)}")
    return str(key), list(_texts(row))


def _texts(value: Any) -> Iterator[TextAt]:
    """Every text in a value that may be one, a list of them, or an object around either."""
    if isinstance(value, str):
        yield TextAt(value)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        inner = _first(value, (*_LIST_FIELDS, *_TEXT_FIELDS))
        if isinstance(inner, str):
            start, end = _first(value, _START_FIELDS), _first(value, _END_FIELDS)
            yield TextAt(inner, _seconds(start), _seconds(end))
        elif inner is not None:
            yield from _texts(inner)
        else:
            known = ", ".join((*_TEXT_FIELDS, *_LIST_FIELDS))
            raise ValueError(f"no caption in it; expected one of: {known}")
    else:
        raise ValueError(f"expected a caption, found {value!r}")  # noqa: TRY004


def _first(row: dict[str, Any], fields: Iterable[str]) -> Any:
    return next((row[name] for name in fields if row.get(name) not in (None, "")), None)


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected a time in seconds, found {value!r}") from error

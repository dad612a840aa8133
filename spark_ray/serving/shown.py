"""How answers name what the server keeps: by ids and names, and not by where its files lie.

Addresses with a scheme, such as `s3://films/a.mp4`, stay as they are: clients name media by them.
"""

import re
from collections.abc import Mapping
from typing import Any

from spark_ray.models.registered import shown_uri

ASSET_ID = r"asset-[0-9a-f]{24}"

_STORED = re.compile(rf"/({ASSET_ID})/file\b")
_WORD = re.compile(r"[^\s'\",]+")
_PART = r"[^\s/'\"`<>|:,;()\[\]{}]"
_PATH = re.compile(
    # Not within an address, nor behind what was left out before, nor an HTML element's end.
    r"(?<![\w+./:…~-])(?!(?<=<)/[a-z0-9]+>)"
    # But it may be written as an address.
    rf"(?:[a-z][a-z+]*:/{{2,3}}(?=/))?/[A-Za-z_.~]{_PART}*(?:/{_PART}+)*"
)


def shown_source(source_path: str) -> str:
    """What a clip came from: an asset's id, an address, or else the name of its file."""
    stored = _STORED.search(source_path)
    if stored is not None and stored.end() == len(source_path):
        return stored[1]
    scheme, separator, _ = source_path.partition("://")
    if separator and scheme != "file":
        return source_path
    return source_path.rstrip("/").rpartition("/")[2]


def without_paths(text: str, names: Mapping[str, str] | None = None) -> str:
    """A text in which assets go by their ids, and of other files the last part alone is told.

    `names` are what to call some places, which may hold blanks or be in a bucket.
    """
    for place in sorted(names or {}, key=len, reverse=True):
        text = text.replace(place, (names or {})[place])
    text = _WORD.sub(_asset_of, text)
    return _PATH.sub(lambda path: f"…/{path[0].rpartition('/')[2]}", text)


def without_trace(message: str) -> str:
    """What Serve says of a deployment: how it begins and ends, without the trace in between."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return without_paths(shown_uri(" ".join(lines[:1] + lines[1:][-1:])))


def _asset_of(word: re.Match[str]) -> str:
    stored = _STORED.search(word[0])
    return word[0] if stored is None else stored[1] + word[0][stored.end() :]


def values_without_paths(value: Any) -> Any:
    """JSON, in all of whose texts and keys that is done."""
    if isinstance(value, str):
        return without_paths(value)
    if isinstance(value, list):
        return [values_without_paths(each) for each in value]
    if isinstance(value, dict):
        return {without_paths(key): values_without_paths(each) for key, each in value.items()}
    return value

"""Values as people read them, in the report and on the terminal."""

import re
from collections.abc import Iterator

TEXT_LAYOUT = "\n\t\u200c\u200d"
"""Invisible characters that running text needs: line breaks, tabs, and the joiners of scripts."""

_ODD = re.compile(
    "([\x00-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ufeff\ufff9-\ufffb\ud800-\udfff])"
)


def split_odd(text: str, keep: str = "") -> Iterator[tuple[str, bool]]:
    """`text` in pieces, each with whether it is an escape that stands for an odd character.

    Control characters, invisible ones, ones that turn the direction of writing, and halves of
    surrogate pairs come as escapes such as `\\n` or `\\u202e`, so that no name can hide what it is
    or drive a terminal. Those in `keep` pass.
    """
    for index, piece in enumerate(_ODD.split(text)):
        if not piece:
            continue
        if index % 2 and piece not in keep:
            yield piece.encode("unicode_escape").decode(), True
        else:
            yield piece, False


def visible(text: str, keep: str = "") -> str:
    """`text` with its odd characters as escapes; see `split_odd`."""
    return "".join(piece for piece, _ in split_odd(text, keep))


def bytes_text(count: float) -> str:
    """`1.4 GB`, in powers of 1000."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}" if unit != "bytes" else f"{count:.0f} bytes"
        count /= 1000
    return f"{count:,.3g} TB"


def seconds_text(seconds: float) -> str:
    """`0.52 ms`, `0.21 s`, `4 min 10 s`, `3 h 20 min` or `12.5 h`."""
    if 0 < seconds < 0.01:
        return f"{1000 * seconds:.2g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    if minutes < 600:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds / 3600:,.1f} h"


def percent_text(part: float, whole: float) -> str:
    """`12.5 %`; never rounded to 0 or 100 where something is, or is missing."""
    if not whole:
        return "–"
    share = 100 * part / whole
    if 0 < share < 0.1:
        return "< 0.1 %"
    if 99.9 < share < 100:
        return "> 99.9 %"
    return f"{share:.1f} %" if share % 1 else f"{share:.0f} %"


def value_text(value: object) -> str:
    """A setting's value as it would be written in YAML, more or less."""
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return ", ".join(map(value_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {value_text(item)}" for name, item in value.items())
    return str(value)

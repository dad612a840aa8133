"""Text that lies beside a video: subtitles and captions written by others.

These files come from many hands, so their encoding is guessed, and repeated rolling lines are
merged; but a file that can't be understood is an error that names it, never a silent nothing.
Sidecars are read whole for each clip that asks, which is one small read; they are bounded in size.
"""

import html
import re
from pathlib import PurePosixPath

import fsspec
import pysubs2

from spark_ray.core.errors import MediaError
from spark_ray.core.schema import Segment

MAX_SIDECAR_BYTES = 8 << 20
"""Subtitles of a ten-hour film take about 1 MB."""

_ROLLING_GAP_S = 0.1

# YouTube times each word inside a cue, in a form that pysubs2 takes for a cue's own times.
_WORD_TIME = re.compile(r"<\d[\d:.]*>")


class SidecarError(MediaError):
    """A caption or subtitle file beside the video can't be read or understood."""


def suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def read_text(uri: str, max_bytes: int = MAX_SIDECAR_BYTES) -> str:
    """The file's text, in UTF-8, UTF-16 with its mark, or else Windows-1252.

    Raises:
        SidecarError: it can't be opened, or is larger than `max_bytes`.
    """
    try:
        with fsspec.open(uri, "rb") as file:
            data: bytes = file.read(max_bytes + 1)
    except OSError as error:
        raise SidecarError(f"{uri} can't be read: {error}") from error
    if len(data) > max_bytes:
        raise SidecarError(f"{uri} is larger than the {max_bytes >> 20} MiB that are read")
    return decode_text(data)


def decode_text(data: bytes) -> str:
    """Text of unknown encoding. Never fails: the last resort maps every byte to a character."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16", errors="replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_cues(uri: str) -> list[Segment]:
    """The cues of an .srt or .vtt file in order, in seconds of the source file, without repeats.

    Raises:
        SidecarError: it can't be read, or holds text but no cue.
    """
    text = read_text(uri).replace("\r\n", "\n").replace("\r", "\n")
    kind = suffix(uri).removeprefix(".")
    if kind == "vtt":
        text = html.unescape(_cue_blocks(text))
    events = pysubs2.SSAFile.from_string(_WORD_TIME.sub("", text), format_=kind)
    if not len(events) and text.strip():
        raise SidecarError(
            f"{uri} holds no cue with times like '00:00:01,000 --> 00:00:02,000'; mend or remove it"
        )
    cues = [
        Segment(start=event.start / 1000, end=event.end / 1000, text=event.plaintext)
        for event in events
        if event.end >= event.start
    ]
    return merge_rolling(sorted(cues, key=lambda cue: (cue.start, cue.end)))


def merge_rolling(cues: list[Segment]) -> list[Segment]:
    """Cues in order with each line said once, blank ones dropped.

    Live subtitles roll: a cue shows the line before again above its new one. A cue that follows at
    once loses the leading lines with which the one before it ended; the same word said again after
    a pause is kept.
    """
    kept: list[Segment] = []
    shown: list[str] = []
    shown_until = float("-inf")
    for cue in cues:
        lines = [line for raw in cue.text.split("\n") if (line := " ".join(raw.split()))]
        if not lines:
            continue
        if cue.start - shown_until > _ROLLING_GAP_S:
            shown = []
        new = lines[_overlap(shown, lines) :]
        if new:
            kept.append(cue.model_copy(update={"text": " ".join(new)}))
        shown, shown_until = lines, cue.end
    return kept


def cut_cues(cues: list[Segment], start_s: float, end_s: float | None) -> list[Segment]:
    """The cues that overlap `[start_s, end_s)`, trimmed to it, in seconds from its start.

    A cue across a border belongs to both sides: it was on the screen in both clips.
    """
    end_s = float("inf") if end_s is None else end_s
    return [
        cue.model_copy(
            update={
                "start": max(cue.start, start_s) - start_s,
                "end": min(cue.end, end_s) - start_s,
            }
        )
        for cue in cues
        if overlaps(cue.start, cue.end, start_s, end_s)
    ]


def overlaps(start: float, end: float, span_start: float, span_end: float) -> bool:
    """Whether `[start, end)`, or the instant `start` if it is empty, lies in the span in part."""
    return start < span_end and (end > span_start or start == end == span_start)


def _overlap(shown: list[str], lines: list[str]) -> int:
    longest = min(len(shown), len(lines))
    return next((n for n in range(longest, 0, -1) if shown[-n:] == lines[:n]), 0)


def _cue_blocks(vtt: str) -> str:
    """A WebVTT file without its notes, styles and cue names, which pysubs2 takes for text."""
    blocks = []
    for block in re.split(r"\n[ \t]*\n", vtt):
        lines = block.split("\n")
        times = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if times is not None:
            blocks.append("\n".join(lines[times:]))
    return "\n\n".join(blocks)

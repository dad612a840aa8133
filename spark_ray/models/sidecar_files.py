"""Text that lies beside a video: subtitles and captions written by others.

These files come from many hands, so their encoding is guessed, and repeated rolling lines are
merged; but a file that can't be understood is an error that names it, never a silent nothing.
Sidecars are read whole for each clip that asks, which is one small read; they are bounded in size.
"""

import html
import re
from pathlib import PurePosixPath

import pysubs2

from spark_ray.core.errors import MediaError
from spark_ray.core.schema import Segment
from spark_ray.core.storage import read_bytes
from spark_ray.media.deadline import within

MAX_SIDECAR_BYTES = 8 << 20
"""Subtitles of a ten-hour film take about 1 MB."""

_READ_TIMEOUT_S = 60.0
_ROLLING_GAP_S = 0.1

# YouTube times each word inside a cue, in a form that pysubs2 takes for a cue's own times.
_WORD_TIME = re.compile(r"<\d[\d:.]*>")
_TIMES = re.compile(r"^\s*\d[\d:.,]*\s*-->.*", re.MULTILINE)


class SidecarError(MediaError):
    """A caption or subtitle file beside the video can't be understood."""


SIDECAR_SUFFIXES = (".json", ".txt", ".srt", ".vtt")
SUBTITLE_SUFFIXES = (".srt", ".vtt")
LANGUAGE_TAG = re.compile(r"\.([A-Za-z]{2,3})(?:-[A-Za-z0-9]{2,8})*")
"""`.de` of film.de.srt and `.pt-BR` of film.pt-BR.vtt."""

_CAPTION_TAG = ".caption"


def suffix(uri: str) -> str:
    return PurePosixPath(uri).suffix.lower()


def tag(uri: str) -> str:
    """What stands between the stem and the suffix, with its dot: `.de`, `.caption`, or nothing."""
    return PurePosixPath(PurePosixPath(uri).stem).suffix


def is_named_caption(uri: str) -> bool:
    """Whether the name says that it describes the video: film.caption.srt."""
    return tag(uri).lower() == _CAPTION_TAG


def is_named_subtitles(uri: str) -> bool:
    """Whether it can hold what is said in the video: film.srt or film.de.vtt."""
    return suffix(uri) in SUBTITLE_SUFFIXES and not is_named_caption(uri)


def read_text(uri: str) -> str:
    """The file's text, in UTF-8, UTF-16 with its mark, or else Windows-1252.

    Raises:
        StorageError: it can't be read, or is larger than `MAX_SIDECAR_BYTES`.
        MediaTimeout: its storage does not answer.
    """
    data = within(
        lambda: read_bytes(uri, MAX_SIDECAR_BYTES),
        _READ_TIMEOUT_S,
        f"reading {uri}",
        "a fixed limit",
    )
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
        StorageError: it can't be read.
        SidecarError: it holds text but no cue, or a cue whose times can't be read.
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
    for event in events:
        # Times that pysubs2 can't read are to it, with all behind them, words of the cue before.
        if broken := _TIMES.search(event.plaintext):
            raise SidecarError(
                f"{uri}: {broken[0].strip()!r} are no times like "
                "'00:00:01,000 --> 00:00:02,000'; mend or remove them"
            )
    cues = [  # one that ends before it begins was said nevertheless
        Segment(
            start=event.start / 1000,
            end=max(event.start, event.end) / 1000,
            text=event.plaintext,
        )
        for event in events
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


def _overlap(shown: list[str], lines: list[str]) -> int:
    longest = min(len(shown), len(lines))
    return next((n for n in range(longest, 0, -1) if shown[-n:] == lines[:n]), 0)


def _cue_blocks(vtt: str) -> str:
    """A WebVTT file without its header, notes, styles and cue names, which pysubs2 takes for text.

    Only an empty line ends a cue: one of blanks is a line of the cue, and YouTube writes such.
    """
    blocks = []
    for block in re.split(r"\n{2,}", vtt):
        lines = block.split("\n")
        times = next((number for number, line in enumerate(lines) if "-->" in line), None)
        if times is not None:
            blocks.append("\n".join(lines[times:]))
        elif not block.startswith(("WEBVTT", "NOTE", "STYLE", "REGION")):
            blocks.append(block)
    return "\n\n".join(blocks)

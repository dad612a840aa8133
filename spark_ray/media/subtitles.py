"""Subtitles that are embedded in the container."""

from __future__ import annotations  # PyAV's packets are generic for type checkers alone

from collections.abc import Callable
from fractions import Fraction
from typing import Any, cast

import av
import pysubs2
from av.error import FFmpegError
from av.subtitles.codeccontext import SubtitleCodecContext
from av.subtitles.subtitle import AssSubtitle

from spark_ray.core.schema import Segment
from spark_ray.media.source import MediaSource

_ASS_TEXT_FIELD = 8
_LONGEST_CUE_S = 30.0


class SubtitleTrack:
    """Collects the cues of the embedded stream, in seconds from the video's start."""

    def __init__(self, source: MediaSource) -> None:
        self._source = source
        self._cues: list[Segment] = []
        self._known: set[tuple[int, bytes]] = set()

    def read_before(self, start_s: float, check: Callable[[], None]) -> None:
        """Read the cues that begin up to 30 s before a time, since they may still be shown then.

        Matroska has no index to find them by, so the file is read from there, and no picture
        decoded. Leaves the container at its start.

        Args:
            start_s: seconds from the video's start.
            check: raises when it takes too long; called for each packet.
        """
        source = self._source
        if source.subtitles is None or start_s <= 0:
            return
        source.seek_before(start_s - _LONGEST_CUE_S)
        try:
            for packet in source.container.demux(source.video, source.subtitles):
                check()
                if packet.pts is None:
                    continue
                if source.seconds(packet.pts, Fraction(packet.time_base)) >= start_s:
                    break
                if packet.stream is source.subtitles:
                    self.push(packet)
                    self._known.add((packet.pts, bytes(packet)))
        except (av.error.InvalidDataError, av.error.EOFError):
            pass  # Damage in another clip's part of the file; in this one's the pass meets it.
        source.container.seek(0)

    def push(self, packet: av.Packet[Any]) -> None:
        if self._source.subtitles is None or packet.pts is None or not packet.duration:
            return
        if self._known and (packet.pts, bytes(packet)) in self._known:
            return
        codec = cast(SubtitleCodecContext, self._source.subtitles.codec_context)
        try:
            subtitles = codec.decode2(packet)
        except FFmpegError:
            return
        start = self._source.seconds(packet.pts, packet.time_base)
        end = start + float(packet.duration * Fraction(packet.time_base))
        for rect in subtitles.rects if subtitles else ():
            assert isinstance(rect, AssSubtitle), "only text subtitles are chosen"
            text = ass_text(rect.ass.decode("utf-8", "replace"))
            if text:
                self._cues.append(Segment(start=start, end=end, text=text))

    def between(self, start_s: float, end_s: float) -> tuple[str | None, list[Segment]]:
        """Language, and the cues that overlap a span with times relative to its start."""
        stream = self._source.subtitles
        language = stream.language if stream is not None and stream.language != "und" else None
        return language, cues_between(self._cues, start_s, end_s)


def ass_text(event: str) -> str:
    """Plain text of an ASS event line as FFmpeg's decoders emit it, without styling."""
    fields = event.split(",", _ASS_TEXT_FIELD)
    return pysubs2.SSAEvent(text=fields[-1]).plaintext.replace("\n", " ").strip()


def cues_between(cues: list[Segment], start_s: float, end_s: float) -> list[Segment]:
    """The cues that overlap `[start_s, end_s)`, cut to it, in seconds from `start_s`."""
    return [
        Segment(
            start=round(max(cue.start, start_s) - start_s, 6),
            end=round(min(cue.end, end_s) - start_s, 6),
            text=cue.text,
        )
        for cue in cues
        if cue.start < end_s and cue.end > start_s
    ]

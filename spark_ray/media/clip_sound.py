"""The sound of one pass over a video, decoded as its packets come and held until clips take it."""

from __future__ import annotations  # PyAV's packets are generic for type checkers alone

from fractions import Fraction
from typing import Any, cast

import av
from av.error import FFmpegError

from spark_ray.media.audio_codec import AudioCodec, encode_audio
from spark_ray.media.audio_track import AudioTrack
from spark_ray.media.source import MediaSource

SETTLE_S = 0.5
"""A codec's first packets after a seek are silent or wrong."""

_LAG_S = 10.0


class ClipSound:
    """Decodes the sound of a span, and hands out that of its clips.

    Held is what the growing clip can still take, and as much of the newest: a small file can have
    hours of silence behind its last picture.

    Args:
        source: an open video that has sound.
        start_s, end_s: the span, in seconds from the video's start; None is its end.
        longest_clip_s: what no clip of an open span exceeds.
    """

    def __init__(
        self, source: MediaSource, start_s: float, end_s: float | None, longest_clip_s: float
    ) -> None:
        self._source = source
        self._start_s = start_s
        self._end_s = end_s
        self._longest_clip_s = longest_clip_s
        self._track = AudioTrack()
        self._forgotten_s = start_s

    @property
    def end_s(self) -> float:
        """Seconds up to which sound is known."""
        return self._track.end_s

    def push(self, packet: av.Packet[Any], clip_start_s: float) -> None:
        """Decode a packet; the clip that still grows began at `clip_start_s`."""
        if self._is_outside(packet):
            return
        try:
            frames = cast(list[av.AudioFrame], packet.decode())
        except FFmpegError:
            self._track.errors += 1
            return
        for frame in frames:
            if frame.pts is None:
                time_s = self._track.end_s
            else:
                time_s = self._source.seconds(frame.pts, frame.time_base)
            if time_s + frame.samples / frame.sample_rate > self._start_s:
                self._track.push(frame, time_s)
        if self._end_s is None:
            self._forget_between(clip_start_s + self._longest_clip_s)

    def _is_outside(self, packet: av.Packet[Any]) -> bool:
        """Whether the span needs nothing of a packet: a still picture lasts, the sound goes on."""
        if self._end_s is not None and self._track.end_s >= self._end_s + SETTLE_S:
            return True
        if self._start_s <= 0 or packet.pts is None or not packet.duration:
            return False
        end_s = self._source.seconds(packet.pts + packet.duration, Fraction(packet.time_base))
        return end_s < self._start_s - SETTLE_S

    def _forget_between(self, needed_until_s: float) -> None:
        """Forget what no clip can take, but not the newest: a next clip may begin there."""
        ahead_s = max(self._longest_clip_s, _LAG_S)
        recent_s = self._track.end_s - ahead_s
        if recent_s - max(needed_until_s, self._forgotten_s) > ahead_s:
            self._track.forget(needed_until_s, recent_s)
            self._forgotten_s = recent_s

    def reached(self, end_s: float | None, picture_s: float) -> bool:
        """Whether the sound up to `end_s` is in, or so late that there can't be any.

        Containers store sound a second or so apart from its picture, here read up to `picture_s`;
        it may also just be shorter.
        """
        return end_s is None or self.end_s >= end_s or picture_s >= end_s + _LAG_S

    def finish(self) -> None:
        """No packet follows."""
        self._track.finish()

    def encoded(self, start_s: float, end_s: float, codec: AudioCodec) -> bytes | None:
        """The sound of a clip, forgotten up to its end; None where there is none."""
        samples = self._track.take(start_s, end_s)
        return None if samples is None else encode_audio(samples, codec)

"""Three ways to turn video packets into frames, for three needs.

All push packets in file order and hand back frames in presentation order.
"""

from __future__ import annotations  # PyAV's packets are generic for type checkers alone

import heapq
import math
from collections.abc import Iterator
from typing import Protocol

import av
from av.error import FFmpegError
from av.video.stream import VideoStream

from spark_ray.media.sampling import SamplingGrid
from spark_ray.media.source import MediaSource

_EPSILON_S = 1e-6


class VideoDecoder(Protocol):
    """Packets in, frames out. `packets` counts what came in, `errors` what could not be decoded."""

    packets: int
    errors: int

    def push(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]: ...

    def finish(self) -> list[av.VideoFrame]: ...


class FullDecoder:
    """Decodes everything: scene scores look at every frame."""

    def __init__(self, stream: av.VideoStream) -> None:
        self._codec = stream.codec_context
        self.packets = 0
        self.errors = 0

    def push(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        self.packets += 1
        return self._decode(packet)

    def finish(self) -> list[av.VideoFrame]:
        return self._decode(None)

    def _decode(self, packet: av.Packet[VideoStream] | None) -> list[av.VideoFrame]:
        try:
            return self._codec.decode(packet)
        except FFmpegError:
            self.errors += 1
            return []


class FastDecoder(FullDecoder):
    """Leaves out frames that no other frame refers to, and the deblocking filter.

    About half the work. The sampled frame may be the next reference frame instead of the exact one,
    and missing deblocking adds up until the next keyframe.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        super().__init__(stream)
        self._codec.skip_frame = "NONREF"
        self._codec.options = {**self._codec.options, "skip_loop_filter": "all"}


class UntimedDecoder(FullDecoder):
    """For AVI, which stores no presentation times: with B-frames those of the packets are wrong.

    Frames come out in the right order, and every packet has one time in storage order. So each
    frame takes the smallest time that no frame before it took.
    """

    def __init__(self, stream: av.VideoStream) -> None:
        super().__init__(stream)
        self._times: list[int] = []

    def push(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        if packet.dts is not None:
            heapq.heappush(self._times, packet.dts)
        return super().push(packet)

    def _decode(self, packet: av.Packet[VideoStream] | None) -> list[av.VideoFrame]:
        errors = self.errors
        frames = super()._decode(packet)
        if self.errors > errors and self._times:
            heapq.heappop(self._times)
        for frame in frames:
            if self._times:
                frame.pts = heapq.heappop(self._times)
        return frames


class SparseDecoder(FullDecoder):
    """Decodes only what the frames on the sampling grid need; those are the same to the byte.

    Packets are held back until the next target's time comes into reach. If a keyframe arrives
    first, at or before the target, nothing between was needed and it is dropped undecoded. On the
    way to a target, frames that no other frame refers to are skipped as well, and behind the last
    target everything. What is left is decoded from the keyframe on, so long groups of pictures save
    less than short ones, and codecs that hide their frame types (AV1, VP9) only save whole groups.
    """

    def __init__(self, source: MediaSource, grid: SamplingGrid) -> None:
        super().__init__(source.video)
        self._source = source
        self._grid = grid
        self._held: list[av.Packet[VideoStream]] = []
        self._origin_s = grid.origin_s
        self._first_in_cell: dict[int, float] = {}
        self._last_before: int | None = None

    def push(self, packet: av.Packet[VideoStream]) -> list[av.VideoFrame]:
        self.packets += 1
        frames: list[av.VideoFrame] = []
        if packet.pts is None:
            # Without timestamps there is nothing to decide by.
            return self._feed_held() + self._decode(packet)
        if packet.is_keyframe:
            if self._source.seconds(packet.pts) <= self._grid.next_s + _EPSILON_S:
                self._held = []
                frames += self._restart(before_s=self._source.seconds(packet.pts))
            else:
                frames += self._feed_held()
        self._held.append(packet)
        reached = packet.dts if packet.dts is not None else packet.pts
        if self._source.seconds(reached) >= self._grid.next_s - _EPSILON_S:
            frames += self._feed_held()
        return frames

    def finish(self) -> list[av.VideoFrame]:
        if not self._may_hold_target():
            self._held = []
        return self._feed_held() + self._decode(None)

    def _may_hold_target(self) -> bool:
        if self._last_before_span(self._held) is not None:
            return True
        next_s = self._grid.next_s - _EPSILON_S
        return any(p.pts is None or self._source.seconds(p.pts) >= next_s for p in self._held)

    def _restart(self, before_s: float) -> list[av.VideoFrame]:
        """Take what the decoder still holds and begin anew at a keyframe."""
        pending = self._decode(None)
        self._codec.flush_buffers()
        return [f for f in pending if f.pts is None or self._source.seconds(f.pts) < before_s]

    def _feed_held(self) -> list[av.VideoFrame]:
        held, self._held = self._held, []
        self._last_before = self._last_before_span(held)
        return [frame for packet in held for frame in self._feed(packet)]

    def _last_before_span(self, packets: list[av.Packet[VideoStream]]) -> int | None:
        """Timestamp of the picture that is on show when the span begins: it may be all it shows."""
        start_s = self._grid.next_s - _EPSILON_S
        if start_s <= 0 or self._grid.next_s != self._grid.origin_s:
            return None
        times = [p.pts for p in packets if p.pts is not None]
        return max((pts for pts in times if self._source.seconds(pts) < start_s), default=None)

    def _feed(self, packet: av.Packet[VideoStream]) -> Iterator[av.VideoFrame]:
        self._codec.skip_frame = "DEFAULT" if self._may_be_target(packet) else "NONREF"
        yield from self._decode(packet)

    def _may_be_target(self, packet: av.Packet[VideoStream]) -> bool:
        """Whether the grid may choose this frame: no known frame of its cell comes before it.

        The decoder hands frames out some packets late, so the grid's own state is of no use here.
        """
        if packet.pts is None:
            return True
        time_s, next_s = self._source.seconds(packet.pts), self._grid.next_s - _EPSILON_S
        if time_s < next_s:
            return packet.pts == self._last_before
        if self._grid.origin_s != self._origin_s:
            self._origin_s, self._first_in_cell = self._grid.origin_s, {}
        cell = self._grid.cell(time_s)
        if time_s >= self._first_in_cell.get(cell, math.inf):
            return False
        self._first_in_cell = {c: t for c, t in self._first_in_cell.items() if t >= next_s}
        self._first_in_cell[cell] = time_s
        return True


def choose_decoder(
    source: MediaSource, grid: SamplingGrid, *, fast: bool, every_frame: bool
) -> VideoDecoder:
    """The decoder that serves a pass: `every_frame` where all are looked at, not the grid's."""
    if source.info.container == "avi":
        return UntimedDecoder(source.video)
    if fast:
        return FastDecoder(source.video)
    if every_frame:
        return FullDecoder(source.video)
    return SparseDecoder(source, grid)

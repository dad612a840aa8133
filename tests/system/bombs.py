"""Small files that would become large, or take for ever, if they were believed."""

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_SIDE = 65_500
_SMALL = 64
_NOTHING = bytes(300_000_000)


def huge_picture() -> bytes:
    """All pixels are there: 536 MB at a bit each, 13 GB in colour; half a megabyte of PNG."""
    return _png(_SIDE, _SIDE, bits=1, colour=0)


def profile_picture() -> bytes:
    """A picture of 64 × 64 pixels, with a colour profile of 300 MB."""
    picture = _png(_SMALL, _SMALL, bits=8, colour=2)
    profile = _chunk(b"iCCP", b"a\0\0" + zlib.compress(_NOTHING, 9))
    return picture[:33] + profile + picture[33:]


def wide_video(folder: Path) -> bytes:
    """A frame of 8192 × 8192 pixels."""
    return _video(folder / "wide.mp4", [0, 1], side=8192)


def fast_video(folder: Path) -> bytes:
    """2,000 frames in 2 ms."""
    return _video(folder / "fast.mp4", range(2000), rate=1_000_000)


def long_video(folder: Path) -> bytes:
    """Three frames in 46 days."""
    return _video(folder / "long.mkv", [0, 25, 10**8])


def many_frames(folder: Path) -> bytes:
    """As many frames as fit into a megabyte, 62 s of them."""
    return _video(folder / "many.mp4", range(62_000), rate=999)


def lying_video(folder: Path) -> bytes:
    """A film of 64 × 64 pixels, as it says, of whose two frames one has 65,500 × 65,500."""
    path = folder / "lying.mov"
    small = _png(_SMALL, _SMALL, bits=8, colour=2)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=2)
        stream.width = stream.height = _SMALL
        stream.pix_fmt = "rgb24"
        for number, data in enumerate((huge_picture(), small)):
            packet = av.Packet(data)
            packet.stream, packet.time_base = stream, Fraction(1, 2)
            packet.pts = packet.dts = number
            container.mux(packet)
    return path.read_bytes()


def archive(depth: int) -> bytes:
    """Nothing, 300 MB of it, in as many archives around each other; each holds five of the next."""
    data, name = _NOTHING, "film.mp4"
    for _ in range(depth):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
            for number in range(1 if data is _NOTHING else 5):
                made.writestr(f"{number}-{name}", data)
        data, name = file.getvalue(), "archive.zip"
    return data


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:xz") as made:
        entry = tarfile.TarInfo("film.mp4")
        entry.size = len(_NOTHING)
        made.addfile(entry, io.BytesIO(_NOTHING))
    return file.getvalue()


def archive_in_disguise() -> bytes:
    """It begins as an MP4 does; who looks at its end sees an archive."""
    return struct.pack(">I4s4sI4s", 20, b"ftyp", b"isom", 0, b"isom") + archive(1)


def _png(width: int, height: int, *, bits: int, colour: int) -> bytes:
    stride = (width * bits * (3 if colour == 2 else 1) + 7) // 8 + 1
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(stride)) for _ in range(height)) + packer.flush()
    head = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = _chunk(b"IHDR", head) + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _video(path: Path, times: Iterable[int], *, side: int = _SMALL, rate: int = 25) -> bytes:
    black = av.VideoFrame.from_ndarray(np.zeros((side, side, 3), np.uint8), format="rgb24")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=rate, options={"preset": "ultrafast"})
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = black.time_base = Fraction(1, rate)
        for time in times:
            black.pts = time
            container.mux(stream.encode(black))
        container.mux(stream.encode(None))
    return path.read_bytes()

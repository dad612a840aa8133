"""What kind of media some bytes begin, known by their content and never by a name or header."""

from typing import Literal, get_args

MediaKind = Literal["video", "audio", "image"]
KINDS: tuple[MediaKind, ...] = get_args(MediaKind)

SNIFFED_BYTES = 4096
"""Bytes from the start of a file that `media_type` looks at."""

_TS_PACKET_BYTES = 188
_SOUND_BRANDS = (b"M4A ", b"M4B ")


def media_type(head: bytes) -> tuple[MediaKind, str] | None:
    """Kind and MIME type of a file that begins with `head`; None for what we don't read.

    A container that may hold either is called video; whether there are pictures in it shows when it
    is opened.
    """
    for at, signature, kind, mime in _SIGNATURES:
        if head[at : at + len(signature)] == signature:
            return kind, mime
    if head[4:8] == b"ftyp":
        if head[8:12] in _SOUND_BRANDS:
            return "audio", "audio/mp4"
        return "video", "video/quicktime" if head[8:12] == b"qt  " else "video/mp4"
    if head[:4] == b"RIFF":
        return _RIFF.get(head[8:12])
    if head[:1] == b"G" and head[_TS_PACKET_BYTES : _TS_PACKET_BYTES + 1] == b"G":
        return "video", "video/mp2t"
    # MPEG audio without a tag: eleven set bits, then a layer that exists.
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xE0 == 0xE0 and head[1] & 0x06:
        return "audio", "audio/mpeg"
    if len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0:
        return "audio", "audio/aac"
    return None


_RIFF: dict[bytes, tuple[MediaKind, str]] = {
    b"WAVE": ("audio", "audio/wav"),
    b"AVI ": ("video", "video/x-msvideo"),
    b"WEBP": ("image", "image/webp"),
}
_SIGNATURES: tuple[tuple[int, bytes, MediaKind, str], ...] = (
    (0, b"\xff\xd8\xff", "image", "image/jpeg"),
    (0, b"\x89PNG\r\n\x1a\n", "image", "image/png"),
    (0, b"fLaC", "audio", "audio/flac"),
    (0, b"OggS", "audio", "audio/ogg"),
    (0, b"ID3", "audio", "audio/mpeg"),
    (0, b"\x1a\x45\xdf\xa3", "video", "video/x-matroska"),
    (0, b"\x00\x00\x01\xba", "video", "video/mpeg"),
    (4, b"moov", "video", "video/quicktime"),
    (4, b"mdat", "video", "video/quicktime"),
)

"""The codecs: that those we promise are there, and that pictures and sound survive a round trip."""

import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import numpy as np
from av.codec.codec import Codec, UnknownCodecError

from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding
from spark_ray.media.encode import AudioTrack, Track, VideoTrack, write_tracks

DECODERS = (
    *("h264", "hevc", "vp8", "vp9", "libdav1d", "mpeg4", "mpeg2video", "mjpeg"),
    *("aac", "libopus", "mp3float", "flac", "vorbis", "ac3", "pcm_s16le"),
)
ENCODERS = ("libx264", "aac", "flac", "pcm_s16le")

# Other builds leave out codecs with patents, or bind to whatever FFmpeg the system has.
_REINSTALL = "install PyAV's own wheel: pip install --force-reinstall --only-binary av av"
_SIDE, _FRAMES, _RATE = 64, 8, 8


def check_codecs(config: DoctorConfig) -> Iterator[Finding]:
    yield check_decoders(DECODERS)
    yield check_encoders(ENCODERS)
    yield check_round_trip("libx264", "aac")


def check_decoders(names: Sequence[str]) -> Finding:
    missing = [name for name in names if not _exists(name, "r")]
    return _said("decodes", names, missing)


def check_encoders(names: Sequence[str]) -> Finding:
    missing = [name for name in names if not _exists(name, "w")]
    return _said("encodes", names, missing)


def check_round_trip(video: str, audio: str) -> Finding:
    """Write a second of noise and a tone, and read them again."""
    noise = np.random.default_rng(0).integers(0, 256, (_FRAMES, _SIDE, _SIDE, 3), np.uint8)
    time_s = np.arange(16_000) / 16_000
    tone = (8_000 * np.sin(2 * np.pi * 440 * time_s)).astype(np.int16)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "clip.mp4"
        tracks: list[Track] = [
            VideoTrack(frames=noise, rate=Fraction(_RATE), codec=video),
            AudioTrack(pcm=tone, sample_rate=16_000, codec=audio),
        ]
        try:
            write_tracks(file, tracks)
            with av.open(str(file)) as container:
                frames = sum(1 for _ in container.decode(video=0))
            with av.open(str(file)) as container:
                samples = sum(frame.samples for frame in container.decode(audio=0))
        except (av.FFmpegError, ValueError) as error:
            return Finding("codecs", "wrong", f"{video} and {audio} fail: {error}; {_REINSTALL}")
    if frames != _FRAMES or samples < len(tone):
        return Finding(
            "codecs",
            "wrong",
            f"{video} and {audio} gave back {frames} of {_FRAMES} frames and {samples} of "
            f"{len(tone)} samples; {_REINSTALL}",
        )
    return Finding("codecs", "ok", f"a clip of {video} and {audio} comes back whole")


def _said(verb: str, names: Sequence[str], missing: Sequence[str]) -> Finding:
    if missing:
        text = f"PyAV {av.__version__} {verb} no {', '.join(missing)}; {_REINSTALL}"
        return Finding("codecs", "wrong", text)
    return Finding("codecs", "ok", f"PyAV {av.__version__} {verb} {', '.join(names)}")


def _exists(name: str, mode: Literal["r", "w"]) -> bool:
    try:
        Codec(name, mode)
    except UnknownCodecError:
        return False
    return True

"""Sound in and out of a clip row: 16-bit mono samples as FLAC or WAV bytes.

FLAC is lossless at about half the size of WAV for speech; encoding costs about 1 ms of CPU for a
second of sound. The same samples always give the same bytes, so a clip's files can be addressed by
their content.
"""

import io
from typing import Literal

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from spark_ray.core.errors import CorruptMedia

AudioCodec = Literal["flac", "wav"]

SAMPLE_RATE = 16_000
"""Hz of all audio in a clip row: what Whisper and every other speech model here listen to."""

_ENCODERS: dict[AudioCodec, str] = {"flac": "flac", "wav": "pcm_s16le"}


def encode_audio(
    pcm: NDArray[np.int16], codec: AudioCodec, sample_rate: int = SAMPLE_RATE
) -> bytes:
    """The samples, of shape `(samples,)`, as a complete FLAC or WAV file.

    Raises:
        ValueError: `pcm` is not one-dimensional int16, or is empty: FFmpeg can't read back a WAV
            without samples, and a clip without sound carries no audio at all.
    """
    if pcm.ndim != 1 or pcm.dtype != np.int16 or not pcm.size:
        raise ValueError(f"pcm must be int16 of shape (samples,), not {pcm.dtype} of {pcm.shape}")

    file = io.BytesIO()
    # Without `bitexact` FFmpeg writes its own version into the header, and an upgrade would change
    # the bytes of sound that is the same.
    with av.open(file, "w", format=codec, options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(
            _ENCODERS[codec], rate=sample_rate, options={"flags": "+bitexact"}
        )
        assert isinstance(stream, av.AudioStream)
        stream.layout = "mono"
        stream.format = "s16"
        frame = av.AudioFrame.from_ndarray(
            np.ascontiguousarray(pcm)[np.newaxis], format="s16", layout="mono"
        )
        frame.sample_rate = sample_rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode_audio(data: bytes) -> NDArray[np.float32]:
    """Samples of shape `(samples,)` at 16 kHz, mono, in [-1, 1).

    What `encode_audio` wrote at 16 kHz comes back exactly; other rates and layouts are resampled.

    Raises:
        CorruptMedia: the bytes hold no audio stream, or one that can't be decoded.
    """
    resampler = av.AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
    chunks: list[NDArray[np.int16]] = []
    try:
        with av.open(io.BytesIO(data), "r") as container:
            if not container.streams.audio:
                raise CorruptMedia("the clip's audio bytes hold no audio stream")
            for frame in container.decode(audio=0):
                chunks += [part.to_ndarray()[0] for part in resampler.resample(frame)]
            if chunks:
                chunks += [part.to_ndarray()[0] for part in resampler.resample(None)]
    except FFmpegError as error:
        raise CorruptMedia(f"the clip's audio bytes can't be decoded: {error}") from error
    if not chunks:
        return np.zeros(0, dtype=np.float32)
    return np.concatenate(chunks).astype(np.float32) / 32768.0

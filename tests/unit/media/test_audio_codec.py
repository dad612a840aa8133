import hashlib
import io
import wave

import numpy as np
import pytest
from numpy.typing import NDArray

from spark_ray.core.errors import CorruptMedia
from spark_ray.media.audio_codec import AudioCodec, decode_audio, encode_audio

CODECS: list[AudioCodec] = ["flac", "wav"]


def noise(samples: int) -> NDArray[np.int16]:
    return np.random.default_rng(7).integers(-32768, 32768, samples).astype(np.int16)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("samples", [1, 15, 4607, 4608, 4609, 48_000])
def test_samples_come_back_exactly(codec: AudioCodec, samples: int) -> None:
    pcm = noise(samples)
    decoded = decode_audio(encode_audio(pcm, codec))
    assert decoded.dtype == np.float32
    np.testing.assert_array_equal(decoded * 32768, pcm)


@pytest.mark.parametrize("codec", CODECS)
def test_same_samples_same_bytes(codec: AudioCodec) -> None:
    digests = {hashlib.sha256(encode_audio(noise(20_000), codec)).hexdigest() for _ in range(3)}
    assert len(digests) == 1


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_do_not_name_the_encoder(codec: AudioCodec) -> None:
    data = encode_audio(noise(20_000), codec)
    assert b"Lavf" not in data
    assert b"Lavc" not in data


def test_a_strided_view_is_encoded_as_its_values() -> None:
    pcm = noise(2000)
    assert encode_audio(pcm[::2], "wav") == encode_audio(pcm[::2].copy(), "wav")


def test_wav_is_readable_by_the_standard_library() -> None:
    with wave.open(io.BytesIO(encode_audio(noise(1234), "wav"))) as file:
        assert (file.getnframes(), file.getframerate(), file.getnchannels()) == (1234, 16_000, 1)


def test_flac_is_smaller_for_a_tone() -> None:
    tone = (np.sin(np.arange(16_000) / 10) * 8000).astype(np.int16)
    assert len(encode_audio(tone, "flac")) < len(encode_audio(tone, "wav"))


def test_other_rates_are_resampled_to_16_khz() -> None:
    tone = (np.sin(np.arange(48_000) / 50) * 8000).astype(np.int16)
    assert abs(decode_audio(encode_audio(tone, "wav", sample_rate=48_000)).size - 16_000) < 50


@pytest.mark.parametrize("data", [b"", b"not audio at all", b"fLaC\0\0"])
def test_unreadable_bytes_are_corrupt_media(data: bytes) -> None:
    with pytest.raises(CorruptMedia, match="audio bytes"):
        decode_audio(data)


def test_only_samples_in_one_dimension_are_accepted() -> None:
    with pytest.raises(ValueError, match="float32"):
        encode_audio(np.zeros(4, dtype=np.float32), "wav")
    with pytest.raises(ValueError, match="shape"):
        encode_audio(np.zeros((2, 4), dtype=np.int16), "wav")
    with pytest.raises(ValueError, match="shape"):
        encode_audio(np.zeros(0, dtype=np.int16), "wav")

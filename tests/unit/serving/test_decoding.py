"""The decoder: whose threads are for those who still wait."""

import asyncio
import io
import threading
from pathlib import Path
from typing import Any

import av
import pytest
from media_factory import FORMATS, tone

from spark_ray.core.errors import CorruptMedia
from spark_ray.media import single_files
from spark_ray.media.audio_codec import encode_audio
from spark_ray.media.decode import _Pass
from spark_ray.serving.decoding import Decoder, decode_file, decode_options
from spark_ray.serving.messages import Decoded, MediaFile
from spark_ray.serving.settings import RequestLimits


class Gate:
    """Holds the first call of a method until it is opened, and counts the calls."""

    def __init__(self, method: Any) -> None:
        self.method, self.calls = method, 0
        self.reached, self.open = threading.Event(), threading.Event()

    def __get__(self, instance: Any, owner: Any) -> Any:
        def call(*given: Any) -> Any:
            self.calls += 1
            self.reached.set()
            assert self.open.wait(20)
            return self.method(instance, *given)

        return call


async def leave(decoder: Decoder, file: MediaFile, gate: Gate) -> Decoded:
    """What the only thread decodes next, after the caller of `file` went away halfway."""
    decoding = asyncio.create_task(decoder.decode(file))
    assert await asyncio.to_thread(gate.reached.wait, 20)
    decoding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await decoding
    gate.open.set()
    picture = io.BytesIO()
    single_files.Image.new("RGB", (32, 32)).save(picture, "PNG")
    place = Path(file.location).parent / "picture.png"
    place.write_bytes(picture.getvalue())
    return await decoder.decode(MediaFile(location=str(place), kind="image", sha256="1" * 64))


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_a_decode_that_nobody_waits_for_ends_at_its_next_frame(
    kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "video":
        path = FORMATS["mpeg4 avi"](tmp_path)
        with av.open(str(path)) as container:
            whole = sum(1 for _ in container.decode(video=0))
        gate = Gate(_Pass._on_frame)
        monkeypatch.setattr(_Pass, "_on_frame", gate)
    else:
        path = tmp_path / "tone.flac"
        path.write_bytes(encode_audio(tone(10.0), "flac"))
        with av.open(str(path)) as container:
            whole = sum(1 for _ in container.decode(audio=0))
        gate = Gate(single_files.AudioTrack.push)
        monkeypatch.setattr(single_files.AudioTrack, "push", gate)

    file = MediaFile(location=str(path), kind=kind, sha256="0" * 64)
    decoder = Decoder({}, RequestLimits.model_validate({}), threads=1)
    decoded = asyncio.run(leave(decoder, file, gate))
    assert len(decoded.clip.frames) == 1, "the thread is free for another"
    assert whole > 20
    assert gate.calls <= 2, "the rest of it is not decoded"


def test_a_video_that_is_cut_off_is_not_told_of_its_sound_alone(tmp_path: Path) -> None:
    """Without its index nothing of it is known, whatever it was meant to be."""
    whole = FORMATS["h264 intra only"](tmp_path).read_bytes()
    half = tmp_path / "half.mp4"
    half.write_bytes(whole[: len(whole) // 2])
    file = MediaFile(location=str(half), kind="video", sha256="2" * 64)
    options = decode_options({}, RequestLimits.model_validate({}))
    with pytest.raises(CorruptMedia, match=r"no readable video: .* cut off before its index; and"):
        decode_file(file, options)

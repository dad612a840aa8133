"""A published dataset of 24 tiny films with captions, some with sound and words."""

import sys
from pathlib import Path

import numpy as np

from spark_ray.core.schema import Clip, Transcript
from spark_ray.media.audio_codec import encode_audio

sys.path.append(str(Path(__file__).parents[1] / "unit" / "datasets"))
from fake_version import jpeg, make_clip, write_version

_COLOURS = ("red", "green", "blue")


def write_films(root: Path) -> None:
    clips = [some_clip(number) for number in range(24)]
    version, _ = write_version(root, clips)
    for clip in clips:
        if clip.audio is not None:
            version.write(f"data/{clip.clip_id[:2]}/{clip.clip_id}/audio.flac", clip.audio)


def some_clip(number: int) -> Clip:
    caption = f"a {_COLOURS[number % 3]} circle in place {number % 7}"
    clip = make_clip(number, source=f"/films/{number}.mp4", caption=caption, dropped=())
    frames = 1 + number % 4
    clip.frames = [jpeg(8 * number + i, size=64) for i in range(frames)]
    clip.samples = [clip.samples[0].model_copy(update={"time": 0.5 * i}) for i in range(frames)]
    clip.transcript = Transcript(text=f"we count to {number}") if number % 5 else None
    if number % 6:
        times = np.arange(16_000) / 16_000
        tone = 9000 * np.sin(2 * np.pi * 40 * (number + 1) * times)
        clip.audio = encode_audio(np.round(tone).astype(np.int16), "flac")
    return clip

"""What everyone writes first: a program for each need, and each reads and decodes the whole file.

With ffmpeg and ffprobe on the PATH those are run. Without, the same steps go through PyAV, each
with a demuxer and a decoder of its own; that is kind to them, as no process has to start.
"""

import json
import os
import shutil
import subprocess
import wave
from pathlib import Path

import av
import cv2
from scenedetect import ContentDetector, detect

WIDTH = 224
_ONE_THREAD = "threads;1"


def has_ffmpeg() -> bool:
    return shutil.which("ffmpeg") is not None and shutil.which("ffprobe") is not None


def baseline_name() -> str:
    tools = "ffprobe, ffmpeg" if has_ffmpeg() else "probe, frames and audio by PyAV"
    return f"the naive programs ({tools}, PySceneDetect; a pass each)"


def prepare(path: Path, folder: Path) -> list[int]:
    """All four steps for one file, their results in `folder`; returns the cuts' frame numbers."""
    folder.mkdir(parents=True, exist_ok=True)
    probe(path, folder / "probe.json")
    frames(path, folder)
    audio(path, folder / "audio.wav")
    cuts = scenes(path)
    (folder / "scenes.json").write_text(json.dumps(cuts))
    return cuts


def probe(path: Path, target: Path) -> None:
    if has_ffmpeg():
        target.write_bytes(_run("ffprobe", "-v", "error", "-show_format", "-show_streams",
                                "-of", "json", str(path)))  # fmt: skip
        return
    with av.open(str(path)) as container:
        video = container.streams.video[0].codec_context
        facts = {"size": [video.width, video.height], "duration": container.duration}
        target.write_text(json.dumps(facts))


def frames(path: Path, folder: Path) -> None:
    """One JPEG a second, 224 pixels wide."""
    if has_ffmpeg():
        _run("ffmpeg", "-threads", "1", "-i", str(path), "-vf", f"fps=1,scale={WIDTH}:-2",
             "-threads", "1", "-q:v", "3", str(folder / "frame_%06d.jpg"))  # fmt: skip
        return
    with av.open(str(path)) as container:
        video = _single_threaded(container.streams.video[0])
        due, number = 0, 0
        for frame in container.decode(video):
            if frame.time >= due:
                due, number = due + 1, number + 1
                height = round(WIDTH * frame.height / frame.width)
                image = frame.to_ndarray(format="bgr24", width=WIDTH, height=height)
                cv2.imwrite(str(folder / f"frame_{number:06d}.jpg"), image)


def audio(path: Path, target: Path) -> None:
    """The sound as WAV, 16 kHz mono."""
    if has_ffmpeg():
        _run("ffmpeg", "-threads", "1", "-i", str(path), "-vn", "-ac", "1", "-ar", "16000",
             str(target))  # fmt: skip
        return
    resampler = av.AudioResampler("s16", "mono", 16_000)
    with av.open(str(path)) as container, wave.open(str(target), "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        for frame in (*container.decode(audio=0), None):
            for resampled in resampler.resample(frame):
                file.writeframes(resampled.to_ndarray().tobytes())


def scenes(path: Path) -> list[int]:
    """The frames at which PySceneDetect, with its defaults, begins a new scene."""
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = _ONE_THREAD
    return [start.frame_num for start, _ in detect(str(path), ContentDetector())][1:]


def decode_only(path: Path) -> None:
    """Decode picture and sound on one thread, and look at neither."""
    with av.open(str(path)) as container:
        _single_threaded(container.streams.video[0])
        for packet in container.demux():
            packet.decode()


def _single_threaded(stream: av.VideoStream) -> av.VideoStream:
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def _run(program: str, *arguments: str) -> bytes:
    quiet = ["-v", "error", "-y"] if program == "ffmpeg" else []
    return subprocess.run([program, *quiet, *arguments], stdout=-1, check=True).stdout

"""The deployment that turns a stored file into a clip: the same decode as in the dataset job."""

import asyncio
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

from spark_ray.core.errors import CorruptMedia, NotAVideo
from spark_ray.core.logging import configure_logging
from spark_ray.core.provenance import VIDEO_ID_CHARS
from spark_ray.core.schema import Clip, FrameSample, clip_id
from spark_ray.core.storage import open_read, read_bytes
from spark_ray.datasets.config import BuildConfig
from spark_ray.media.deadline import within
from spark_ray.media.decode import Span, decode_clips
from spark_ray.media.single_files import read_picture, read_sound
from spark_ray.monitoring.logs import serve_ids
from spark_ray.serving.messages import Decoded, MediaFile
from spark_ray.serving.settings import RequestLimits


def decode_options(settings: Mapping[str, object], limits: RequestLimits) -> BuildConfig:
    """How served media are decoded: as a job would, within what a request may ask for."""
    return BuildConfig.from_values(
        **{
            **settings,
            "input": ["-"],
            "output": "served",
            "split": "none",
            "clip_max_s": limits.max_clip_s,
            "max_pixels": limits.max_pixels,
            "max_file_bytes": limits.max_upload_bytes,
            "decode_timeout_s": limits.request_timeout_s,
        }
    )


def decode_file(file: MediaFile, options: BuildConfig, gone: threading.Event | None = None) -> Clip:
    """The whole file as one clip: frames of a video or picture, sound of a video or recording.

    Raises:
        CancelledError: `gone` was set meanwhile, because nobody waits for the clip.
        MediaError: it can't be used, or is longer, larger or slower than the options allow.
    """
    video_id = file.sha256[:VIDEO_ID_CHARS]
    base = Clip(
        clip_id=clip_id(video_id, 0.0, 0.0),
        video_id=video_id,
        unit_id=video_id,
        source_path=file.location,
        source_hash=file.sha256,
    )
    if file.kind == "image":
        picture = read_picture(
            read_bytes(file.location, options.max_file_bytes), options, options.max_pixels
        )
        return base.model_copy(
            update={"end_s": 0.0, "frames": [picture], "samples": [FrameSample(time=0.0)]}
        )
    no_video: NotAVideo | None = None
    if file.kind == "video":
        try:
            return _decode_video(file, base, options, gone)
        except NotAVideo as error:
            no_video = error  # a container without pictures may still have sound
    try:
        with open_read(file.location) as opened:
            audio, seconds = read_sound(opened, options, options.clip_max_s, gone=gone)
    except (NotAVideo, CorruptMedia) as error:
        if no_video is None:
            raise
        raise CorruptMedia(f"{no_video}; and {error}") from error
    return base.model_copy(
        update={"clip_id": clip_id(video_id, 0.0, seconds), "end_s": seconds, "audio": audio}
    )


def _decode_video(
    file: MediaFile, base: Clip, options: BuildConfig, gone: threading.Event | None
) -> Clip:
    with open_read(file.location) as opened:
        language = options.transcription_language
        (decoded,) = decode_clips(opened, Span(), options, language, gone)
    assert base.video_id is not None
    return base.model_copy(
        update={
            "clip_id": clip_id(base.video_id, decoded.start_s, decoded.end_s),
            "start_s": decoded.start_s,
            "end_s": decoded.end_s,
            "video": decoded.info,
            "samples": decoded.samples,
            "frames": decoded.frames,
            "audio": decoded.audio,
            "scenes": decoded.scenes,
            "subtitles": decoded.subtitles,
            "subtitle_language": decoded.subtitle_language,
        }
    )


class Decoder:
    """Decodes a file at a time in each of its threads."""

    def __init__(self, settings: dict[str, object], limits: RequestLimits, threads: int) -> None:
        configure_logging(ids=serve_ids)
        self._settings, self._limits = settings, limits
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def decode(self, file: MediaFile) -> Decoded:
        loop, gone = asyncio.get_running_loop(), threading.Event()
        try:
            return await loop.run_in_executor(self._threads, self._decode, file, gone)
        except asyncio.CancelledError:
            gone.set()  # its thread is for those who still wait
            raise

    def _decode(self, file: MediaFile, gone: threading.Event) -> Decoded:
        started = time.perf_counter()
        options = decode_options({**self._settings, **file.decoding}, self._limits)
        # A read on storage that hangs would hold the thread for ever.
        clip = within(
            lambda: decode_file(file, options, gone), options.decode_timeout_s, "decoding it"
        )
        return Decoded(clip=clip, seconds=time.perf_counter() - started)

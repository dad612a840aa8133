"""The programs that are measured, each in a fresh process; the last line that it prints is JSON."""

import argparse
import json
import logging
import multiprocessing
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import ray

from benchmarks import naive
from benchmarks.harness import peak_rss_mib
from spark_ray.core.background import beside
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.datasets.plan import scan_file
from spark_ray.datasets.units import units_of
from spark_ray.media.decode import DecodeOptions, Span, decode_clips

_LOOK_EVERY_S = 0.5


def build(source: Path, output: Path, address: str | None, workers: int) -> dict[str, Any]:
    """The dataset job, without models, on a running Ray or one of its own."""
    config = BuildConfig(
        input=[str(source)],
        output=str(output / "built"),
        caption_backend="none",
        transcription_backend="none",
        decode_workers=workers,
        ray_address=address,
    )
    started = time.perf_counter()
    result = build_dataset(config)
    wall_s = time.perf_counter() - started
    clips = result.publication.clips if result.publication else 0
    return {"clips": clips, "wall_s": wall_s, "driver_peak_mib": peak_rss_mib()}


def watched_build(source: Path, output: Path, address: str | None, workers: int) -> dict[str, Any]:
    """`build`, with how full Ray's object store was at most."""
    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    peak_mib = 0.0

    def watch(over: threading.Event) -> None:
        nonlocal peak_mib
        while not over.wait(_LOOK_EVERY_S):
            whole, free = ray.cluster_resources(), ray.available_resources()
            used = whole["object_store_memory"] - free["object_store_memory"]
            peak_mib = max(peak_mib, used / 2**20)

    with beside(watch, "object store"):
        answer = build(source, output, address, workers)
    return answer | {"object_store_peak_mib": peak_mib}


def pool(source: Path, output: Path, address: str | None, workers: int) -> dict[str, Any]:
    """The same decode function over a plain multiprocessing pool, writing the same files."""
    return _in_pool(partial(_decode_and_store, output), source, workers)


def naive_pool(source: Path, output: Path, address: str | None, workers: int) -> dict[str, Any]:
    """The naive script over a plain multiprocessing pool."""
    return _in_pool(partial(_prepare_naively, output), source, workers)


def long_file(source: Path, output: Path, address: str | None, workers: int) -> dict[str, Any]:
    """Decode one file unit by unit, as a decode actor does, and keep nothing."""
    cv2.setNumThreads(1)
    config = BuildConfig(input=[str(source)], output="unused/unused")
    record = scan_file(InputFile(str(source)), config)
    before_mib, clips = peak_rss_mib(), 0
    for unit in units_of(record, config):
        with source.open("rb") as file:
            clips += sum(1 for _ in decode_clips(file, Span(unit.start_s, unit.end_s), config))
    return {"clips": clips, "peak_mib": peak_rss_mib(), "before_mib": before_mib}


def _in_pool(work: Callable[[Path], None], source: Path, workers: int) -> dict[str, Any]:
    files = sorted(source.glob("*.mp4"))
    started = time.perf_counter()
    with multiprocessing.Pool(workers, initializer=cv2.setNumThreads, initargs=(1,)) as processes:
        done = sum(1 for _ in processes.imap_unordered(work, files))
    return {"clips": done, "wall_s": time.perf_counter() - started}


def _decode_and_store(output: Path, path: Path) -> None:
    with path.open("rb") as file:
        for clip in decode_clips(file, Span(), DecodeOptions()):
            folder = output / path.stem
            folder.mkdir(parents=True, exist_ok=True)
            for number, jpeg in enumerate(clip.frames, 1):
                (folder / f"frame_{number:06d}.jpg").write_bytes(jpeg)
            (folder / "audio.flac").write_bytes(clip.audio or b"")


def _prepare_naively(output: Path, path: Path) -> None:
    naive.prepare(path, output / path.stem)


PROGRAMS = {
    "build": build,
    "watched-build": watched_build,
    "pool": pool,
    "naive": naive_pool,
    "long": long_file,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("source", type=Path)
    parser.add_argument("--address")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    output = Path(tempfile.mkdtemp(prefix="spark-ray-benchmark-"))
    try:
        answer = PROGRAMS[given.program](given.source, output, given.address, given.workers)
    finally:
        shutil.rmtree(output, ignore_errors=True)
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()

"""Reads mutated videos, one after the other, and says what became of each.

    python mutation_worker.py FOLDER FIRST LAST

Runs as a process of its own, because a mutant may crash FFmpeg's native code: what it printed last
names the mutant. Each line is JSON: `{"begin": i}` before and `{"end": i, ...}` after mutant `i`.
"""

import json
import random
import resource
import sys
import time
from itertools import islice
from pathlib import Path

import cv2

from spark_ray.core.errors import MediaError, StorageError
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.datasets.plan import scan_file
from spark_ray.media.decode import Span, decode_clips

_ADDRESS_SPACE = 12 << 30


def mutate(data: bytes, seed: int) -> bytes:
    """The file with a few of the injuries that files meet, or that an attacker would give them."""
    rng = random.Random(seed)
    mutant = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5))):
        injury = rng.choice(("flip", "flip", "header", "cut", "swap", "size", "zero", "repeat"))
        at = rng.randrange(len(mutant))
        if injury == "flip":
            for _ in range(rng.choice((1, 8, 64))):
                mutant[rng.randrange(len(mutant))] = rng.randrange(256)
        elif injury == "header":
            mutant[rng.randrange(min(len(mutant), 1500))] ^= 1 << rng.randrange(8)
        elif injury == "cut":
            del mutant[max(64, at) :]
        elif injury == "swap":
            size = rng.choice((16, 188, 1024))
            other = rng.randrange(len(mutant))
            a, b = bytes(mutant[at : at + size]), bytes(mutant[other : other + size])
            mutant[at : at + len(b)], mutant[other : other + len(a)] = b, a
        elif injury == "size":
            value = rng.choice((0, 1, 7, 0x7FFFFFFF, 0xFFFFFFFF, rng.randrange(1 << 32)))
            at = _near_a_box(mutant, rng)
            mutant[at : at + 4] = value.to_bytes(4, rng.choice(("big", "little")))
        elif injury == "zero":
            mutant[at : at + 256] = bytes(len(mutant[at : at + 256]))
        else:
            mutant[at:at] = mutant[at : at + 512]
    return bytes(mutant)


_BOXES = (b"moov", b"trak", b"stsz", b"stts", b"ctts", b"elst", b"stsc", b"stco", b"mdhd", b"avcC",
          b"stsd", b"tkhd", b"RIFF", b"strh", b"strf", b"idx1", b"movi")  # fmt: skip


def _near_a_box(data: bytearray, rng: random.Random) -> int:
    """A place just before or after a known box's name, or anywhere if there is none."""
    found = [at for box in _BOXES if (at := data.find(box)) >= 4]
    if not found:
        return rng.randrange(len(data))
    return rng.choice(found) + rng.choice((-4, 4, 8, 12, 16, 20, 24))


def read(path: Path, config: BuildConfig) -> str:
    """What became of the file: `ok`, the verdict of the scan, or the error's class."""
    record = scan_file(InputFile(str(path)), config)
    if record.verdict != "video":
        return record.reject.error if record.reject else record.verdict
    try:
        with path.open("rb") as file:
            clips = list(islice(decode_clips(file, Span(), config), 50))
    except (MediaError, StorageError) as error:
        return type(error).__name__
    return "ok" if clips and all(clip.frames for clip in clips) else "a clip without frames"


def main(folder: Path, first: int, last: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_ADDRESS_SPACE, _ADDRESS_SPACE))
    cv2.setNumThreads(1)
    sources = sorted(folder.glob("source.*"))
    for number in range(first, last):
        source = sources[number % len(sources)]
        detection = "on" if number // len(sources) % 2 else "off"
        config = BuildConfig.from_values(
            input=["x"],
            output="y",
            scene_detection=detection == "on",
            max_corrupt_ratio=1.0 if number % 3 else 0.05,
            fps=10,
        )
        path = folder / f"mutant_{number}{source.suffix}"
        path.write_bytes(mutate(source.read_bytes(), number))
        print(json.dumps({"begin": number, "source": source.name}), flush=True)
        started = time.perf_counter()
        try:
            outcome = read(path, config)
        except Exception as error:  # noqa: BLE001 - this is what the test looks for
            outcome = f"raised {type(error).__name__}: {error}"
        peak_mb = peak_rss_mb()
        seconds = time.perf_counter() - started
        line = {"end": number, "outcome": outcome, "seconds": seconds, "peak_mb": peak_mb}
        print(json.dumps(line), flush=True)
        path.unlink()


def peak_rss_mb() -> int:
    """VmHWM and not ru_maxrss: the kernel hands the latter down from whoever forked us."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) >> 10


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))

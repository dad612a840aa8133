"""Builds for tests: small videos that say who they are, command lines, and how to compare datasets.

Two datasets are the same when everything in them is, times and code versions aside: `contents`
gives a dataset in that form, hidden files included, so that leftovers show.
"""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil
import pyarrow.parquet as pq

from spark_ray.cli import main
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.media.encode import write_video

HERE = Path(__file__).parent
SIDE = 64
_BITS = 8


# ---- videos ------------------------------------------------------------------------------------


def number_frames(number: int, frames: int) -> Iterator[np.ndarray]:
    """Pictures of `number` in binary: eight tiles, light for one, dark for nought."""
    picture = np.zeros((SIDE, SIDE, 3), np.uint8)
    for bit in range(_BITS):
        row, column = divmod(bit, 4)
        level = 215 if number >> bit & 1 else 40
        picture[row * 32 : row * 32 + 32, column * 16 : column * 16 + 16] = level
    for _ in range(frames):
        yield picture


def number_seen(jpeg: bytes) -> int:
    """The number that `number_frames` drew, read back from a frame of any size."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)
    tiles = cv2.resize(picture, (4, 2), interpolation=cv2.INTER_AREA).ravel()
    return sum(1 << bit for bit in range(_BITS) if tiles[bit] > 128)


def write_number(path: Path, number: int, seconds: float = 1.0, rate: int = 8) -> Path:
    """A video that shows one number throughout; takes some ms."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, number_frames(number, round(seconds * rate)), Fraction(rate))
    return path


def write_numbers(folder: Path, numbers: Sequence[int]) -> Path:
    """A folder of such videos, each with its number as the caption beside it."""
    for number in numbers:
        path = write_number(folder / f"clip_{number:03d}.mp4", number)
        path.with_suffix(".txt").write_text(caption_of_number(number))
    return folder


def caption_of_number(number: int) -> str:
    return f"the number {number}"


def write_counting(path: Path, numbers: Sequence[int], seconds_each: float = 1.0) -> Path:
    """One long video that shows one number after the other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rate = 8
    pictures = (
        picture
        for number in numbers
        for picture in number_frames(number, round(seconds_each * rate))
    )
    write_video(path, pictures, Fraction(rate), gop=rate)
    return path


# ---- the command line --------------------------------------------------------------------------


def command(*arguments: object) -> list[str]:
    """`spark-ray …` in this interpreter."""
    return [sys.executable, "-m", "spark_ray.cli", *map(str, arguments)]


def build_command(source: object, output: object, **settings: object) -> list[str]:
    flags = [
        text
        for name, value in settings.items()
        for text in (f"--{name.replace('_', '-')}", str(value))
    ]
    return command("data", "build", "--input", source, "--output", output, *flags)


def build(source: object, output: object, **settings: Any) -> Path:
    """Build in this process, on the shared cluster; the version's folder."""
    config = BuildConfig.from_values(input=[str(source)], output=str(output), **settings)
    result = build_dataset(config)
    assert result.publication is not None, "nothing was published"
    return Path(result.version.location)


def killed_command(first: int, stop_file: Path, *arguments: object) -> list[str]:
    """`spark-ray …`, killed again and again; see `killed_driver`."""
    driver = HERE / "killed_driver.py"
    return [sys.executable, str(driver), str(first), str(stop_file), *map(str, arguments)]


def main_here(*arguments: object) -> int:
    """`spark-ray …` in this process, on the shared cluster; its exit status."""
    return main([str(argument) for argument in arguments])


def run(
    arguments: Sequence[str], *, env: dict[str, str] | None = None, timeout: float = 400
) -> subprocess.CompletedProcess[str]:
    """Run to the end and return status and what was printed."""
    everything = {**os.environ, **(env or {})}
    return subprocess.run(
        arguments, capture_output=True, text=True, timeout=timeout, env=everything
    )


def start(arguments: Sequence[str], **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **env},
        start_new_session=True,
    )


def assert_published(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"


def assert_one_sentence(done: subprocess.CompletedProcess[str], status: int) -> str:
    """The command failed as a user may see it: that status, and one line that begins with error."""
    assert done.returncode == status, f"status {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    return errors[0]


def wait_until(
    condition: Callable[[], Any],
    what: str,
    *,
    driver: subprocess.Popen[str] | None = None,
    seconds: float = 300,
    pause_s: float = 0.003,
) -> Any:
    """The first true value of `condition`, asked after pauses of `pause_s` while the driver lives.

    A condition that is slow to ask is asked less often: it takes the CPU from what it waits for.
    """
    end = time.monotonic() + seconds
    while (asked := time.monotonic()) < end:
        if value := condition():
            return value
        if driver is not None and driver.poll() is not None:
            raise AssertionError(f"ended before {what}: {driver.communicate()}")
        time.sleep(min(1.0, max(pause_s, 2 * (time.monotonic() - asked))))
    raise AssertionError(f"waited {seconds:g} s in vain: {what}")


def kill(process: subprocess.Popen[str]) -> None:
    """kill -9, now."""
    process.send_signal(signal.SIGKILL)
    process.communicate()


def decode_workers(root: psutil.Process) -> list[psutil.Process]:
    """Ray's decoding workers among the descendants of a process, busy or not."""
    return processes(root, "MapBatches", "MapWorker")


def processes(root: psutil.Process, *words: str) -> list[psutil.Process]:
    """Ray's processes among the descendants of one whose titles hold any of these words."""
    found = []
    for child in root.children(recursive=True):
        try:
            title = " ".join(child.cmdline())
        except psutil.Error:
            continue
        if title.startswith("ray::") and any(word in title for word in words):
            found.append(child)
    return found


# ---- datasets ----------------------------------------------------------------------------------


def json_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def manifest(version: Path) -> list[dict[str, Any]]:
    return json_lines(version / "manifest.jsonl")


def rejects(version: Path) -> list[dict[str, Any]]:
    return json_lines(version / "rejects.jsonl")


def parts(version: Path) -> list[Path]:
    return list((version / "parts" / "committed").glob("*.jsonl"))


def contents(version: Path) -> dict[str, Any]:
    """Every file of a version by its path: normalised where it tells times, hashed where not."""
    files = (path for path in sorted(version.rglob("*")) if path.is_file())
    return {
        str(path.relative_to(version)): normalised(path.name, path.read_bytes()) for path in files
    }


def normalised(name: str, data: bytes) -> Any:
    if name == "manifest.jsonl":
        return [_without_times(json.loads(line)) for line in data.splitlines()]
    if name == "metadata.json":
        metadata = json.loads(data)
        for key in ("created", "started", "code_version", "git_commit", "manifest_sha256"):
            metadata.pop(key)
        metadata["statistics"].pop("step_seconds")
        if metadata["parent"]:
            metadata["parent"].pop("manifest_sha256")
        return metadata
    if name == "report.html":
        return "a report"
    if name.endswith(".parquet"):
        rows = pq.read_table(io.BytesIO(data)).to_pylist()
        for row in rows:
            row["meta"] = _without_times({"meta": json.loads(row["meta"])})
        return rows
    return hashlib.sha256(data).hexdigest()


def _without_times(line: dict[str, Any]) -> dict[str, Any]:
    provenance = line["meta"]["provenance"]
    for key in ("processing_timestamp", "code_version"):
        provenance.pop(key)
    for step in provenance["lineage"]["processing_steps"]:
        step.pop("duration_s")
    return line


def assert_same(version: Path, undisturbed: Path) -> None:
    """Both hold the same clips, rejects, files and bytes. Names what differs."""
    found, expected = contents(version), contents(undisturbed)
    assert {"metadata.json", "manifest.jsonl"} <= set(expected)
    assert sorted(found) == sorted(expected)
    for name, content in expected.items():
        assert (name, found[name]) == (name, content)

"""The dataset job, but each clip also waits as long as a larger one would be decoded.

A wait takes no CPU, so two cores suffice for many nodes, and what the nodes can do is known.

    python -m benchmarks.waiting_build VIDEOS OUTPUT SECONDS
"""

import os
import sys
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import ray

import spark_ray.datasets.build as job
from spark_ray.core.schema import Clip
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.stages import DecodeStage


class WaitingDecode(DecodeStage):
    """Decodes, waits for each clip that came out, and notes where and when that was done."""

    def __init__(self, wait_s: float, notes: Path, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._wait_s, self._notes = wait_s, notes

    def process(self, clips: Iterable[Clip]) -> Iterator[Clip]:
        node = ray.util.get_node_ip_address()
        with (self._notes / f"{node}-{os.getpid()}").open("a") as notes:
            for clip in super().process(clips):
                time.sleep(self._wait_s)
                notes.write(f"{time.monotonic()} {node}\n")
                notes.flush()
                yield clip


def notes_of(output: Path) -> list[tuple[float, str]]:
    """Of a build at that output: when each clip was done, and on which node."""
    lines = (
        line.split() for file in _notes(output).iterdir() for line in file.read_text().splitlines()
    )
    return sorted((float(moment), node) for moment, node in lines)


def _notes(output: Path) -> Path:
    return output.with_name(f"{output.name}-notes")


def main() -> None:
    videos, output, wait_s = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
    notes = _notes(output)
    notes.mkdir(parents=True, exist_ok=True)
    job.DecodeStage = partial(WaitingDecode, wait_s, notes)  # type: ignore[misc, assignment]
    result = job.build_dataset(
        BuildConfig(
            input=[videos],
            output=str(output),
            caption_backend="none",
            transcription_backend="none",
        )
    )
    assert result.publication is not None
    print(f"published {result.publication.clips} clips")


if __name__ == "__main__":
    # By its name, and not as `__main__`, so that workers find the class.
    from benchmarks import waiting_build

    waiting_build.main()

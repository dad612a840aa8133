"""The job that accidents happen to, a dataset build, and what it left."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.material import TINY, clip_folder


@dataclass(frozen=True)
class Job:
    """A command that goes on where it stopped when it is given again.

    `progress` counts what is done for good, from 0 to `total`; `outcome` is what must be the same,
    whatever happened on the way.
    """

    name: str
    command: list[str]
    total: int
    progress: Callable[[], int]
    outcome: Callable[[], dict[str, str]]


def build_job(folder: Path, *, quick: bool) -> Job:
    """A dataset build, each clip of which also waits."""
    count, wait_s = (32, 0.1) if quick else (120, 0.5)
    output = folder / "set"
    version = output / "v1"
    videos = clip_folder("nodes", count, TINY)
    command = [sys.executable, "-m", "benchmarks.waiting_build"]

    def progress() -> int:
        if (version / "metadata.json").exists():
            return count
        files = (version / "parts" / "committed").glob("*.jsonl")
        try:
            ids = {json.loads(line)["id"] for file in files for line in file.open()}
        except FileNotFoundError:  # it is being published
            return count
        return len(ids)

    def outcome() -> dict[str, str]:
        """Each clip's line, times aside, and every file by the hash of its bytes."""
        found = {}
        for line in (version / "manifest.jsonl").read_bytes().splitlines():
            clip = json.loads(line)
            clip["meta"].pop("provenance")
            assert clip["id"] not in found, f"{clip['id']} is there twice"
            found[clip["id"]] = json.dumps(clip, sort_keys=True)
        if len(found) != count:
            raise RuntimeError(f"{len(found)} clips were published of {count}")
        for file in sorted((version / "data").rglob("*")):
            if file.is_file():
                name = str(file.relative_to(version))
                found[name] = hashlib.sha256(file.read_bytes()).hexdigest()
        return found

    return Job("build", [*command, str(videos), str(output), str(wait_s)], count, progress, outcome)

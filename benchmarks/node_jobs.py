"""The jobs that accidents happen to: a build, a training run and a sweep, and what each left."""

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.harness import CACHE, WORKERS
from benchmarks.material import TINY, clip_folder
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.media.synthetic import write_world

_TOLERANCE = 1e-3
"""Of weights and losses, where another number of workers adds up in another order."""


@dataclass(frozen=True)
class Outcome:
    """What a job left: what must be the same to the byte, and numbers within rounding."""

    exact: Any
    numbers: np.ndarray

    def is_of(self, other: "Outcome") -> bool:
        """Whether the two are the same."""
        if self.exact != other.exact or self.numbers.shape != other.numbers.shape:
            return False
        return np.allclose(self.numbers, other.numbers, rtol=_TOLERANCE, atol=_TOLERANCE)


@dataclass(frozen=True)
class Job:
    """A command that goes on where it stopped when it is given again.

    `progress` counts what is done for good, from 0 to `total`.
    """

    name: str
    command: list[str]
    total: int
    progress: Callable[[], int]
    outcome: Callable[[], Outcome]


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

    def outcome() -> Outcome:
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
        return Outcome(found, np.zeros(0))

    return Job("build", [*command, str(videos), str(output), str(wait_s)], count, progress, outcome)


def training_job(folder: Path, *, quick: bool) -> Job:
    """A training run on as many one-CPU nodes as there are, two at most."""
    steps = 8 if quick else 150
    run = folder / "run"
    settings = _training(steps, folder) | {
        "output_dir": str(run),
        "num_workers": [1, 2],
        "cpus_per_worker": 0.6,
        "data_cpus": 0.4,
        "max_failures": 10,
    }

    def progress() -> int:
        if (run / "model" / "training.json").exists():
            return steps
        return max((_step(file) for file in run.glob("step-*/state.json")), default=0)

    def outcome() -> Outcome:
        record = json.loads((run / "model" / "training.json").read_text())
        tensors = load_file(run / "model" / "model.safetensors")
        weights = np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
        return Outcome({"steps": record["steps"], "tensors": sorted(tensors)}, weights)

    return Job(
        "training", _command(folder, settings, "train", "apotheon"), steps, progress, outcome
    )


def sweep_job(folder: Path, *, quick: bool) -> Job:
    """A sweep of four trials, one on each one-CPU node at a time."""
    trials, steps = (2, 4) if quick else (4, 40)
    study = folder / "study"
    training = _training(steps, folder)
    training.pop("tracking_uri")
    settings = {
        "study_dir": str(study),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "search": "grid",
        "metric": "loss",
        "space": {
            "learning_rate": {
                "type": "choice",
                "values": [round(1e-4 * (number + 1), 6) for number in range(trials)],
            }
        },
        "train": {
            **training,
            "num_workers": 1,
            "cpus_per_worker": 0.6,
            "data_cpus": 0.4,
            "max_failures": 10,
        },
    }

    def records() -> list[dict[str, Any]]:
        found = [json.loads(file.read_text()) for file in (study / "trials").glob("*.json")]
        return sorted(found, key=lambda trial: trial["number"])

    def progress() -> int:
        return sum(max((r["step"] for r in trial["reports"]), default=0) for trial in records())

    def outcome() -> Outcome:
        found = records()
        exact = [
            (trial["number"], trial["params"], trial["state"], trial["reports"][-1]["step"])
            for trial in found
        ]
        losses = [trial["reports"][-1]["metrics"]["loss"] for trial in found]
        return Outcome(exact, np.array(losses))

    total = trials * steps
    return Job("sweep", _command(folder, settings, "tune"), total, progress, outcome)


def _step(state: Path) -> int:
    try:
        return int(json.loads(state.read_text())["step"])
    except (FileNotFoundError, ValueError):  # it is being removed, or written
        return 0


def _training(steps: int, folder: Path) -> dict[str, Any]:
    epochs = steps  # of two clips a step and more than two clips: never too few
    return {
        "dataset": str(_dataset()),
        "tasks": ["caption"],
        "epochs": epochs,
        "max_steps": steps,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "mixed_precision": "fp32",
        "engine": "ddp",
        "threads_per_worker": 1,
        "max_frames": 2,
        "checkpoint_every_steps": 2,
        "validate_every_epochs": epochs,
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "curriculum": [{"name": "pictures", "epochs": epochs, "modalities": ["text", "image"]}],
    }


def _dataset() -> Path:
    """Clips of the demo's world, once, into the cache."""
    folder = CACHE / "nodes-world"
    done = folder / "dataset.done"
    if not done.exists():
        write_world(folder / "world", 24, workers=WORKERS)
        build_dataset(
            BuildConfig.from_values(
                input=[str(folder / "world" / "clips")],
                output=str(folder / "dataset"),
                caption_backend="sidecar",
                transcription_backend="none",
            )
        )
        done.touch()
    return folder / "dataset"


def _command(folder: Path, settings: dict[str, Any], *words: str) -> list[str]:
    file = folder / "settings.yaml"  # JSON is YAML
    file.write_text(json.dumps(settings))
    return [sys.executable, "-m", "spark_ray.cli", *words, "--config", str(file)]

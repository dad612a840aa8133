"""The jobs that accidents happen to: a build, a training run and a sweep, and what each left."""

import hashlib
import json
import sqlite3
import sys
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from benchmarks.material import TINY, clip_folder

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

    `progress` counts what is done for good, from 0 to `total`; `outcome` is what must be the same,
    whatever happened on the way.
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


def training_job(folder: Path, *, quick: bool, dataset: Path) -> Job:
    """A training run on as many one-CPU nodes as there are, two at most."""
    steps = 24 if quick else 300
    run = folder / "run"
    settings = {
        **_training(dataset, steps),
        "output_dir": str(run),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "num_workers": [1, 2],
    }

    def progress() -> int:
        if (run / "model" / "training.json").exists():
            return steps
        return max((_step(file) for file in run.glob("step-*/state.json")), default=0)

    def outcome() -> Outcome:
        """The weights, and of which steps MLflow has a loss: of each, and once."""
        record = json.loads((run / "model" / "training.json").read_text())
        tensors = load_file(run / "model" / "model.safetensors")
        weights = np.concatenate([tensors[name].ravel() for name in sorted(tensors)])
        exact = {"steps": record["steps"], "logged": _logged(folder / "mlflow.db")}
        return Outcome(exact, weights)

    command = _command(folder, settings, "train", "apotheon")
    return Job("trained", command, steps, progress, outcome)


def sweep_job(folder: Path, *, quick: bool, dataset: Path) -> Job:
    """A sweep of four trials, one on each one-CPU node at a time."""
    trials, steps = (2, 12) if quick else (4, 60)
    study = folder / "study"
    rates = [round(1e-4 * number, 6) for number in range(1, trials + 1)]
    settings = {
        "study_dir": str(study),
        "tracking_uri": f"sqlite:///{folder}/mlflow.db",
        "search": "grid",
        "metric": "loss",
        "space": {"learning_rate": {"type": "choice", "values": rates}},
        "train": {**_training(dataset, steps), "num_workers": 1},
    }

    def records() -> list[dict[str, Any]]:
        found = [json.loads(file.read_text()) for file in (study / "trials").glob("*.json")]
        return sorted(found, key=lambda trial: str(trial["params"]))

    def progress() -> int:
        return sum(max((r["step"] for r in trial["reports"]), default=0) for trial in records())

    def outcome() -> Outcome:
        """Each trial's course, and of which steps MLflow has a loss: of each, and once."""
        found = records()
        courses = [
            (trial["params"], trial["state"], sorted({r["step"] for r in trial["reports"]}))
            for trial in found
        ]
        losses = [trial["reports"][-1]["metrics"]["loss"] for trial in found]
        return Outcome((courses, _logged(folder / "mlflow.db")), np.array(losses))

    total = trials * steps
    return Job("tuned", _command(folder, settings, "tune"), total, progress, outcome)


def _training(dataset: Path, steps: int) -> dict[str, Any]:
    epochs = steps  # of two clips a step and more than two clips: never too few
    return {
        "dataset": str(dataset),
        "tasks": ["caption"],
        "epochs": epochs,
        "max_steps": steps,
        "batch_size": 2,
        "gradient_accumulation": 1,
        "mixed_precision": "fp32",
        "engine": "ddp",
        "threads_per_worker": 1,
        "cpus_per_worker": 0.6,
        "data_cpus": 0.4,
        "max_frames": 2,
        "max_failures": 10,
        "checkpoint_every_steps": 2,
        "validate_every_epochs": epochs,
        "curriculum": [{"name": "pictures", "epochs": epochs, "modalities": ["text", "image"]}],
    }


def _step(state: Path) -> int:
    try:
        return int(json.loads(state.read_text())["step"])
    except (FileNotFoundError, ValueError):  # it is being removed, or written
        return 0


def _logged(database: Path) -> list[list[int]]:
    """The steps of which each run has a loss in MLflow."""
    steps: dict[str, list[int]] = defaultdict(list)
    with closing(sqlite3.connect(database)) as tables:
        for run, step in tables.execute("select run_uuid, step from metrics where key = 'loss'"):
            steps[run].append(step)
    return sorted(sorted(found) for found in steps.values())


def _command(folder: Path, settings: dict[str, Any], *words: str) -> list[str]:
    file = folder / "settings.yaml"  # JSON is YAML
    file.write_text(json.dumps(settings))
    return [sys.executable, "-m", "spark_ray.cli", *words, "--config", str(file)]

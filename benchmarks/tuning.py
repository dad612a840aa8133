"""How many steps ASHA takes to find what random search finds with its whole budget.

First a real study: trials drawn at random over a wide space, each a whole training run on clips
like those of the demo, validated after every epoch. Its records are the table of learning curves.
Then five searches of either kind over that table, each with trials in an order of its own: random
search trains a half of them to their ends; ASHA, with the scheduler of our studies and its
defaults, takes them all as they come, two at a time, and ends what is worse than others were. A
step of a replayed curve is a step of training, so the two are compared by steps, and the noise of
the machine is left out.
"""

import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from ray.tune.experiment import Trial

from benchmarks.harness import CACHE, RESULTS, WORKERS, Result
from spark_ray.core.storage import Folder
from spark_ray.datasets.build import build_dataset
from spark_ray.datasets.config import BuildConfig
from spark_ray.demo.world import SAMPLING
from spark_ray.media.synthetic import write_world
from spark_ray.training.search.algorithms import scheduler
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import (
    RUNS,
    Study,
    TrialRecord,
    read_trial,
    write_trial,
)
from spark_ray.training.search.study import tune_training

GOAL = 1 / 3
SEEDS = 5
MORE_SEEDS = 60
"""Of which the median is told beside: that of five moves by a tenth with the seeds."""

METRIC = "validation_loss"
SPACE = {
    "learning_rate": {"type": "float", "min": 1e-5, "max": 1e-1, "log": True},
    "weight_decay": {"type": "float", "min": 0.0, "max": 0.3},
    "beta2": {"type": "float", "min": 0.9, "max": 0.999},
    "warmup_ratio": {"type": "float", "min": 0.0, "max": 0.5},
}

Curve = list[tuple[int, float]]
"""Step and loss, at the end of each epoch."""


@dataclass(frozen=True)
class Size:
    """What is recorded: clips, trials, epochs of each."""

    clips: int
    trials: int
    epochs: int


FULL, QUICK = Size(clips=240, trials=32, epochs=16), Size(clips=96, trials=3, epochs=2)


def run(quick: bool = False, media: Sequence[Path] | None = None) -> Iterator[Result]:
    size = QUICK if quick else FULL
    curves = record(size)
    searches = [search(curves, seed) for seed in range(SEEDS)]
    ratios = [one.ratio for one in searches]
    many = [search(curves, seed).ratio for seed in range(MORE_SEEDS)]
    if not quick:
        draw(searches, RESULTS / "tuning.svg")
    yield Result(
        "tuning",
        "the steps of random search (ASHA to the same validation loss)",
        statistics.median(ratios),
        GOAL,
        (min(ratios), max(ratios)),
        {
            "trials": len(curves),
            "steps_of_a_trial": curves[0][-1][0],
            "ratios": [round(ratio, 4) for ratio in ratios],
            f"median_of_{MORE_SEEDS}_seeds": round(statistics.median(many), 4),
            "reached": [one.reached for one in searches],
            "random_best": [round(one.target, 4) for one in searches],
            "asha_best": [round(one.asha[-1][1], 4) for one in searches],
        },
    )


# The table ---------------------------------------------------------------------------------------


def record(size: Size) -> list[Curve]:
    """The curves of a study, which goes on where an interrupted benchmark left it."""
    folder = CACHE / f"tuning-{size.clips}-{size.trials}-{size.epochs}"
    done = folder / "dataset.done"
    if not done.exists():
        write_world(folder / "world", size.clips, workers=WORKERS)
        build_dataset(
            BuildConfig.from_values(
                input=[str(folder / "world" / "clips")],
                output=str(folder / "dataset"),
                caption_backend="sidecar",
                transcription_backend="subtitles",
                **SAMPLING,
            )
        )
        done.touch()
    return curves_of(tune_training(_study(folder, size)))


def _study(folder: Path, size: Size) -> StudyConfig:
    stage = {"name": "pictures", "epochs": size.epochs, "modalities": ["text", "image"]}
    return StudyConfig.from_values(
        study_dir=str(folder / "study"),
        tracking_uri=f"sqlite:///{folder}/mlflow.db",
        search="random",
        num_samples=size.trials,
        metric=METRIC,
        space=SPACE,
        train={
            "dataset": str(folder / "dataset"),
            "tasks": ["caption"],
            "curriculum": [stage],
            "epochs": size.epochs,
            "frozen": ["vision_stem"],
            "batch_size": 32,
            "gradient_accumulation": 1,
            "mixed_precision": "fp32",
            "engine": "ddp",
            "keep_checkpoints": 1,
            "max_skipped_steps": 1000,
        },
    )


def curves_of(study: Study) -> list[Curve]:
    """Of all trials that told of any loss. One that diverged keeps its last number to the end."""
    found = [
        {report.step: report.metrics[METRIC] for report in reversed(trial.reports)}
        for trial in study.trials
    ]
    steps = sorted({step for points in found for step in points})
    curves = []
    for points in filter(None, found):
        known = [(step, value) for step, value in sorted(points.items())]
        missing = [(step, known[-1][1]) for step in steps if step > known[-1][0]]
        curves.append(known + missing)
    return curves


# The searches ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Search:
    """What each search had found after how many steps, and random search's last best."""

    random: Curve
    asha: Curve
    target: float
    budget: int

    @property
    def reached(self) -> bool:
        return self.asha[-1][1] <= self.target

    @property
    def ratio(self) -> float:
        """ASHA's share of the budget; all of it where it did not get there."""
        steps = [step for step, best in self.asha if best <= self.target]
        return steps[0] / self.budget if steps else 1.0


def search(curves: list[Curve], seed: int) -> Search:
    rng = random.Random(seed)
    chosen = rng.sample(curves, max(1, len(curves) // 2))
    stream = rng.sample(curves, len(curves))
    found = replay(chosen, None)
    with tempfile.TemporaryDirectory(prefix="spark-ray-benchmark-") as folder:
        asha = replay(stream, Rungs(Path(folder), curves[0][-1][0]))
    return Search(found, asha, found[-1][1], found[-1][0])


class Rungs:
    """The scheduler of our studies, told of replayed curves."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder = Folder(str(folder))
        config = StudyConfig.from_values(
            study_dir=str(folder),
            scheduler="asha",
            metric=METRIC,
            space=SPACE,
            train={"dataset": "replayed"},
        )
        self.scheduler = scheduler(config, steps)
        self.trials: dict[int, Trial] = {}

    def ends(self, number: int, step: int, value: float) -> bool:
        """Whether a trial that told this is asked to end."""
        controller: Any = None
        if number not in self.trials:
            name = f"curve_{number:05d}"
            record = TrialRecord(trial_id=name, number=number, params={}, run=f"{RUNS}/{name}")
            write_trial(self.folder, record)
            self.trials[number] = Trial("replay", trial_id=name, stub=True)
            self.scheduler.on_trial_add(controller, self.trials[number])
        trial = self.trials[number]
        self.scheduler.on_trial_result(controller, trial, {"step": step, METRIC: value})
        return read_trial(self.folder, trial.trial_id).state == "stopped"


def replay(curves: list[Curve], rungs: Rungs | None) -> Curve:
    """The best value after every epoch of any trial, of trials that run `WORKERS` at a time."""
    waiting = list(enumerate(curves))
    running: list[tuple[int, int, Iterator[tuple[int, float]]]] = []
    best, total = float("inf"), 0
    history: Curve = []
    while waiting or running:
        while waiting and len(running) < WORKERS:
            number, curve = waiting.pop(0)
            running.append((number, 0, iter(curve)))
        number, before, points = running.pop(0)  # they take turns, at equal speed
        point = next(points, None)
        if point is None:
            continue
        step, value = point
        total, best = total + step - before, min(best, value)
        history.append((total, best))
        if rungs is None or not rungs.ends(number, step, value):
            running.append((number, step, points))
    return history


def draw(searches: list[Search], target: Path) -> None:
    """Both searches, one line a seed, and what random search found with its budget."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for number, one in enumerate(searches):
        for curve, colour, name in (
            (one.random, "#d9822b", "random search"),
            (one.asha, "#2f6fde", "ASHA"),
        ):
            axes.step(
                [step for step, _ in curve],
                [best for _, best in curve],
                where="post",
                color=colour,
                alpha=0.7,
                label=name if number == 0 else None,
            )
    axes.set_xlabel("steps of all trials")
    axes.set_ylabel(METRIC.replace("_", " "))
    axes.legend()
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})

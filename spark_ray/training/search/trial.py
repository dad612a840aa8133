"""A trial, as it runs in its actor: one training run, and what it reports to Ray Tune."""

import json
import math
import tempfile
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ray import tune
from ray.train import Checkpoint
from ray.util.queue import Empty, Queue

from spark_ray.core.background import start_thread
from spark_ray.core.errors import SparkRayError
from spark_ray.core.provenance import text_hash
from spark_ray.core.storage import Folder
from spark_ray.datasets.samples import load_index
from spark_ray.training.checks import prepare
from spark_ray.training.cluster import RunContext, beside_driver, ray_storage
from spark_ray.training.config import TrainConfig
from spark_ray.training.failures import StoppedEarly, known_error
from spark_ray.training.run import TrainResult, train
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import RUNS, read_trial, trial_file
from spark_ray.training.search.reporting import END, GO_ON, Reporter
from spark_ray.training.search.space import Params
from spark_ray.training.state import TrainState
from spark_ray.training.worker import NonFiniteError

PARENT_RUN_TAG = "mlflow.parentRunId"
FAILURES = "failures"
RUN_KEY, MODEL_KEY, EPOCHS = "run", "is_model", "epochs"
_BRANCH = "branch.json"
_POLL_S = 0.5


class MetricNeverReported(SparkRayError):
    """A trial came to its end, and never told the metric by which it is judged."""


@dataclass(frozen=True)
class TrialSetup:
    """What all trials of a study have in common."""

    config: StudyConfig
    resources: dict[str, float]
    tracking_run: str | None

    @property
    def folder(self) -> Folder:
        return Folder(self.config.study_dir)


def run_trial(config: Params, setup: TrialSetup) -> None:
    """Train at one point of the space; `config` is Ray Tune's word for it."""
    trial_id = tune.get_context().get_trial_id()
    assert trial_id is not None
    trial = _Trial(trial_id, config, setup)
    with reason_kept(setup.folder, trial_id):
        if setup.config.scheduler == "pbt":
            trial.train_in_intervals()
        else:
            trial.train_through()


@contextmanager
def reason_kept(folder: Folder, trial_id: str) -> Iterator[None]:
    """Write down in one sentence why a trial failed, before Ray Tune wraps it in tracebacks."""
    try:
        yield
    except Exception as error:
        known = known_error(error)
        failure = {
            "reason": str(known) if known else f"{type(error).__name__}: {error}",
            "kind": type(known or error).__name__,
        }
        folder.write(f"{FAILURES}/{trial_id}.json", json.dumps(failure).encode())
        raise


class _Trial:
    """A point of the space, and how it is trained."""

    def __init__(self, trial_id: str, params: Params, setup: TrialSetup) -> None:
        self.trial_id, self.params, self.setup = trial_id, params, setup
        self.wanted = setup.config.metric
        self.named: set[str] = set()
        self.finite: set[str] = set()

    def train_through(self) -> None:
        """The whole run, reported at each checkpoint until the scheduler has seen enough."""
        if self._is_stopped():
            return
        reports, answers = (Queue(actor_options=beside_driver()) for _ in range(2))
        context = self._context(callbacks=(Reporter(reports, answers),))
        config = self._run_config(self.trial_id)
        run = start_thread(lambda: train(config, context), "train")
        while (metrics := _next_report(reports, run)) is not None:
            answers.put(END if self._report(self.trial_id, metrics) else GO_ON)
        try:
            result = run.result()
        except StoppedEarly:
            return
        # What its model is worth, which is that of the best checkpoint.
        self._report(self.trial_id, {**result.metrics, "step": result.steps}, model=True)
        self._check_reported(self.finite)

    def _is_stopped(self) -> bool:
        folder = self.setup.folder
        return (
            folder.exists(trial_file(self.trial_id))
            and read_trial(folder, self.trial_id).state == "stopped"
        )

    def _report(self, run: str, metrics: Mapping[str, Any], *, model: bool = False) -> bool:
        """Tell Ray Tune what it can compare; whether the scheduler has the trial end."""
        finite = self._finite(metrics)
        if not all(name in finite for name in self.wanted):
            return False  # before the first validation
        tune.report({**finite, RUN_KEY: run, MODEL_KEY: model})
        return self._is_stopped()

    def _finite(self, metrics: Mapping[str, Any]) -> dict[str, float]:
        """Those that can be compared."""
        numbers = {n: float(v) for n, v in metrics.items() if isinstance(v, int | float)}
        found = {name: value for name, value in numbers.items() if math.isfinite(value)}
        self.named |= set(numbers)
        self.finite |= set(found)
        return found

    def _check_reported(self, finite: Collection[str]) -> None:
        """
        Raises:
            MetricNeverReported: there is no such metric, so it would be with every trial.
            NonFiniteError: it was never a number, here.
        """
        for name in self.wanted:
            if name not in self.named:
                raise MetricNeverReported(
                    f"metric: the trial ended and never reported {name!r}; choose one of: "
                    + ", ".join(sorted(self.named))
                )
            if name not in finite:
                raise NonFiniteError(f"{name} was no finite number")

    def train_in_intervals(self) -> None:
        """A run that is compared after every interval, and may go on from another one's weights.

        Each interval is a training run up to a step, since Ray Tune takes a trial over only where
        it stands still; the run's own checkpoint is what is taken over.
        """
        branch = _Branch.last()
        run, parent = self._place(branch)
        context = self._context(parent=parent)
        config = self._run_config(run)
        plan, _ = prepare(config, load_index(config.reference))
        done = branch.epochs if branch else 0
        for epochs in self._ends(done, config.epochs):
            to_here = {"max_steps": min(plan.steps_of(epochs), plan.steps)}
            result: TrainResult = train(config.model_copy(update=to_here), context)
            location, state = TrainState.newest(result.output)
            metrics = self._finite({**state.metrics, "step": state.step, EPOCHS: epochs})
            self._check_reported(metrics)
            with tempfile.TemporaryDirectory(prefix="spark-ray-branch-") as folder:
                branch = _Branch(self.trial_id, run, location, epochs, self.params)
                branch.write(Path(folder))
                checkpoint = Checkpoint.from_directory(folder)
                tune.report({**metrics, RUN_KEY: run}, checkpoint=checkpoint)

    def _ends(self, done: int, total: int) -> list[int]:
        interval = self.setup.config.perturbation_epochs
        return [*range(done + interval, total, interval), *([total] if done < total else [])]

    def _place(self, branch: "_Branch | None") -> tuple[str, Checkpoint | None]:
        """The run that goes on, and where it begins if it is a new one.

        Its name follows from where it begins, so that a killed trial finds it again.
        """
        if branch is None:
            return self.trial_id, None
        if branch.trial_id == self.trial_id and branch.params == self.params:
            return branch.run, None
        origin = f"{branch.checkpoint} {json.dumps(self.params, sort_keys=True)}"
        return (
            f"{self.trial_id}-{text_hash(origin)[:8]}",
            Checkpoint(*ray_storage(branch.checkpoint)),
        )

    def _run_config(self, run: str) -> TrainConfig:
        config = self.setup.config.trial_config(self.params, self.setup.folder / f"{RUNS}/{run}")
        if self.setup.config.scheduler != "pbt":
            return config
        # Others may go on from any of them.
        return config.model_copy(update={"keep_checkpoints": config.epochs + 1})

    def _context(self, **ties: Any) -> RunContext:
        tags = {"study": self.setup.config.study_dir, "trial": self.trial_id}
        if self.setup.tracking_run is not None:
            tags[PARENT_RUN_TAG] = self.setup.tracking_run
        return RunContext(resources=self.setup.resources, tags=tags, **ties)


@dataclass(frozen=True)
class _Branch:
    """What Ray Tune hands on as a trial's checkpoint: where that of its training run is."""

    trial_id: str
    run: str
    checkpoint: str
    epochs: int
    params: Params

    @classmethod
    def last(cls) -> "_Branch | None":
        checkpoint = tune.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return cls(**json.loads((Path(folder) / _BRANCH).read_text()))

    def write(self, folder: Path) -> None:
        (folder / _BRANCH).write_text(json.dumps(self.__dict__))


def _next_report(reports: Queue, run: "Future[TrainResult]") -> dict[str, Any] | None:
    """What the run reports next; None when it has ended."""
    while True:
        ended = run.done()  # before looking: what it said until then is in the queue
        try:
            found: dict[str, Any] = reports.get(timeout=_POLL_S)
        except Empty:
            if ended:
                return None
        else:
            return found

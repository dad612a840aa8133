"""A study as it is kept: what was searched, and what became of every trial. Plain JSON, no Ray.

<study_dir>/
    study.json        settings, and how the study ended
    trials/<id>.json  parameters, state, reason of its end, and all that it reported
    runs/<id>/        the training run of a trial, as `spark-ray train` leaves it
    tune/             what Ray Tune needs to go on; it holds pickles: resume your own studies
    report.html
"""

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from pydantic import Field, ValidationError

from spark_ray.core.errors import ConfigError, DatasetError
from spark_ray.core.schema import Record
from spark_ray.core.storage import Folder
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.space import Params

STUDY, TRIALS, RUNS, TUNE, REPORT = "study.json", "trials", "runs", "tune", "report.html"

_T = TypeVar("_T")
TrialState = Literal["running", "finished", "stopped", "failed"]
StudyState = Literal["running", "finished", "failed"]


class Objective(Record):
    """A metric that is wanted low or high."""

    metric: str
    mode: Literal["min", "max"]

    @property
    def sign(self) -> int:
        """What makes lower better."""
        return 1 if self.mode == "min" else -1

    def better(self, one: float, other: float) -> float:
        return min(one, other) if self.mode == "min" else max(one, other)


class Report(Record):
    """What a trial measured at one of its checkpoints."""

    step: int
    run: str | None = Field(None, description="the training run that it was in, below the study")
    params: Params = Field({}, description="where they are others than at first")
    metrics: dict[str, float]
    model: bool = Field(False, description="whether they are those of the model that it left")


class TrialRecord(Record):
    """A trial."""

    trial_id: str
    number: int
    params: Params
    state: TrialState = "running"
    reason: str | None = None
    run: str = Field(description="its newest training run, below the study")
    seconds: float = 0.0
    reports: list[Report] = Field([])

    def best(self, objective: Objective) -> Report | None:
        """The report with the best value; that of its model alone, once it has left one.

        A trial of a population that went on from another's weights, in a new run, has given up what
        it had: no model of it could be taken home.
        """
        kept = [report for report in self.reports if report.run in (None, self.run)]
        told = [report for report in kept if report.model] or kept
        with_value = [report for report in told if objective.metric in report.metrics]
        return min(
            with_value, key=lambda r: objective.sign * r.metrics[objective.metric], default=None
        )

    def value(self, objective: Objective) -> float | None:
        """What its model is worth, or the best that it reported so far."""
        best = self.best(objective)
        return None if best is None else best.metrics[objective.metric]

    def params_at_best(self, objective: Objective) -> Params:
        """What it was trained with when it was best: population-based training changes that."""
        best = self.best(objective)
        return {**self.params, **(best.params if best else {})}

    @property
    def steps(self) -> int:
        return max((report.step for report in self.reports), default=0)

    @property
    def has_model(self) -> bool:
        """Whether its run came to its end: one that was stopped or failed leaves checkpoints."""
        return self.state == "finished"


class StudyRecord(Record):
    """What the study is, and how it ended."""

    created: str
    config: StudyConfig
    code_version: str
    dataset: str
    init_from: str | None = None
    tracking_run: str | None = None
    state: StudyState = "running"
    planned: int = Field(description="trials that there will be")


class Study:
    """A study on storage. Its driver alone writes it; anyone may read."""

    def __init__(self, folder: Folder, record: StudyRecord, trials: list[TrialRecord]) -> None:
        self.folder, self.record, self.trials = folder, record, trials

    @classmethod
    def load(cls, location: str) -> "Study":
        """
        Raises:
            ConfigError: there is no study.
            DatasetError: its files are damaged.
        """
        folder = Folder(location)
        if not folder.exists(STUDY):
            raise ConfigError(f"{location}: holds no {STUDY}, so it is no study; see tune list")
        record = _parse(folder, STUDY, StudyRecord.model_validate_json)
        return cls(folder, record, read_trials(folder))

    @property
    def name(self) -> str:
        return self.folder.location.rstrip("/").rpartition("/")[2]

    @property
    def dataset_name(self) -> str:
        """Name and version, without the way there."""
        return "@".join(self.record.dataset.rstrip("/").split("/")[-2:])

    @property
    def objectives(self) -> list[Objective]:
        return objectives_of(self.record.config)

    def ranked(self) -> list[TrialRecord]:
        """Trials with a value, the best first; by the first objective where there are more."""
        first = self.objectives[0]
        with_value = [trial for trial in self.trials if trial.value(first) is not None]
        return sorted(with_value, key=lambda t: first.sign * (t.value(first) or 0.0))

    def listed(self) -> list[TrialRecord]:
        """All trials: the ranked ones, then those without a value."""
        ranked = self.ranked()
        seen = {trial.trial_id for trial in ranked}
        return ranked + [trial for trial in self.trials if trial.trial_id not in seen]

    def best_value(self, objective: Objective) -> float | None:
        values = [v for trial in self.trials if (v := trial.value(objective)) is not None]
        return min(values, key=lambda value: objective.sign * value, default=None)

    def pareto_front(self) -> list[TrialRecord]:
        """Trials that no other one beats in every objective."""
        points = [(trial, self._point(trial)) for trial in self.ranked()]
        whole = [(trial, point) for trial, point in points if None not in point]
        others = [point for _, point in whole]
        return [t for t, point in whole if not any(_dominates(other, point) for other in others)]

    def _point(self, trial: TrialRecord) -> tuple[float | None, ...]:
        """By its last report: the bests of several would be those of different weights."""
        values = ((o.sign, trial.reports[-1].metrics.get(o.metric)) for o in self.objectives)
        return tuple(None if value is None else sign * value for sign, value in values)

    def save_record(self) -> None:
        self.folder.write(STUDY, self.record.model_dump_json(indent=1).encode())


def _dominates(one: Sequence[float | None], other: Sequence[float | None]) -> bool:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)


def objectives_of(config: StudyConfig) -> list[Objective]:
    pairs = zip(config.metric, config.mode, strict=True)
    return [Objective(metric=metric, mode=mode) for metric, mode in pairs]


def trial_file(trial_id: str) -> str:
    return f"{TRIALS}/{trial_id}.json"


def read_trials(folder: Folder) -> list[TrialRecord]:
    names = [name for name in folder.names(TRIALS) if name.endswith(".json")]
    trials = [_parse(folder, name, TrialRecord.model_validate_json) for name in names]
    return sorted(trials, key=lambda trial: trial.number)


def read_trial(folder: Folder, trial_id: str) -> TrialRecord:
    return _parse(folder, trial_file(trial_id), TrialRecord.model_validate_json)


def write_trial(folder: Folder, trial: TrialRecord) -> None:
    folder.write(trial_file(trial.trial_id), trial.model_dump_json().encode())


def _parse(folder: Folder, name: str, parse: Callable[[bytes], _T]) -> _T:
    try:
        return parse(folder.read(name))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "it"
        raise DatasetError(
            f"{folder / name}: is damaged, or of another version: {where}: {first['msg']}"
        ) from error


def find_studies(root: str) -> list[Study]:
    """All studies in a folder, by name."""
    folder = Folder(root)
    found = [name for name in folder.children() if folder.exists(f"{name}/{STUDY}")]
    return [Study.load(folder / name) for name in found]

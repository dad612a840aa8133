"""MLflow, as the training loop sees it: it costs microseconds, and it never stops the training.

One process has the `Tracker`. It knows nothing of Ray, whose own MLflow callback Train V2 rejects.

Costs, measured on two busy cores with 30 metrics a step and SQLite: `log_step` takes 0.03 to 0.09
ms. A thread writes what was gathered every 5 s and takes 0.14 ms of CPU a value, 4 ms a step, from
its process: a loop of short steps should log every tenth, or have the tracker in another process.
`start` takes 3 s, of which 2 s are importing MLflow, and 6 s more where it makes the SQLite file.

What is guaranteed, and what is not:

- A server that is down, slow or locked delays `start` by 30 s at most, `finish` by 60, the first
  `flush` by 10, and nothing else. One warning says so; the last 100 000 values are kept, and sent
  when it answers.
- A resumed run is the same MLflow run, and a step has one value for each metric: **the first that
  was written stays**. Steps between the last checkpoint and the kill are done again by the loop;
  their losses are the same, their speeds are those of the first time.
- A kill loses the values that were not sent: of 5 s, or of a whole outage. Where `flush` said True
  before a checkpoint was published, they belong to steps that will be done again.
- NaN and infinities are stored as NaN: MLflow would store infinity as 1.8e308, and no other point
  could be told apart on that axis.
"""

import contextlib
import importlib.metadata
import json
import logging
import math
import os
import platform
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from spark_ray.core.errors import ConfigError
from spark_ray.models.registered import SQLITE, first_line, import_mlflow, open_client, shown_uri

log = logging.getLogger(__name__)

RunStatus = Literal["FINISHED", "FAILED", "KILLED"]

_WRITE_EVERY_S = 5.0
_RETRY_AFTER_S = 30.0
_MAX_KEPT = 100_000
_MAX_TEXT_CHARS = 6000
_LAST_TRY_S = 5.0
_PACKAGES = (
    "spark-ray",
    "ray",
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "accelerate",
    "deepspeed",
    "mlflow",
    "numpy",
)


class _Point(NamedTuple):
    key: str
    value: float
    timestamp_ms: int
    step: int


class Tracker:
    """One run in MLflow. Nothing here raises after `start`, and only `flush` and `finish` wait."""

    def __init__(self, run: "_Run") -> None:
        self._run = run
        self._points: list[_Point] = []
        self._jobs: list[Callable[[], None]] = []
        self._lost = 0
        self._failure: Exception | None = None
        self._warned: set[str] = set()
        # Rounds of writing: a wish is fulfilled when a round that began after it has ended.
        self._wanted, self._done = 0, 0
        self._closed = False
        self._changed = threading.Condition()
        # A daemon: a server that hangs must not keep the process from ending.
        threading.Thread(target=self._write_rounds, name="mlflow", daemon=True).start()

    @classmethod
    def start(
        cls,
        uri: str,
        experiment: str,
        run_name: str,
        run_id: str | None = None,
        timeout_s: float = 30.0,
    ) -> Self:
        """Open a run, or go on with the one that `run_id` names; a new one if that is gone.

        Where the server does not answer in time the training goes on without; `run_id` is then
        what was given until it does.

        Raises:
            ConfigError: MLflow can't use such an address, or not this experiment.
            MissingDependency: MLflow is not installed.
        """
        import_mlflow("tracking a training run")
        tracker = cls(_Run(uri, experiment, run_name, run_id))
        if not tracker.flush(timeout_s) and _is_permanent(tracker._failure):
            assert tracker._failure is not None
            tracker._close()
            raise ConfigError(
                f"tracking_uri: {shown_uri(uri)} can't be used for the experiment {experiment!r}: "
                f"{first_line(tracker._failure)}"
            ) from tracker._failure
        return tracker

    @property
    def run_id(self) -> str | None:
        """What the next `start` needs to go on with this run; keep it in every checkpoint."""
        return self._run.run_id

    def log_settings(
        self, params: Mapping[str, Any], tags: Mapping[str, str] | None = None
    ) -> None:
        """Record settings, nested ones as `outer.inner`, and tags.

        A parameter of MLflow never changes: a setting that is another after a resume becomes the
        tag `changed.<name>`. Texts over 6000 characters are cut; `settings.json` has them whole.
        """
        flat, given = _flatten(params), dict(tags or {})
        self._add(lambda: self._run.write_settings(flat, given))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Store a file, or a folder's content, under the run; it must stay until `flush`."""
        self._add(lambda: self._run.write_artifact(path, folder))

    def log_step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record the metrics of a step."""
        now_ms = time.time_ns() // 1_000_000
        points = [_Point(key, _finite(value), now_ms, step) for key, value in metrics.items()]
        with self._changed:
            self._points += points
            self._trim()

    def flush(self, timeout_s: float = 10.0) -> bool:
        """Wait until all that was logged so far is stored, and say whether it is.

        A server that failed the last time is not waited for.
        """
        return self._failure is None and self._wait(timeout_s)

    def finish(self, status: RunStatus, timeout_s: float = 60.0) -> None:
        """Store what is left and close the run. Without it MLflow shows the run as running."""
        self._add(lambda: self._run.end(status))
        if not self._wait(timeout_s if self._failure is None else _LAST_TRY_S):
            log.warning("tracking: %d values of the run are not stored", len(self._points))
        if self._lost:
            log.warning("tracking: %d values, the oldest kept, had no room", self._lost)
        self._close()

    def _add(self, job: Callable[[], None]) -> None:
        with self._changed:
            self._jobs.append(job)

    def _trim(self) -> None:
        excess = len(self._points) - _MAX_KEPT
        if excess > 0:
            del self._points[:excess]
            self._lost += excess

    def _wait(self, timeout_s: float) -> bool:
        with self._changed:
            self._wanted += 1
            wish = self._wanted
            self._changed.notify_all()
            if not self._changed.wait_for(lambda: self._done >= wish, timeout_s):
                self._note(TimeoutError(f"no answer in {timeout_s:g} s"))
            return self._failure is None

    def _close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _note(self, failure: Exception | None) -> None:
        """One warning when the server stops to answer, and one when it answers again."""
        if failure and not self._failure:
            log.warning(
                "tracking: %s can't be written (%s); the training goes on, and what it logs is "
                "kept and sent later",
                self._run.shown,
                first_line(failure),
            )
        elif self._failure and not failure:
            log.warning("tracking: %s answers again", self._run.shown)
        self._failure = failure

    def _write_rounds(self) -> None:
        while True:
            with self._changed:
                pause_s = _WRITE_EVERY_S if self._failure is None else _RETRY_AFTER_S
                self._changed.wait_for(lambda: self._closed or self._wanted > self._done, pause_s)
                if self._closed:
                    return
                round_, points, jobs = self._wanted, self._points, self._jobs
                self._points, self._jobs = [], []
            failure = None
            try:
                self._run.open()
                self._send(points, jobs)
            except Exception as error:  # noqa: BLE001
                failure = error
            with self._changed:
                self._points[:0] = points
                self._jobs[:0] = jobs
                self._trim()
                self._note(failure)
                self._done = round_
                self._changed.notify_all()

    def _send(self, points: list[_Point], jobs: list[Callable[[], None]]) -> None:
        """Send everything and take it off the lists; what MLflow will never accept goes as well."""
        self._attempt(lambda: self._run.write_points(points))
        points.clear()
        while jobs:
            self._attempt(jobs[0])
            del jobs[0]

    def _attempt(self, job: Callable[[], None]) -> None:
        try:
            job()
        except Exception as error:
            reason = first_line(error)
            if not _is_permanent(error):
                raise
            if reason not in self._warned:
                log.warning("tracking: something was refused and is not stored: %s", reason)
                self._warned.add(reason)


class _Run:
    """The run on the server's side; every call may wait and raise."""

    def __init__(self, uri: str, experiment: str, name: str, run_id: str | None) -> None:
        self.shown = shown_uri(uri)
        self.run_id = run_id
        self._uri, self._experiment, self._name = uri, experiment, name
        self._client: Any = None
        self._params: dict[str, str] = {}
        self._last_step: dict[str, int] = {}

    def open(self) -> None:
        if self._client is not None:
            return
        client = open_client(self._uri)
        run = self._resumed(client) or client.create_run(
            experiment_id(client, self._uri, self._experiment), run_name=self._name
        )
        self.run_id = run.info.run_id
        self._params = dict(run.data.params)
        self._last_step = {metric.key: metric.step for metric in run.data.to_proto().metrics}
        self._client = client

    def _resumed(self, client: Any) -> Any:
        from mlflow.exceptions import MlflowException

        if self.run_id is None:
            return None
        try:
            client.update_run(self.run_id, status="RUNNING")
        except MlflowException as error:
            if not _is_permanent(error):
                raise
            log.warning(
                "tracking: the run %s is gone from %s (%s); a new one is begun",
                self.run_id,
                self.shown,
                first_line(error),
            )
            return None
        return client.get_run(self.run_id)

    def write_points(self, points: list[_Point]) -> None:
        from mlflow.entities import Metric

        # Sent twice after half a failure, a point is the same key in the database and stays one.
        new = [point for point in points if point.step > self._last_step.get(point.key, -1)]
        self._client.log_batch(self.run_id, metrics=[Metric(*point) for point in new])

    def write_settings(self, params: dict[str, str], tags: dict[str, str]) -> None:
        from mlflow.entities import Param, RunTag

        cut = {name: _cut(value) for name, value in params.items()}
        new = {name: value for name, value in cut.items() if name not in self._params}
        changed = {
            f"changed.{name}": value
            for name, value in cut.items()
            if self._params.get(name, value) != value
        }
        self._client.log_batch(
            self.run_id,
            params=[Param(name, value) for name, value in new.items()],
            tags=[RunTag(name, _cut(value)) for name, value in (tags | changed).items()],
        )
        self._params |= new
        if cut != params:
            text = json.dumps(params, indent=2, ensure_ascii=False)
            self._client.log_text(self.run_id, text, "settings.json")

    def write_artifact(self, path: Path, folder: str | None) -> None:
        if path.is_dir():
            self._client.log_artifacts(self.run_id, str(path), folder)
        else:
            self._client.log_artifact(self.run_id, str(path), folder)

    def end(self, status: RunStatus) -> None:
        self._client.set_terminated(self.run_id, status)


def experiment_id(client: Any, uri: str, name: str) -> str:
    """The experiment of that name, made if need be; beside a SQLite file also lie its artifacts."""
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        database = Path(uri.removeprefix(SQLITE)).absolute()
        is_file = uri.startswith(SQLITE)
        artifacts = (database.parent / "mlartifacts").as_uri() if is_file else None
        try:
            return str(client.create_experiment(name, artifacts))
        except MlflowException:
            # Another run may have made it in the same moment.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def environment() -> dict[str, str]:
    """What a run depends on beside its code and settings: versions, and the machine."""
    import torch

    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    found["cpus"] = str(os.cpu_count())
    found["cuda"] = torch.version.cuda or "none"
    gpus = Counter(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))
    found["gpus"] = ", ".join(f"{count} x {name}" for name, count in gpus.items()) or "none"
    return found


def _is_permanent(error: Exception | None) -> bool:
    """Whether trying again is in vain: the request itself is wrong, not the server busy."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")
    return isinstance(error, FileNotFoundError | PermissionError)


def _finite(value: float) -> float:
    return float(value) if math.isfinite(value) else math.nan


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT_CHARS else text[: _MAX_TEXT_CHARS - 1] + "…"


def _flatten(params: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in params.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, Mapping | list | tuple):
            flat[prefix + name] = json.dumps(value, ensure_ascii=False, default=str)
        else:
            flat[prefix + name] = str(value)
    return flat

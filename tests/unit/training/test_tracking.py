import logging
import math
import multiprocessing
import shutil
import socket
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from spark_ray.core.errors import ConfigError
from spark_ray.training import tracking
from spark_ray.training.tracking import Tracker, environment
from spark_ray.training.tracking_uri import default_tracking_uri

pytest.importorskip("mlflow")

from mlflow import MlflowClient


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow takes 6 s to make a database, so it is made once and copied."""
    file = tmp_path_factory.mktemp("empty") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture
def uri(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    return default_tracking_uri(str(tmp_path))


def history(uri: str, run_id: str | None, key: str) -> list[tuple[int, float]]:
    points = MlflowClient(uri).get_metric_history(run_id, key)
    return [(point.step, point.value) for point in points]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "spark_ray.training.tracking"]


def test_a_run_has_settings_metrics_artifacts_and_an_end(uri: str, tmp_path: Path) -> None:
    tracker = Tracker.start(uri, "apotheon", "first")
    tracker.log_settings(
        {"model": {"size": "tiny", "layers": [1, 2]}, "rate": 3e-4, "text": "x" * 9000, "no": None},
        {"dataset": "street@v3"},
    )
    for step in range(1, 51):
        tracker.log_step(step, {"loss/caption": 1 / step, "tokens_per_second": 100.0})
    (tmp_path / "notes.txt").write_text("note")
    tracker.log_artifact(tmp_path / "notes.txt", "texts")
    tracker.finish("FINISHED")

    run = MlflowClient(uri).get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "first"
    assert run.data.tags["dataset"] == "street@v3"
    text = run.data.params.pop("text")
    assert text == "x" * 5999 + "…"
    assert run.data.params == {
        "model.size": "tiny",
        "model.layers": "[1, 2]",
        "rate": "0.0003",
        "no": "None",
    }
    assert history(uri, tracker.run_id, "loss/caption") == [(s, 1 / s) for s in range(1, 51)]
    artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(tmp_path / "mlartifacts")
    assert (artifacts / "texts/notes.txt").read_text() == "note"
    assert "x" * 9000 in (artifacts / "settings.json").read_text()


def test_a_killed_run_goes_on_and_no_step_has_two_values(uri: str) -> None:
    killed = Tracker.start(uri, "apotheon", "run")
    killed.log_settings({"rate": 0.1, "workers": 8})
    for step in range(1, 31):
        killed.log_step(step, {"loss": float(step), "samples_per_second": 10.0})
    killed.log_step(20, {"validation/loss": 5.0})
    assert killed.flush()

    # From the checkpoint of step 20; the steps 21 to 30 are done again, a little faster.
    resumed = Tracker.start(uri, "apotheon", "run", killed.run_id)
    resumed.log_settings({"rate": 0.1, "workers": 4, "new": 1})
    for step in range(21, 41):
        resumed.log_step(step, {"loss": float(step), "samples_per_second": 20.0})
    resumed.log_step(40, {"validation/loss": 4.0})
    resumed.finish("FINISHED")

    assert resumed.run_id == killed.run_id
    assert history(uri, resumed.run_id, "loss") == [(s, float(s)) for s in range(1, 41)]
    speeds = history(uri, resumed.run_id, "samples_per_second")
    assert speeds == [(s, 10.0 if s <= 30 else 20.0) for s in range(1, 41)]
    assert history(uri, resumed.run_id, "validation/loss") == [(20, 5.0), (40, 4.0)]
    run = MlflowClient(uri).get_run(resumed.run_id)
    assert run.data.params == {"rate": "0.1", "workers": "8", "new": "1"}
    assert run.data.tags["changed.workers"] == "4"
    assert run.info.status == "FINISHED"


@pytest.mark.parametrize("deleted", [True, False])
def test_a_run_that_is_gone_is_begun_anew(
    uri: str, deleted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = "0" * 32
    if deleted:
        client = MlflowClient(uri)
        run_id = client.create_run("0").info.run_id
        client.delete_run(run_id)
    tracker = Tracker.start(uri, "apotheon", "run", run_id)
    assert tracker.run_id not in (None, run_id)
    assert f"the run {run_id} is gone" in warnings(caplog)[0]
    tracker.finish("KILLED")


def test_values_that_are_no_numbers_are_stored_as_such(uri: str) -> None:
    tracker = Tracker.start(uri, "apotheon", "run")
    for step, value in enumerate([math.nan, math.inf, -math.inf, 1.0]):
        tracker.log_step(step, {"loss": value})
    tracker.finish("FAILED")
    values = [value for _, value in history(uri, tracker.run_id, "loss")]
    assert [math.isnan(value) for value in values] == [True, True, True, False]


def test_what_mlflow_refuses_is_dropped_with_one_warning(
    uri: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    tracker = Tracker.start(uri, "apotheon", "run")
    for step in range(2):
        tracker.log_step(step, {"loss?!": 1.0})
        assert tracker.flush()
    tracker.log_artifact(tmp_path / "missing")
    tracker.log_step(5, {"loss": 1.0})
    tracker.finish("FINISHED")
    refused, missing = warnings(caplog)
    assert "loss?!" in refused
    assert "missing" in missing
    assert history(uri, tracker.run_id, "loss") == [(5, 1.0)]


def _write(uri: str, name: str) -> None:
    tracker = Tracker.start(uri, "apotheon", name)
    for step in range(200):
        tracker.log_step(step, {"loss": float(step)})
        if step % 20 == 0:
            tracker.flush()
    tracker.finish("FINISHED")


def test_many_runs_write_one_new_sqlite_file(tmp_path: Path) -> None:
    """Not even the file is there: they make it, and the experiment, at the same time."""
    uri = default_tracking_uri(str(tmp_path / "new"))
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(uri, str(number))) for number in range(2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("apotheon")
    runs = client.search_runs([experiment.experiment_id])
    assert {run.info.run_name for run in runs} == {"0", "1"}
    for run in runs:
        assert run.info.status == "FINISHED"
        assert len(history(uri, run.info.run_id, "loss")) == 200


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://user:secret@127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("silent", [True, False])
def test_a_server_out_of_reach_delays_little_and_stops_nothing(
    silent: bool,
    silent_server: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(tracking, "_MAX_KEPT", 1000)
    monkeypatch.setattr(tracking, "_LAST_TRY_S", 0.5)
    address = silent_server if silent else "http://user:secret@127.0.0.1:9"
    begun = time.monotonic()
    tracker = Tracker.start(address, "apotheon", "run", timeout_s=0.5)
    assert tracker.run_id is None
    for step in range(1500):
        tracker.log_step(step, {"loss": 1.0})
        if step % 100 == 0:
            assert not tracker.flush()
    tracker.finish("FINISHED")
    assert time.monotonic() - begun < 60, "MLflow itself would have tried for four minutes"
    unreachable, not_stored, no_room = warnings(caplog)
    assert "the training goes on" in unreachable
    assert "secret" not in unreachable
    assert not_stored == "tracking: 1000 values of the run are not stored"
    assert no_room == "tracking: 500 values, the oldest kept, had no room"


def test_values_of_an_outage_are_sent_afterwards(
    uri: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking, "_RETRY_AFTER_S", 0.05)
    original, is_down = MlflowClient.log_batch, True

    def log_batch(self: Any, *arguments: Any, **values: Any) -> Any:
        # The store wrote half of it, and then was gone.
        answer = original(self, *arguments, **values)
        if is_down and values.get("metrics"):
            raise ConnectionError("gone")
        return answer

    monkeypatch.setattr(MlflowClient, "log_batch", log_batch)
    tracker = Tracker.start(uri, "apotheon", "run")
    for step in range(10):
        tracker.log_step(step, {"loss": float(step)})
        tracker.flush()
    is_down = False
    deadline = time.monotonic() + 10
    while not tracker.flush() and time.monotonic() < deadline:
        time.sleep(0.02)
    tracker.finish("FINISHED")
    assert history(uri, tracker.run_id, "loss") == [(s, float(s)) for s in range(10)]
    gone, back = warnings(caplog)
    assert "(gone)" in gone
    assert back.endswith("answers again")


@pytest.mark.parametrize(
    ("address", "experiment", "reason"),
    [("nonsense://x", "apotheon", "nonsense"), (None, "x" * 600, "experiment")],
)
def test_a_wrong_address_or_experiment_is_an_error_at_the_start(
    uri: str, address: str | None, experiment: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        Tracker.start(address or uri, experiment, "run")


def test_the_environment_variable_goes_before_the_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking")
    assert default_tracking_uri("runs") == "http://tracking"


def test_the_environment_names_versions_and_machine() -> None:
    found = environment()
    assert {"python", "platform", "torch", "spark-ray", "cpus", "gpus"} <= found.keys()
    assert all(isinstance(value, str) and value for value in found.values())


@pytest.mark.alone
def test_logging_a_step_takes_microseconds(uri: str) -> None:
    tracker = Tracker.start(uri, "apotheon", "run")
    metrics = {f"metric/{number}": float(number) for number in range(30)}
    times_s = []
    for step in range(50):
        begun = time.perf_counter()
        tracker.log_step(step, metrics)
        times_s.append(time.perf_counter() - begun)
    assert statistics.median(times_s) < 1e-3, "a step must not wait for the database"
    tracker.finish("FINISHED")


@pytest.fixture(autouse=True)
def capture(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "spark_ray.training.tracking")

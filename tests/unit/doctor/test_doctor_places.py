"""The doctor sees what is broken elsewhere: folders, buckets, weights, trackers, clusters."""

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import ray
from safetensors.numpy import save_file

from spark_ray.cli import main
from spark_ray.doctor import cluster, machine, models, storage
from spark_ray.doctor.config import DoctorConfig


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def in_the_way(tmp_path: Path) -> Path:
    """A file where a folder is wanted; not even root can make one inside."""
    file = tmp_path / "file"
    file.write_text("in the way")
    return file


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """What lies in a folder that we may not look into; root, who may, is somebody else here."""
    folder = tmp_path / "closed"
    (folder / "inside").mkdir(parents=True)
    folder.chmod(0)
    was_root = os.geteuid() == 0
    if was_root:
        os.setresuid(65_534, 65_534, 0)
    yield folder / "inside"
    if was_root:
        os.setresuid(0, 0, 0)
    folder.chmod(0o700)


@pytest.fixture
def tracker() -> Iterator[str]:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Healthy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_folder_that_cannot_be_made(in_the_way: Path) -> None:
    found = storage.check_writable(f"{in_the_way}/sets")
    assert found.state == "wrong"
    assert f"{in_the_way}/sets: this folder can't be made" in found.text


def test_a_folder_is_left_as_it_was(tmp_path: Path) -> None:
    assert storage.check_writable(str(tmp_path)).state in ("ok", "note")
    assert storage.check_writable(str(tmp_path / "new" / "sets")).state in ("ok", "note")
    assert storage.check_readable(str(tmp_path)).state == "ok"
    assert not [path for path in tmp_path.rglob("*") if path.name != "new"]


def test_what_lies_in_a_closed_folder_is_wrong_in_one_line(closed: Path) -> None:
    """A look at it raises, where one at what is missing does not."""
    looked_at = [
        storage.check_readable(str(closed)),
        storage.check_writable(str(closed)),
        models.check_cache(closed / "hub"),
        models.check_model(str(closed)),
        machine.check_ray_folder(closed),
    ]
    for found in looked_at:
        assert found.state == "wrong"
        assert str(closed) in found.text
        assert "\n" not in found.text


def test_an_input_that_is_not_there(tmp_path: Path) -> None:
    found = storage.check_readable(str(tmp_path / "videos"))
    assert (found.state, found.text) == (
        "wrong", f"{tmp_path}/videos: can't read it: it does not exist"
    )  # fmt: skip
    assert storage.check_readable("nosuch://bucket/x").state == "wrong"


def test_a_bucket_behind_a_dead_endpoint_is_the_exit_status(tmp_path: Path) -> None:
    """In a process of its own: the S3 client keeps the endpoint that it saw first."""
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{closed_port()}",
    }
    done = subprocess.run(
        [sys.executable, "-m", "spark_ray.cli", "doctor", "--outputs", "s3://sets/street"],
        capture_output=True, text=True, timeout=200, env=environment, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "s3://sets/street" in line]
    assert line.startswith("wrong  storage")
    assert "the endpoint can't be reached; check AWS_ENDPOINT_URL" in line
    assert "Traceback" not in done.stderr
    states = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert set(states) <= {"ok", "note", "wrong"}
    assert done.stdout.splitlines()[-1].startswith(f"{states.count('wrong')} of {len(states)} ")


def test_the_exit_status_is_0_only_if_nothing_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    status = main(["doctor", "--outputs", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    wrong = [line for line in lines if line.startswith("wrong")]
    assert status == bool(wrong)
    assert any(line.startswith("ok     storage") for line in lines)
    assert any("no cluster is named" in line for line in lines)


def test_weights_that_are_there_and_weights_that_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no config.json" in models.check_model(str(folder)).text
    (folder / "config.json").write_text(json.dumps({"model_type": "blip"}))
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    found = models.check_model(str(folder))
    assert found.state == "wrong"
    assert "can run code" in found.text
    save_file({"weight": np.zeros(4, np.float32)}, folder / "model.safetensors")
    assert models.check_model(str(folder)).state == "ok"
    assert models.check_model("not a model").state == "wrong"


def test_a_hub_model_is_fetched_only_where_that_is_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = models.check_model("spark-ray/no-such-model")
    assert found.state == "wrong"
    assert "HF_HUB_OFFLINE=1 forbids" in found.text
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    assert models.check_model("spark-ray/no-such-model").state == "note"


def test_a_cache_that_cannot_be_written(in_the_way: Path, tmp_path: Path) -> None:
    assert models.check_cache(in_the_way / "hub").state == "wrong"
    assert models.check_cache(tmp_path / "to" / "be" / "made").state == "ok"
    assert not (tmp_path / "to").exists()


def test_a_tracker_that_does_not_answer(tracker: str) -> None:
    assert models.check_tracker(tracker).state == "ok"
    assert models.check_tracker(f"{tracker}/elsewhere").state == "wrong"
    assert models.check_tracker(f"http://127.0.0.1:{closed_port()}").state == "wrong"
    assert models.check_tracker("sqlite:////srv/mlflow.db").state == "ok"


def test_a_cluster_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"http://127.0.0.1:{closed_port()}"
    (found,) = cluster.check_cluster(DoctorConfig(address=address))
    assert found.state == "wrong"
    assert found.text.startswith(f"{address}: no Ray cluster answers there")
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    assert [f.state for f in cluster.check_cluster(DoctorConfig())] == ["note"]
    assert [f.state for f in cluster.check_cluster(DoctorConfig(needs=["cluster"]))] == ["wrong"]


def test_a_cluster_of_another_version() -> None:
    found = cluster.check_version("http://head:8265", "2.59.0")
    assert found.state == "wrong"
    assert "pip install ray==2.59.0" in found.text
    assert cluster.check_version("http://head:8265", ray.__version__).state == "ok"

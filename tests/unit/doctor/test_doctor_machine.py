"""The doctor sees what is broken on a machine: limits, disks, tokens, packages, codecs, GPUs."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from spark_ray.doctor import codecs, gpus, machine, packages
from spark_ray.doctor.config import DoctorConfig

GIB = 1 << 30


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody can enter; pytest's own are closed to others."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def nearly_full(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, full to the last 2 %. Mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    mounted = subprocess.run(mount, capture_output=True)
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr!r}")
    (folder / "ballast").write_bytes(bytes(1_004_000))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_container_of_one_gib_is_too_small(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    limit.write_text(f"{GIB}\n")
    memory = machine.memory_bytes(limit)
    assert memory == GIB
    assert machine.check_memory(memory).state == "wrong"
    limit.write_text("max\n")
    assert machine.memory_bytes(limit) == machine.memory_bytes(tmp_path / "none") > GIB


def test_memory_between_little_and_enough_is_worth_a_note() -> None:
    assert [machine.check_memory(n * GIB).state for n in (4, 16)] == ["note", "ok"]


def test_shared_memory_that_is_too_small_is_worth_a_note(nearly_full: Path) -> None:
    found = machine.check_shared_memory(nearly_full, 16 * GIB)
    assert found.state == "note"
    assert "--shm-size" in found.text
    assert machine.check_shared_memory(nearly_full, 1 << 20).state == "ok"
    assert machine.check_shared_memory(nearly_full / "none", GIB).state == "note"


def test_too_few_open_files_are_found_in_a_process_that_has_them() -> None:
    program = (
        "import resource\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (512, 1024))\n"
        "from spark_ray.doctor.config import DoctorConfig\n"
        "from spark_ray.doctor.machine import check_machine\n"
        "print([f for f in check_machine(DoctorConfig()) if f.area == 'limits'])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "state='wrong'" in done.stdout
    assert "1,024 open files at most" in done.stdout


@pytest.mark.parametrize("kind", ["missing", "a file"])
def test_rays_folder_that_cannot_be_written(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "ray"
    if kind == "a file":
        folder.write_text("in the way")
    found = machine.check_ray_folder(folder)
    assert found.state == "wrong"
    assert "set RAY_TMPDIR" in found.text


def test_a_disk_on_which_ray_stores_nothing(nearly_full: Path) -> None:
    found = machine.check_ray_folder(nearly_full)
    assert found.state == "wrong"
    assert "less than 5 %" in found.text


@pytest.fixture
def no_token_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_token_in_environment")
def test_a_token_that_everybody_can_read(open_folder: Path) -> None:
    token = open_folder / "auth_token"
    assert machine.check_token(token).state == "ok"
    token.write_text("secret of the cluster")
    token.chmod(0o644)
    found = machine.check_token(token)
    assert found.state == "wrong"
    assert f"chmod 600 {token}" in found.text
    assert "secret of the cluster" not in found.text
    token.chmod(0o600)
    assert machine.check_token(token).state == "ok"
    token.chmod(0o644)
    open_folder.chmod(0o700)
    assert machine.check_token(token).state == "ok"


def test_authentication_that_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert machine.check_token(tmp_path / "token").state == "wrong"


def test_missing_and_unfit_packages_are_named() -> None:
    missing = packages.check_group("train", [Requirement("no-such-package>=1")], needed=True)
    assert missing.state == "wrong"
    assert "spark-ray[train] lacks no-such-package" in missing.text
    assert packages.check_group("train", [Requirement("no-such")], needed=False).state == "note"
    unfit = packages.check_group("", [Requirement("numpy<1"), Requirement("av")], needed=True)
    assert unfit.state == "wrong"
    assert "instead of <1" in unfit.text
    assert packages.check_group("", [Requirement("numpy>1")], needed=True).state == "ok"


def test_what_a_node_needs_can_be_asked_for() -> None:
    """Every extra that a job or a server takes along; `needs` makes it wrong where it lacks."""
    given = DoctorConfig.from_values(needs=["tune", "ui"])
    looked_at = {finding.text.partition(":")[0] for finding in packages.check_packages(given)}
    assert any("spark-ray[tune]" in text for text in looked_at)
    assert any("spark-ray[ui]" in text for text in looked_at)


def test_a_second_opencv_is_found_by_its_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages.check_opencv(packages.installed("opencv-python"), "5.0").state == "ok"
    info = tmp_path / "opencv_python-5.0.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: opencv-python\nVersion: 5.0.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = packages.check_opencv(
        packages.installed("opencv-python"), packages.installed("opencv-python-headless")
    )
    assert found.state == "wrong"
    assert packages.check_scenes(packages.installed("no-such-package")).state == "wrong"


def test_a_codec_that_this_build_has_not() -> None:
    found = codecs.check_decoders([*codecs.DECODERS, "no_such_codec"])
    assert found.state == "wrong"
    assert "decodes no no_such_codec;" in found.text
    assert codecs.check_encoders(["aac", "h264_of_nobody"]).state == "wrong"
    assert codecs.check_round_trip("no_such_codec", "aac").state == "wrong"
    assert {found.state for found in codecs.check_codecs(DoctorConfig())} == {"ok"}


def nvidia_smi(folder: Path, *, prints: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's own program, as it answers on a machine in that state."""
    program = folder / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{prints}'\nexit {status}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_no_gpu_is_a_note_unless_one_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (found,) = gpus.check_gpus(DoctorConfig())
    assert found.state == "note"
    (found,) = gpus.check_gpus(DoctorConfig(needs=["gpu"]))
    assert found.state == "wrong"


def test_a_driver_that_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = "NVIDIA-SMI has failed because it could not communicate with the NVIDIA driver."
    nvidia_smi(tmp_path, prints=said, status=9, monkeypatch=monkeypatch)
    (found,) = gpus.check_gpus(DoctorConfig())
    assert found.state == "wrong"
    assert said in found.text


def test_pytorch_that_sees_fewer_gpus_than_the_driver() -> None:
    import torch

    here = torch.cuda.device_count()
    found = gpus.check_torch(here + 1)
    assert found.state == "wrong"
    assert f"PyTorch {torch.__version__}" in found.text
    if here:
        assert gpus.check_torch(here).state == "ok"


@pytest.mark.usefixtures("no_token_in_environment")
def test_a_token_in_a_place_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    found = machine.check_token(tmp_path / ("x" * 300) / "auth_token")
    assert found.state == "wrong"
    assert "can't be looked at" in found.text

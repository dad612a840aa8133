"""A disk that fills up stops a build or a training with one sentence; with more room it goes on."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import apotheons
import builds
import pytest
import torch

from spark_ray.core.errors import StorageError
from spark_ray.training import worker as training
from spark_ray.training.engines import StepOptions, TorchEngine
from spark_ray.training.state import TrainState
from spark_ray.training.worker import Worker


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, of 300 kB. Mounting one takes root."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk takes root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode != 0:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr!r}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_the_disk_is_full(
    cluster: str,
    numbers: Path,
    small_disk: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings = {"fps": 8, "smart_sampling": "false"}
    undisturbed = builds.build(numbers, tmp_path / "set", **settings)
    build = builds.build_command(
        numbers,
        small_disk / "set",
        fps=8,
    )
    command = [*build, "--no-smart-sampling"]

    full = builds.run(command)

    said = builds.assert_one_sentence(full, 1)
    assert "the disk is full" in said
    assert str(small_disk) in said

    subprocess.run(["mount", "-o", "remount,size=50m", str(small_disk)], check=True)
    builds.assert_published(builds.run(command))
    builds.assert_same(small_disk / "set" / "v1", undisturbed)


def test_a_checkpoint_does_not_fit(small_disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before it is written; and where others took the room meanwhile, after that."""
    options = StepOptions("fp32", 1, 0.01, (0.9, 0.98), 1.0, {})
    worker = object.__new__(Worker)
    worker.rank, worker.state = 0, TrainState(world_size=1)
    worker.scratch = small_disk
    monkeypatch.setattr(training, "_await_upload", lambda: None)
    worker.job = SimpleNamespace(model_config=apotheons.model().config)
    worker.plan = SimpleNamespace(
        config=SimpleNamespace(mixed_precision="fp32"), processor=apotheons.processor()
    )

    def checkpoint() -> str:
        engine = TorchEngine(apotheons.model(), options, torch.device("cpu"))
        with pytest.raises(StorageError) as found:
            worker._checkpoint(engine)
        assert not any(small_disk.iterdir()), "what was written of it is gone"
        return str(found.value)

    said = checkpoint()
    assert f"{small_disk}/step-00000000" in said
    assert "a checkpoint needs" in said
    assert "MB and 0 MB are free" in said
    monkeypatch.setattr(training, "require_space", lambda *_: None)
    assert "the disk is full, so the checkpoint was not written" in checkpoint()

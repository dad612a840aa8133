"""Where a run is, and the checkpoint that lets it go on from there exactly."""

import fcntl
import json
import math
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.core.provenance import text_hash
from spark_ray.core.storage import Folder
from spark_ray.training.failures import is_disk_full

_STATE = "state.json"
_NOT_VALIDATED = 1e12
_UNLOCKED = "spark-ray-new-"
CHECKPOINT_PREFIX = "step-"
RUN = "run.json"
"""What a run is, in its folder, from before its workers start."""
MODEL = "model"
"""The folder of a checkpoint that any Hugging Face user can load."""


@dataclass
class TrainState:
    """Where a run is: in its plan, and in its schedule.

    `position` is that of `RunPlan`, `step` counts optimizer steps, `world_size` the ranks that
    wrote the checkpoint, `validation_loss` is that of these very weights, if they were validated,
    and `metrics` are the last of each kind.
    """

    world_size: int
    position: int = 0
    step: int = 0
    skipped: int = 0
    skipped_in_a_row: int = 0
    validation_loss: float | None = None
    metrics: dict[str, float] = field(default_factory=dict)

    @property
    def score(self) -> float:
        """What checkpoints are ranked by, the least first: the validation's loss.

        Of those without one the newest is best, and any that was validated is better. A loss that
        is no number is none.
        """
        if self.validation_loss is None or not math.isfinite(self.validation_loss):
            return _NOT_VALIDATED - self.step
        return self.validation_loss

    def save(self, folder: Path) -> None:
        (folder / _STATE).write_text(json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, folder: Path) -> "TrainState":
        return cls(**json.loads((folder / _STATE).read_text()))

    @classmethod
    def read(cls, checkpoint: Folder) -> "TrainState":
        """Of a checkpoint in storage."""
        return cls(**json.loads(checkpoint.read(_STATE)))

    @classmethod
    def newest(cls, output: Folder) -> "tuple[str, TrainState]":
        """The location of a run's last checkpoint, and what it says.

        Raises:
            StorageError: the run has none.
        """
        found = [name for name in output.children() if name.startswith(CHECKPOINT_PREFIX)]
        if not found:
            raise StorageError(f"{output.location}: the run has no checkpoint")
        return output / max(found), cls.read(output.sub(max(found)))


def save_rng(folder: Path, rank: int) -> None:
    """The random generators of this rank, as tensors and numbers alone."""
    state: dict[str, Any] = {"torch": torch.get_rng_state(), "python": random.getstate()}
    name, keys, place, has_gauss, gauss = cast(tuple[Any, ...], np.random.get_state(legacy=True))
    state["numpy"] = [name, torch.from_numpy(keys.astype(np.int64)), place, has_gauss, gauss]
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    torch.save(state, folder / f"rng-{rank}.pt")


def load_rng(folder: Path, rank: int) -> None:
    """What `save_rng` wrote; a rank that did not exist then keeps what it was seeded with."""
    file = folder / f"rng-{rank}.pt"
    if not file.exists():
        return
    state = torch.load(file, weights_only=True)
    torch.set_rng_state(state["torch"])
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    name, keys, place, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), place, has_gauss, cached))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def require_reachable(output_dir: str) -> None:
    """
    Raises:
        ConfigError: the run's folder is one of another node, so no checkpoint could go there.
    """
    if not Folder(output_dir).exists(RUN):
        raise ConfigError(
            f"output_dir: {output_dir} on {socket.gethostname()}, where a worker runs, is another "
            "folder than on the driver's node; give one that all nodes share, or one at s3://"
        )


@contextmanager
def scratch_folder(output_dir: str) -> Iterator[Path]:
    """Where a worker of a run keeps checkpoints on their way from and to storage.

    A worker that was killed leaves its own behind, but unlocked. The run's next ones on this
    machine remove it, whatever its node and its rank were called.
    """
    prefix = f"spark-ray-{text_hash(output_dir)[:12]}-"
    for left in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with suppress(OSError), _locked(left):  # or it is in use, or another user's
            shutil.rmtree(left)
    # Under another name until it is locked, or who starts beside us would take it for a left one.
    folder = Path(tempfile.mkdtemp(prefix=_UNLOCKED))
    with ExitStack() as at_the_end:
        with suppress(OSError):  # where the file system has no locks, nothing that is left goes
            at_the_end.enter_context(_locked(folder))
        folder = folder.rename(folder.with_name(folder.name.replace(_UNLOCKED, prefix)))
        at_the_end.callback(shutil.rmtree, folder, ignore_errors=True)
        yield folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """
    Raises:
        OSError: another process has locked it, or it can't be.
    """
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(lock)


def require_space(folder: Path, needed_bytes: int) -> None:
    """
    Raises:
        StorageError: a checkpoint would not fit where it is written first.
    """
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise StorageError(
            f"{folder}: a checkpoint needs {needed_bytes / 1e6:,.0f} MB and {free / 1e6:,.0f} MB "
            "are free; free some space, or set TMPDIR to another disk, and run the same command "
            "again"
        )


def disk_error(folder: Path, error: Exception) -> StorageError | None:
    """The error of a full disk as one sentence; None where it is another one."""
    text = str(error)
    # torch's own writer hides the reason.
    full = is_disk_full(error) or "No space left" in text or "PytorchStreamWriter failed" in text
    if not full:
        return None
    return StorageError(
        f"{folder}: the disk is full, so the checkpoint was not written; free some space and run "
        "the same command again to resume from the last one"
    )

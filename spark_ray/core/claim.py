"""One job at a time works in a folder: two would remove or write over what the other one keeps.

A local folder is locked, and the kernel lets go of it however the job ends. Object stores have no
locks, nor have some network file systems. There a file beside the folder says whose it is, and is
renewed as long as that job lives; what a killed one leaves behind stands still.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from spark_ray.core.background import beside
from spark_ray.core.errors import FolderInUse, StorageError, StorageUnavailable
from spark_ray.core.schema import Record
from spark_ray.core.storage import Folder, is_remote, local_path

_RENEWED_EVERY_S = 10.0
_DEAD_AFTER_S = 45.0
_LOOK_EVERY_S = 1.0
_ENDING_S = 5.0
"""A job that is sent again may find its old driver alive, which Ray ends a moment later."""


class Claim(Record):
    """Whose a folder is. Times of different machines are not compared: a renewal is a change."""

    host: str
    processes: str
    pid: int
    job: str
    renewals: int = 0


@dataclass(frozen=True)
class _Use:
    """What a folder is claimed for, in the words of the refusal."""

    folder: Folder
    work: str
    setting: str

    def refusal(self, where: str) -> FolderInUse:
        return FolderInUse(
            f"{self.folder.location}: another {self.work} of it is running{where}; wait for its "
            f"end, or give another {self.setting}"
        )


@contextmanager
def alone(folder: Folder, work: str, setting: str) -> Iterator[None]:
    """Be the only one who works in the folder while the block runs; a local one is made.

    Args:
        work: what is done there, as "build".
        setting: the option that names another one.

    Raises:
        FolderInUse: another job works there.
    """
    use = _Use(folder, work, setting)
    lock = None if is_remote(folder.location) else _lock(use)
    if lock is None:
        with _claimed(use):
            yield
        return
    try:
        yield
    finally:
        os.close(lock)


def ended_meanwhile(folder: str, work: str) -> FolderInUse:
    """The refusal of who finds the folder free, but no longer as it was looked at before."""
    return FolderInUse(
        f"{folder}: another {work} of it ended just now; give the same command again to go on "
        "from there"
    )


def _lock(use: _Use) -> int | None:
    """The folder, locked; None where the file system has no locks."""
    path = Path(local_path(use.folder.location))
    end = time.monotonic() + _ENDING_S
    while True:
        path.mkdir(parents=True, exist_ok=True)  # who had it before may have removed it
        folder = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(folder)
            if time.monotonic() > end:
                raise use.refusal("") from None
            time.sleep(_LOOK_EVERY_S)
        except OSError:
            os.close(folder)
            return None
        else:
            if _is_there(folder, path):
                return folder
            os.close(folder)


def _is_there(folder: int, path: Path) -> bool:
    """Whether an open folder is still the one at its path: removed ones can be locked as well."""
    try:
        return os.path.samestat(os.fstat(folder), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _claimed(use: _Use) -> Iterator[None]:
    place = _Place(use.folder)
    _wait_for_the_dead(use, place)
    claim = Claim(
        host=socket.gethostname(), processes=_processes(), pid=os.getpid(), job=uuid4().hex
    )
    place.write(claim)

    def renew(ended: threading.Event) -> None:
        while not ended.wait(_RENEWED_EVERY_S):
            claim.renewals += 1
            with suppress(StorageError):  # the job itself will say so if it lasts
                if place.is_of_another(claim.job):
                    return  # this job was taken for dead
                place.write(claim)

    try:
        with beside(renew, "claim"):
            yield
    finally:
        with suppress(StorageError):  # it would hide why the job ended
            if not place.is_of_another(claim.job):
                place.clear()


class _Place:
    """The file with a folder's claim: outside of it, as whatever a build leaves there is swept."""

    def __init__(self, folder: Folder) -> None:
        parent, _, name = folder.location.rstrip("/").rpartition("/")
        if parent.endswith("/"):  # it is a whole bucket, which nothing lies beside
            parent = folder.location
        self._parent, self._name = Folder(parent), f"{name}.claim.json"

    def read(self) -> Claim | None:
        try:
            return Claim.model_validate_json(self._parent.read(self._name))
        except StorageUnavailable:
            raise
        except StorageError:
            return None  # nobody's; or if it can't be read, it can't be written either

    def is_of_another(self, job: str) -> bool:
        found = self.read()
        return found is not None and found.job != job

    def write(self, claim: Claim) -> None:
        self._parent.write(self._name, claim.model_dump_json().encode())

    def clear(self) -> None:
        self._parent.remove(self._name)


def _wait_for_the_dead(use: _Use, place: _Place) -> None:
    """Return when nobody works there: a claim of another that stands still is void.

    Raises:
        FolderInUse: somebody does.
    """
    found = place.read()
    if found is None or _has_ended(found):
        return
    print(
        f"  waiting      up to {_DEAD_AFTER_S:g} s, to see whether the {use.work} of "
        f"{use.folder.location} on {found.host} still runs",
        file=sys.stderr,
    )
    end = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)
        now = place.read()
        if now is None:
            return
        if now != found:
            raise use.refusal(f" on {now.host} (process {now.pid})")


def _has_ended(claim: Claim) -> bool:
    """Whether it is of a process of this machine that is no more."""
    if (claim.host, claim.processes) != (socket.gethostname(), _processes()):
        return False
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass  # somebody else's
    return False


def _processes() -> str:
    """What this process's id counts in: containers may share a host's name, but not this."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""

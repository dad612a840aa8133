"""One build at a time works on a version: two would remove each other's plan.

A local folder is locked, and the kernel lets go of it however the build ends. Object stores have no
locks, nor have some network file systems. There a file beside the version says who builds it, and
is renewed as long as that build lives; what a killed one leaves behind stands still.
"""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from spark_ray.core.background import beside
from spark_ray.core.errors import DatasetError, StorageError, StorageUnavailable
from spark_ray.core.schema import Record
from spark_ray.core.storage import Folder, is_remote, local_path

_RENEWED_EVERY_S = 10.0
_DEAD_AFTER_S = 45.0
_LOOK_EVERY_S = 1.0
_ENDING_S = 5.0
"""A job that is sent again may find its old driver alive, which Ray ends a moment later."""


class Claim(Record):
    """Who builds a version. Times of different machines are not compared: a renewal is a change."""

    host: str
    processes: str
    pid: int
    build: str
    renewals: int = 0


@contextmanager
def alone(version: Folder) -> Iterator[None]:
    """Be the only build of this version while the block runs; its folder exists, if it is local.

    Raises:
        DatasetError: another build of it is running.
    """
    lock = None if is_remote(version.location) else _lock(version)
    if lock is None:
        with _claimed(version):
            yield
        return
    try:
        yield
    finally:
        os.close(lock)


def _lock(version: Folder) -> int | None:
    """The version's folder, locked; None where the file system has no locks."""
    folder = os.open(local_path(version.location), os.O_RDONLY)
    end = time.monotonic() + _ENDING_S
    while True:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folder
        except BlockingIOError:
            if time.monotonic() > end:
                os.close(folder)
                raise _taken(version, "") from None
            time.sleep(_LOOK_EVERY_S)
        except OSError:
            os.close(folder)
            return None


def _taken(version: Folder, where: str) -> DatasetError:
    return DatasetError(
        f"{version.location}: another build of it is running{where}; wait for its end, or give "
        "another --version"
    )


@contextmanager
def _claimed(version: Folder) -> Iterator[None]:
    place = _Place(version)
    _wait_for_the_dead(version, place)
    claim = Claim(
        host=socket.gethostname(), processes=_processes(), pid=os.getpid(), build=uuid4().hex
    )
    place.write(claim)

    def renew(ended: threading.Event) -> None:
        while not ended.wait(_RENEWED_EVERY_S):
            claim.renewals += 1
            with suppress(StorageError):  # the build itself will say so if it lasts
                if place.is_of_another(claim.build):
                    return  # this build was taken for dead
                place.write(claim)

    try:
        with beside(renew, "claim"):
            yield
    finally:
        with suppress(StorageError):  # it would hide why the build ended
            if not place.is_of_another(claim.build):
                place.clear()


class _Place:
    """The file with a version's claim: outside of it, as whatever a build leaves there is swept."""

    def __init__(self, version: Folder) -> None:
        dataset, _, name = version.location.rpartition("/")
        self._dataset, self._name = Folder(dataset), f"{name}.claim.json"

    def read(self) -> Claim | None:
        try:
            return Claim.model_validate_json(self._dataset.read(self._name))
        except StorageUnavailable:
            raise
        except StorageError:
            return None  # nobody's; or if it can't be read, it can't be written either

    def is_of_another(self, build: str) -> bool:
        found = self.read()
        return found is not None and found.build != build

    def write(self, claim: Claim) -> None:
        self._dataset.write(self._name, claim.model_dump_json().encode())

    def clear(self) -> None:
        self._dataset.remove(self._name)


def _wait_for_the_dead(version: Folder, place: _Place) -> None:
    """Return when nobody builds the version: a claim of another that stands still is void.

    Raises:
        DatasetError: somebody does.
    """
    found = place.read()
    if found is None or _has_ended(found):
        return
    print(
        f"  waiting      up to {_DEAD_AFTER_S:g} s, to see whether the build of "
        f"{version.location} on {found.host} still runs",
        file=sys.stderr,
    )
    end = time.monotonic() + _DEAD_AFTER_S
    while time.monotonic() < end:
        time.sleep(_LOOK_EVERY_S)
        now = place.read()
        if now is None:
            return
        if now != found:
            raise _taken(version, f" on {now.host} (process {now.pid})")


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

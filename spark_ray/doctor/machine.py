"""The machine: Python, CPUs, memory, shared memory, open files, Ray's own disk, its token."""

import os
import platform
import resource
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from spark_ray.core.storage import is_folder
from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding

_GIB = 1 << 30
_LEAST_MEMORY_GIB, _GOOD_MEMORY_GIB = 2, 6
_GOOD_OPEN_FILES = 8192
_RAY_REFUSES_AT = 0.95  # share of a full disk from which on Ray stores no more objects
_GOOD_FREE_GIB = 5
_CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Ray's object store lies
_SHARED_PART = 0.3  # of the memory, which Ray takes for its object store


def check_machine(config: DoctorConfig) -> Iterator[Finding]:
    version = platform.python_version()
    yield Finding("python", "ok", f"Python {version} on {platform.machine()} {sys.platform}")
    memory = memory_bytes()
    yield check_memory(memory)
    yield check_shared_memory(_SHARED_MEMORY, memory)
    yield check_open_files(*resource.getrlimit(resource.RLIMIT_NOFILE))
    yield check_ray_folder(ray_folder())
    yield check_token(token_file())


def memory_bytes(limit_file: Path = _CGROUP_LIMIT) -> int:
    """What this machine, or the container that we are in, may use."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if limit_file.exists() and (text := limit_file.read_text().strip()).isdigit():
        return min(physical, int(text))
    return physical


def check_memory(memory: int) -> Finding:
    text = f"{os.cpu_count()} CPUs, {memory / _GIB:.1f} GiB of memory"
    if memory < _LEAST_MEMORY_GIB * _GIB:
        return Finding(
            "memory", "wrong", f"{text}: Ray alone needs {_LEAST_MEMORY_GIB} GiB; give it more"
        )
    if memory < _GOOD_MEMORY_GIB * _GIB:
        return Finding("memory", "note", f"{text}: enough for small clips and models only")
    return Finding("memory", "ok", text)


def check_shared_memory(folder: Path, memory: int) -> Finding:
    if not folder.is_dir():
        return Finding("memory", "note", f"{folder} is missing: Ray keeps objects on the disk")
    size = shutil.disk_usage(folder).total
    text = f"{folder} holds {size / _GIB:.1f} GiB"
    if size < _SHARED_PART * memory:
        return Finding(
            "memory",
            "note",
            f"{text}, less than the {_SHARED_PART * memory / _GIB:.1f} GiB of Ray's object store, "
            "which then is slow; start the container with a larger --shm-size",
        )
    return Finding("memory", "ok", text)


def check_open_files(soft: int, hard: int) -> Finding:
    shown = "any number of" if hard == resource.RLIM_INFINITY else f"{hard:,}"
    if hard != resource.RLIM_INFINITY and hard < _GOOD_OPEN_FILES:
        return Finding(
            "limits",
            "wrong",
            f"{shown} open files at most; a busy Ray needs {_GOOD_OPEN_FILES:,}: raise "
            "`ulimit -Hn`, or LimitNOFILE of the service",
        )
    return Finding("limits", "ok", f"{shown} open files ({soft:,} to begin with)")


def ray_folder() -> Path:
    """Where Ray puts sockets, logs, spilled objects and the files of jobs."""
    return Path(os.environ.get("RAY_TMPDIR") or "/tmp")  # noqa: S108 - Ray's own choice


def check_ray_folder(folder: Path) -> Finding:
    """Ray's disk. Ray stops storing objects on one that is nearly full."""
    if not is_folder(folder) or not os.access(folder, os.W_OK | os.X_OK):
        return Finding(
            "disk",
            "wrong",
            f"{folder}, where Ray keeps its files, can't be written; mend it or set RAY_TMPDIR",
        )
    usage = shutil.disk_usage(folder)
    text = f"{folder}, where Ray keeps its files, has {usage.free / _GIB:.1f} GiB free"
    if usage.free < (1 - _RAY_REFUSES_AT) * usage.total:
        return Finding(
            "disk",
            "wrong",
            f"{text}, less than 5 %: Ray stores no objects there; free some or set RAY_TMPDIR",
        )
    if usage.free < _GOOD_FREE_GIB * _GIB:
        return Finding("disk", "note", f"{text}; large jobs spill more than that")
    return Finding("disk", "ok", text)


def token_file() -> Path:
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return Path(given) if given else Path.home() / ".ray" / "auth_token"


def check_token(file: Path) -> Finding:
    """Who has the token can run anything on the cluster."""
    if os.environ.get("RAY_AUTH_MODE") == "disabled":
        return Finding(
            "token",
            "wrong",
            "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run anything; unset it",
        )
    if os.environ.get("RAY_AUTH_TOKEN"):
        return Finding("token", "ok", "Ray's token comes from RAY_AUTH_TOKEN")
    try:
        if not file.exists():
            return Finding("token", "ok", "Ray's token is made with the first local cluster")
        open_to_others = _others_can_read(file)
    except OSError as error:
        reason = f"{file}: can't be looked at: {error.strerror}; whose home folder is it?"
        return Finding("token", "wrong", reason)
    if open_to_others:
        return Finding(
            "token",
            "wrong",
            f"{file} can be read by others, who then can run anything here: chmod 600 {file}",
        )
    return Finding("token", "ok", f"Ray's token is in {file}, for you alone")


def _others_can_read(file: Path) -> bool:
    """Whether the file is open to everybody, and no folder on the way is closed."""
    folders = file.absolute().parents
    return bool(file.stat().st_mode & stat.S_IROTH) and all(
        folder.stat().st_mode & stat.S_IXOTH for folder in folders
    )

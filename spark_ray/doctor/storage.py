"""The places that jobs read and write: tried out, with the calls that jobs make."""

import secrets
import shutil
from collections.abc import Iterator

from spark_ray.core.errors import StorageError
from spark_ray.core.storage import (
    Folder,
    absolute,
    filesystem,
    is_remote,
    is_there,
    local_path,
    storage_errors,
)
from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding

_GIB = 1 << 30
_LITTLE_FREE_GIB = 5


def check_storage(config: DoctorConfig) -> Iterator[Finding]:
    for location in config.inputs:
        yield check_readable(location)
    for location in config.outputs:
        yield check_writable(location)


def check_readable(location: str) -> Finding:
    """List it: what jobs do first."""
    try:
        fs, path = filesystem(location)
        with storage_errors(location, "read"):
            fs.info(path)
            if fs.isdir(path):
                fs.ls(path, detail=False)
    except StorageError as error:
        return Finding("storage", "wrong", str(error))
    return Finding("storage", "ok", f"{location} can be read")


def check_writable(location: str) -> Finding:
    """Write a small file, read it back, remove it. A folder that must be made is removed too."""
    shown = location if is_remote(location) else absolute(location)
    made = not is_remote(location) and not is_there(local_path(location))
    folder, name, content = (
        Folder(shown),
        f".doctor-{secrets.token_hex(8)}",
        secrets.token_bytes(64),
    )
    try:
        folder.create()
        folder.write(name, content)
        came_back = folder.read(name)
        folder.remove(name)
        if made:
            folder.delete()
    except StorageError as error:
        return Finding("storage", "wrong", str(error))
    if came_back != content:
        text = f"{shown}: a file came back with other bytes; don't trust this disk or proxy"
        return Finding("storage", "wrong", text)
    if is_remote(location):
        return Finding("storage", "ok", f"{shown} can be written and read")
    return _room_in(shown, made)


def _room_in(shown: str, made: bool) -> Finding:
    path = local_path(shown)
    while made and not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    text = f"{shown} can be written and has {free / _GIB:.1f} GiB free"
    if free < _LITTLE_FREE_GIB * _GIB:
        return Finding("storage", "note", f"{text}; a large dataset needs more")
    return Finding("storage", "ok", text)

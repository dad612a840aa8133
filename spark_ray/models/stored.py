"""Models that lie in object storage: `s3://bucket/models/blip`."""

import logging
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from spark_ray.core.errors import ModelError
from spark_ray.core.storage import filesystem, storage_errors
from spark_ray.models.cache import cached_folder

log = logging.getLogger(__name__)


def find_stored(location: str, setting: str, patterns: tuple[str, ...]) -> Path:
    """The local folder with a model's files of these patterns, fetched once into the user's cache.

    Files that were changed in the bucket since are another model, and are fetched anew.

    Raises:
        ModelError: no such file is there.
        StorageError: the bucket can't be read.
    """
    fs, prefix = filesystem(location)
    with storage_errors(location, "read"):
        fs.invalidate_cache()
        entries = fs.ls(prefix, detail=True) if fs.exists(prefix) else []
        files = {
            PurePosixPath(entry["name"]).name: entry
            for entry in entries
            if entry["type"] == "file"
            and any(fnmatch(PurePosixPath(entry["name"]).name, pattern) for pattern in patterns)
        }
        if not files:
            raise ModelError(f"{setting}: {location} holds no file of a model")
        versions = [f"{name} {fs.checksum(files[name]['name'])}" for name in sorted(files)]

        def fill(folder: Path) -> Path:
            size_bytes = sum(entry["size"] for entry in files.values())
            log.warning("%s: fetching %.1f MB from %s", setting, size_bytes / 1e6, location)
            for name, entry in files.items():
                fs.get_file(entry["name"], str(folder / name))
            return folder

        return cached_folder(PurePosixPath(prefix).name, "\n".join([location, *versions]), fill)

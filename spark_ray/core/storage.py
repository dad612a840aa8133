"""Files, wherever they are: a local folder and `s3://` through the same few calls.

A location is a local path or an fsspec URL. Local file names that are not UTF-8 travel as
`file://` URLs with the odd bytes percent-encoded, because Arrow and JSON hold only valid text.
"""

import errno
import io
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, cast
from urllib.parse import quote_from_bytes, unquote_to_bytes, urlsplit

import fsspec
from fsspec.core import split_protocol
from fsspec.spec import AbstractBufferedFile

from spark_ray.core.errors import ConfigError, StorageError, StorageUnavailable

_FILE_URL = "file://"
_REMOVALS = 5
_BAD_CREDENTIALS = frozenset(
    ("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "SignatureDoesNotMatch")
)
_S3_CLIENT = {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}


def is_remote(location: str) -> bool:
    protocol, _ = split_protocol(location)
    return protocol not in (None, "file", "local")


def local_path(location: str) -> Path:
    """The path of a local location, with its original bytes."""
    if location.startswith(_FILE_URL):
        return Path(os.fsdecode(unquote_to_bytes(location.removeprefix(_FILE_URL))))
    return Path(location)


def user_path(given: str) -> Path:
    """The path that a user means: `~` is home, and an unknown user's a name, as in a shell."""
    return Path(os.path.expanduser(local_path(given)))  # noqa: PTH111 - pathlib raises for those


def is_there(path: Path) -> bool:
    """Whether anything can be seen there: not of a text that is no path, nor in a closed folder."""
    return os.path.exists(path)  # noqa: PTH110 - pathlib raises for those


def is_folder(path: Path) -> bool:
    """Whether a folder can be seen there, as of `is_there`."""
    return os.path.isdir(path)  # noqa: PTH112 - pathlib raises for those


def absolute(location: str) -> str:
    """The location as it means the same in every process: workers have other working folders."""
    if is_remote(location):
        return location
    return location_of(user_path(location).absolute())


def refuse_secret(location: str) -> None:
    """
    Raises:
        ConfigError: the location carries a password, or a query as signed addresses have; what a
            dataset comes from is written into each of its lines.
    """
    if not is_remote(location):
        return
    address = urlsplit(location)
    # Elsewhere `?` may stand in a pattern, and `@` between an Azure container and its account.
    over_http = address.scheme in ("http", "https") and (address.username or address.query)
    signed = "signature=" in address.query.lower() or "sig=" in address.query.lower()
    if address.password or over_http or signed:
        raise ConfigError(
            f"{address.scheme}://{address.hostname or ''}…: holds a secret, which would go into "
            "every manifest line; give credentials by the environment"
        )


def location_of(path: Path) -> str:
    """A local path as text that survives UTF-8, Arrow and JSON."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return _FILE_URL + quote_from_bytes(os.fsencode(path))
    return text


def filesystem(location: str) -> tuple[Any, str]:
    """The fsspec file system of a location, and the location's path in it.

    Raises:
        StorageError: the protocol is unknown, or its package is not installed.
    """
    protocol, path = split_protocol(location)
    if protocol in (None, "file", "local"):
        return fsspec.filesystem("file"), str(local_path(location).absolute())
    options = {"config_kwargs": _S3_CLIENT} if protocol in ("s3", "s3a") else {}
    try:
        return fsspec.filesystem(protocol, **options), path
    except ImportError as error:
        raise StorageError(
            f"{location}: reading {protocol}:// needs a package that is not installed ({error}); "
            "for s3 run: pip install 'spark-ray[s3]'"
        ) from error
    except ValueError as error:
        raise StorageError(f"{location}: unknown protocol {protocol}://") from error


@contextmanager
def storage_errors(location: str, doing: str) -> Iterator[None]:
    """Turn what a storage back end raises into one sentence that names the place."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        raise StorageError(f"{location}: can't {doing} it: it does not exist") from error
    except PermissionError as error:
        kind = StorageUnavailable if _credentials_fail(error) else StorageError
        raise kind(
            f"{location}: can't {doing} it: access denied; check permissions or credentials"
        ) from error
    except OSError as error:
        raise StorageError(f"{location}: can't {doing} it: {_reason(error)}") from error
    except Exception as error:
        # botocore's errors share no base with OSError; anything else is a defect and passes.
        if type(error).__module__.partition(".")[0] not in ("botocore", "aiobotocore", "aiohttp"):
            raise
        raise StorageUnavailable(f"{location}: can't {doing} it: {_s3_reason(error)}") from error


def _credentials_fail(error: PermissionError) -> bool:
    """Whether S3 refuses them for every object; s3fs hides its answer in the cause."""
    answer = getattr(error.__cause__, "response", {})
    return answer.get("Error", {}).get("Code") in _BAD_CREDENTIALS


def _reason(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run the same command again to resume"
    return error.strerror or str(error)


def _s3_reason(error: Exception) -> str:
    name = type(error).__name__
    if "Credential" in name:
        return "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
    if "Connect" in name or "Timeout" in name:
        return "the endpoint can't be reached; check AWS_ENDPOINT_URL and the network"
    return f"{name}: {error}"


def open_read(location: str) -> BinaryIO:
    """Open a file for reading and seeking. A local one must be a regular file.

    Raises:
        StorageError: it doesn't exist, can't be read, or is a pipe or device.
    """
    with storage_errors(location, "read"):
        if is_remote(location):
            fs, path = filesystem(location)
            return fs.open(path, "rb", block_size=4 << 20)
        path_ = local_path(location)
        if path_.exists() and not path_.is_file():
            raise StorageError(f"{location}: it is not a regular file")
        return path_.open("rb")


def read_bytes(location: str, max_bytes: int) -> bytes:
    """A small file whole.

    Raises:
        StorageError: it can't be read, or is larger than `max_bytes`.
    """
    with storage_errors(location, "read"), open_read(location) as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise StorageError(f"{location}: it is larger than the {max_bytes} bytes allowed here")
    return data


@dataclass(frozen=True)
class Folder:
    """A folder on any storage; every name given to it stays inside.

    Local files are written under another name first. With `scratch`, a folder in this one, those
    lie there, and what a killed process leaves behind goes when that is removed.
    """

    location: str
    scratch: str | None = None

    def __truediv__(self, name: str) -> str:
        """Location of a file in the folder, given its relative POSIX path.

        Raises:
            StorageError: the name is absolute or climbs out of the folder.
        """
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts:
            raise StorageError(f"{name!r} would leave the folder {self.location}")
        return f"{self.location.rstrip('/')}/{name}"

    def sub(self, name: str) -> "Folder":
        return Folder(self / name)

    def exists(self, name: str) -> bool:
        fs, path = filesystem(self / name)
        with storage_errors(self / name, "look at"):
            return bool(fs.exists(path))

    def read(self, name: str) -> bytes:
        fs, path = filesystem(self / name)
        with storage_errors(self / name, "read"):
            return bytes(fs.cat_file(path))

    def download(self, target: Path) -> None:
        """Copy all files into a folder of this machine, without holding one whole."""
        for name in self.names():
            fs, path = filesystem(self / name)
            with storage_errors(self / name, "read"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(path, str(target / name))

    def lines(self, name: str) -> Iterator[bytes]:
        """Lines of a file, without holding it whole."""
        with storage_errors(self / name, "read"), _open_lines(self / name, 4 << 20) as file:
            yield from file

    def lines_at(self, name: str, places: Iterable[int]) -> Iterator[bytes]:
        """The lines of a file that begin at these bytes."""
        with storage_errors(self / name, "read"), _open_lines(self / name, 64 << 10) as file:
            for place in places:
                file.seek(place)
                yield file.readline()

    def write(self, name: str, data: bytes) -> None:
        """Write a file so that readers see all of it or none, also if the process is killed."""
        location = self / name
        with storage_errors(location, "write"):
            if is_remote(location):
                fs, path = filesystem(location)
                fs.pipe_file(path, data)  # one PUT: an object store shows whole objects only
            else:
                with _replacing(local_path(location), self._scratch_path()) as file:
                    file.write(data)

    @contextmanager
    def writer(self, name: str) -> Iterator[BinaryIO]:
        """A file to write piece by piece, that appears whole when the block ends without error."""
        location = self / name
        with storage_errors(location, "write"):
            if is_remote(location):
                fs, path = filesystem(location)
                # A file of its own commits by itself; a transaction is shared by the file system.
                file = fs.open(path, "wb", autocommit=False)
                try:
                    yield file
                    file.close()
                except BaseException:
                    file.discard()
                    raise
                file.commit()
            else:
                with _replacing(local_path(location), self._scratch_path()) as file:
                    yield file

    def _scratch_path(self) -> Path | None:
        return local_path(self / self.scratch) if self.scratch else None

    def remove_abandoned(self, unchanged_s: float) -> int:
        """Remove from `scratch` what nobody wrote to for so long; how many files those were."""
        scratch = self._scratch_path()
        if scratch is None or is_remote(self.location) or not scratch.is_dir():
            return 0
        removed = 0
        with storage_errors(str(scratch), "remove"):
            for file in scratch.iterdir():
                # One that was finished meanwhile has its own name by now.
                with suppress(FileNotFoundError):
                    if time.time() - file.stat().st_mtime > unchanged_s:
                        file.unlink()
                        removed += 1
        return removed

    def names(self, prefix: str = "") -> list[str]:
        """Relative paths of all files below `prefix`, sorted; empty if there is no such folder."""
        location = self / prefix if prefix else self.location
        fs, path = filesystem(location)
        root = filesystem(self.location)[1].rstrip("/") + "/"
        with storage_errors(location, "list"):
            fs.invalidate_cache()
            return sorted(found.removeprefix(root) for found in fs.find(path))

    def children(self) -> list[str]:
        """Names of the folders directly inside."""
        fs, path = filesystem(self.location)
        with storage_errors(self.location, "list"):
            fs.invalidate_cache()
            if not fs.exists(path):
                return []
            entries = fs.ls(path, detail=True)
        return sorted(
            PurePosixPath(entry["name"]).name for entry in entries if entry["type"] == "directory"
        )

    def size(self, name: str) -> int:
        fs, path = filesystem(self / name)
        with storage_errors(self / name, "look at"):
            return int(fs.size(path))

    def create(self) -> None:
        """Make a local folder, so that what is in its way shows before any work is done.

        Raises:
            StorageError: it can't be made.
        """
        if not is_remote(self.location):
            try:
                local_path(self.location).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise StorageError(
                    f"{self.location}: this folder can't be made: {_reason(error)}"
                ) from error

    def remove(self, name: str) -> None:
        """Remove a file or folder; nothing happens if there is none."""
        fs, path = filesystem(self / name)
        with storage_errors(self / name, "remove"):
            for attempt in range(_REMOVALS):
                if not fs.exists(path):
                    return
                try:
                    fs.rm(path, recursive=True)
                except FileNotFoundError:
                    # Somebody else renamed or removed what is in it; the rest is still there.
                    if attempt == _REMOVALS - 1:
                        raise

    def delete(self) -> None:
        """Remove the folder itself with all that is in it."""
        fs, path = filesystem(self.location)
        with storage_errors(self.location, "remove"):
            if fs.exists(path):
                fs.rm(path, recursive=True)

    def copy_from(self, source: "Folder", name: str) -> None:
        """Take a file over from another folder: linked on one local disk, copied otherwise."""
        with storage_errors(self / name, "write"):
            if is_remote(self.location) or is_remote(source.location):
                if source.location.split("://")[0] == self.location.split("://")[0]:
                    fs, path = filesystem(self / name)
                    fs.cp_file(filesystem(source / name)[1], path)
                else:
                    self.write(name, source.read(name))
                return
            _link_or_copy(local_path(source / name), local_path(self / name))


def _open_lines(location: str, request_bytes: int) -> BinaryIO:
    """Open a file to read lines of it; one on an object store with requests of this size.

    Its own `readline` would copy a whole block for each line, on S3 of 50 MiB, and fetch one after
    each `seek`.
    """
    fs, path = filesystem(location)
    file = fs.open(path, "rb", cache_type="none")
    if isinstance(file, AbstractBufferedFile):
        return io.BufferedReader(file, request_bytes)
    return cast(BinaryIO, file)


@contextmanager
def _replacing(path: Path, scratch: Path | None) -> Iterator[BinaryIO]:
    folder = scratch or path.parent
    for needed in (path.parent, folder):
        needed.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{path.name}.{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _link_or_copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)

"""What the inputs name: files, folders, globs, list files and buckets become a sorted listing."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from spark_ray.core.errors import ConfigError, OutsideInput, SparkRayError, StorageError
from spark_ray.core.storage import (
    filesystem,
    is_remote,
    local_path,
    location_of,
    read_bytes,
    storage_errors,
)

LIST_SUFFIXES = frozenset((".txt", ".list", ".lst"))
SIDECAR_SUFFIXES = frozenset((".json", ".txt", ".srt", ".vtt"))
_GLOB = frozenset("*?[")
_MAX_LIST_BYTES = 64 << 20
_LEAVES = "it is a symbolic link that leaves the input folder"


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class IngestOptions(BaseModel):
    """What goes in."""

    input: Annotated[list[str], BeforeValidator(_as_list)] = Field(
        min_length=1,
        description="video files, folders (recursive), globs, list files (.txt, one path a line), "
        "or s3:// addresses of any of these",
    )
    label_from_folder: bool = Field(
        False, description="label each clip with the name of the folder that its file is in"
    )
    min_duration_s: float = Field(0.0, ge=0, description="leave shorter videos out")
    max_duration_s: float | None = Field(None, gt=0, description="leave longer videos out")


@dataclass(frozen=True)
class InputFile:
    """A file to look at. `problem` says why it can't be, already known from the listing."""

    location: str
    sidecars: tuple[str, ...] = ()
    problem: SparkRayError | None = None

    @property
    def label(self) -> str:
        return PurePosixPath(self.location).parent.name


def list_inputs(inputs: Iterable[str]) -> list[InputFile]:
    """Every file that the inputs name, each once, sorted by location.

    Hidden files and folders (`.name`) are left out. Text files beside a video that share its stem
    become its sidecars. Whether a file is a video is not decided here: that takes a look inside.

    Raises:
        ConfigError: an input does not exist or matches nothing.
        StorageError: a folder or bucket can't be listed.
    """
    found: dict[str, InputFile] = {}
    for given in inputs:
        for file in _expand(given):
            found.setdefault(file.location, file)
    return [found[location] for location in sorted(found)]


def _expand(given: str) -> Iterator[InputFile]:
    if is_remote(given):
        yield from _expand_remote(given)
        return
    path = local_path(given).expanduser()
    if path.is_dir():
        yield from _walk(path)
    elif path.exists() or path.is_symlink():
        yield from _from_list(path) if _is_list(path) else [_beside(path)]
    elif _GLOB & set(given):
        yield from _from_pattern(path)
    else:
        raise ConfigError(f"input: {given!r} does not exist")


def _from_pattern(pattern: Path) -> Iterator[InputFile]:
    root = Path(*_leading_parts(pattern))
    inside = root.resolve()
    matches = [
        path
        for path in sorted(root.glob(str(pattern.relative_to(root))))
        if path.is_file() and not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    if not matches:
        raise ConfigError(f"input: the pattern {location_of(pattern)!r} matches no file")
    for path in matches:
        yield _beside(path, None if _stays_in(path, inside) else OutsideInput(_LEAVES))


def _stays_in(path: Path, root: Path) -> bool:
    return not path.is_symlink() or path.resolve().is_relative_to(root)


def _leading_parts(pattern: Path) -> Iterator[str]:
    for part in pattern.parts:
        if _GLOB & set(part):
            return
        yield part


def _walk(root: Path) -> Iterator[InputFile]:
    """Files below a folder. Links to folders are not followed, links to files only inside."""
    root, inside = root.absolute(), root.resolve()

    def failed(error: OSError) -> None:
        raise StorageError(f"{location_of(root)}: can't list {error.filename}: {error.strerror}")

    for folder, folders, names in os.walk(root, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in folders:
            if Path(folder, name).is_symlink():
                link = OutsideInput("it is a symbolic link to a folder; name that folder as input")
                yield InputFile(location_of(Path(folder, name)), problem=link)
        visible = [name for name in names if not name.startswith(".")]
        texts = _texts_by_stem(name for name in visible if _stays_in(Path(folder, name), inside))
        for name in sorted(visible):
            path = Path(folder, name)
            problem = None if _stays_in(path, inside) else OutsideInput(_LEAVES)
            sidecars = tuple(
                location_of(path.absolute().with_name(text)) for text in texts[path.stem]
            )
            yield InputFile(location_of(path.absolute()), _without(name, sidecars), problem)


def _beside(path: Path, problem: SparkRayError | None = None) -> InputFile:
    """A file that was named by itself, with its sidecars; those may not be links elsewhere."""
    folder = path.parent.resolve()
    candidates = (path.with_suffix(suffix) for suffix in sorted(SIDECAR_SUFFIXES))
    sidecars = tuple(
        location_of(text.absolute())
        for text in candidates
        if text != path and text.is_file() and _stays_in(text, folder)
    )
    return InputFile(location_of(path.absolute()), sidecars, problem)


def _is_list(path: Path) -> bool:
    return path.suffix.lower() in LIST_SUFFIXES


def _from_list(path: Path) -> Iterator[InputFile]:
    """The files that a list names, one a line, relative to the list; `#` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"input: the list file {location_of(path)} is not UTF-8 text") from error
    except OSError as error:
        raise StorageError(f"{location_of(path)}: can't be read: {error.strerror}") from error
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise ConfigError(f"input: the list file {location_of(path)} names no file")
    for entry in entries:
        if is_remote(entry):
            yield from _expand_remote(entry)
            continue
        named = path.parent / local_path(entry)
        if named.is_dir():
            yield from _walk(named)
        elif named.exists():
            yield _beside(named)
        else:
            yield InputFile(
                location_of(named.absolute()), problem=StorageError("it does not exist")
            )


def _expand_remote(given: str) -> Iterator[InputFile]:
    fs, path = filesystem(given)
    with storage_errors(given, "list"):
        fs.invalidate_cache()
        keys: list[str] = []
        if _GLOB & set(path) and not fs.exists(path):
            keys = [key for key in fs.glob(path) if not fs.isdir(key)]
        else:
            with suppress(FileNotFoundError):  # what s3fs says of a bucket that is not there
                keys = fs.find(path)
        if not keys:
            raise ConfigError(f"input: {given!r} does not exist or holds no file")
    if keys == [path] and PurePosixPath(path).suffix.lower() in LIST_SUFFIXES:
        yield from _from_remote_list(given)
        return
    yield from _remote_files(
        fs, [key for key in keys if not PurePosixPath(key).name.startswith(".")]
    )


def _from_remote_list(location: str) -> Iterator[InputFile]:
    """As `_from_list`; entries are addresses, or keys relative to the list's own folder."""
    folder = location.rpartition("/")[0]
    for line in read_bytes(location, _MAX_LIST_BYTES).decode("utf-8", "replace").splitlines():
        entry = line.strip()
        if entry and not entry.startswith("#"):
            yield from _expand_remote(entry if is_remote(entry) else f"{folder}/{entry}")


def _remote_files(fs: Any, keys: list[str]) -> Iterator[InputFile]:
    by_folder: dict[str, list[str]] = defaultdict(list)
    for key in keys:
        folder, _, name = key.rpartition("/")
        by_folder[folder].append(name)
    for folder, names in by_folder.items():
        texts = _texts_by_stem(names)
        for name in names:
            location = str(fs.unstrip_protocol(f"{folder}/{name}"))
            parent = location.rpartition("/")[0]
            sidecars = tuple(f"{parent}/{text}" for text in texts[PurePosixPath(name).stem])
            yield InputFile(location, _without(name, sidecars))


def _texts_by_stem(names: Iterable[str]) -> defaultdict[str, list[str]]:
    texts: defaultdict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if PurePosixPath(name).suffix.lower() in SIDECAR_SUFFIXES:
            texts[PurePosixPath(name).stem].append(name)
    return texts


def _without(name: str, sidecars: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sidecar for sidecar in sidecars if PurePosixPath(sidecar).name != name)

"""What the inputs name: files, folders, globs, list files and listings become a sorted listing."""

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath, PurePosixPath
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, Field

from spark_ray.core.errors import (
    ConfigError,
    OutsideInput,
    SparkRayError,
    StorageError,
    StorageUnavailable,
)
from spark_ray.core.storage import (
    filesystem,
    is_remote,
    local_path,
    location_of,
    read_bytes,
    refuse_secret,
    storage_errors,
    user_path,
)
from spark_ray.models.sidecar_files import (
    LANGUAGE_TAG,
    SIDECAR_SUFFIXES,
    is_named_caption,
    is_named_subtitles,
    tag,
)

LIST_SUFFIXES = frozenset((".txt", ".list", ".lst"))
_GLOB = frozenset("*?[")
_MAX_LIST_BYTES = 64 << 20
_LEAVES = "it is a symbolic link that leaves the input folder"


Place = Annotated[str, Field(min_length=1)]
"""An empty one, as of an unset shell variable, would be the working folder."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class IngestOptions(BaseModel):
    """What goes in."""

    input: Annotated[list[Place], BeforeValidator(_as_list)] = Field(
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
        # By its own text: a file's odd name escapes the whole path, and its siblings' is not.
        folder = local_path(self.location).parent.name
        return PurePosixPath(location_of(Path(folder))).name


def list_inputs(inputs: Iterable[str]) -> list[InputFile]:
    """Every file that the inputs name, each once, sorted by location.

    Hidden files and folders (`.name`) are left out. Text files beside a video that share its stem
    become its sidecars. Whether a file is a video is not decided here: that takes a look inside.

    Raises:
        ConfigError: an input does not exist or matches nothing.
        StorageError: a folder or bucket can't be listed.
    """
    found: dict[str, InputFile] = {}
    listings = _Listings()
    for given in inputs:
        for file in _expand(given, listings):
            found.setdefault(file.location, file)
    return [found[location] for location in sorted(found)]


def files_as_they_are(locations: Iterable[str]) -> Iterator[InputFile]:
    """Files that were listed once, with the sidecars that they have now.

    One that is gone, or whose folder can't be listed, says so as its problem.

    Raises:
        StorageUnavailable: their whole storage can't be used.
    """
    listings = _Listings()
    for location in locations:
        try:
            yield listings.file(location)
        except StorageUnavailable:
            raise
        except StorageError as error:
            yield InputFile(location, problem=error)


def _expand(given: str, listings: "_Listings") -> Iterator[InputFile]:
    if is_remote(given):
        yield from listings.expand(given)
        return
    path = user_path(given)
    if path.is_dir():
        yield from _walk(path)
    elif path.exists() or path.is_symlink():
        yield from _from_list(path, listings) if _is_list(path) else [listings.beside(path)]
    elif _GLOB & set(given):
        yield from _from_pattern(path, listings)
    else:
        raise ConfigError(f"input: {given!r} does not exist")


def _from_pattern(pattern: Path, listings: "_Listings") -> Iterator[InputFile]:
    root = Path(*_leading_parts(pattern))
    inside = root.resolve()
    matches = [
        path
        for path in sorted(root.glob(str(pattern.relative_to(root))))
        if not any(p.startswith(".") for p in path.relative_to(root).parts)
    ]
    if not matches:
        raise ConfigError(f"input: the pattern {location_of(pattern)!r} matches no file or folder")
    for path in matches:
        stays = path.resolve().is_relative_to(inside)  # a folder on the way may be a link too
        if not stays:
            yield listings.beside(path, OutsideInput(_LEAVES))
        elif path.is_dir():
            yield from _walk(path)
        else:
            yield listings.beside(path)


def _stays_in(path: Path, root: Path) -> bool:
    return not path.is_symlink() or path.resolve().is_relative_to(root)


def _leading_parts(pattern: PurePath) -> Iterator[str]:
    for part in pattern.parts:
        if _GLOB & set(part):
            return
        yield part


def _walk(root: Path) -> Iterator[InputFile]:
    """Files below a folder. Links to folders are not followed, links to files only inside."""
    root, inside = root.absolute(), root.resolve()

    closed: list[OSError] = []

    for folder, folders, names in os.walk(root, onerror=closed.append):
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
    for error in closed:
        place = location_of(Path(error.filename))
        refused = StorageError(f"{place}: this folder can't be listed: {error.strerror}")
        if Path(error.filename) == root:
            raise refused
        yield InputFile(place, problem=refused)


def _is_list(path: PurePath) -> bool:
    return path.suffix.lower() in LIST_SUFFIXES


def _from_list(path: Path, listings: "_Listings") -> Iterator[InputFile]:
    """The files that a list names, one a line, relative to the list; `#` begins a comment."""
    try:
        lines = read_bytes(location_of(path), _MAX_LIST_BYTES).decode().split("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"input: the list file {location_of(path)} is not UTF-8 text") from error
    entries = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not entries:
        raise ConfigError(f"input: the list file {location_of(path)} names no file")
    for entry in entries:
        if is_remote(entry):
            yield from listings.in_list(entry)
            continue
        named = path.parent / local_path(entry)
        if named.is_dir():
            yield from _walk(named)
        elif named.exists():
            yield listings.beside(named)
        else:
            yield InputFile(
                location_of(named.absolute()), problem=StorageError("it does not exist")
            )


class _Listings:
    """The texts in each folder, looked up once for all inputs; and what object storage holds."""

    def __init__(self) -> None:
        self._texts: dict[str, defaultdict[str, list[str]]] = {}

    def beside(self, path: Path, problem: SparkRayError | None = None) -> InputFile:
        """A local file that was named by itself, with its sidecars; those may not be links away."""
        folder = path.parent
        if str(folder) not in self._texts:
            try:
                names = [entry.name for entry in os.scandir(folder) if entry.is_file()]
            except OSError:
                names = []  # a folder that may be entered, but not listed
            self._texts[str(folder)] = _texts_by_stem(names)
        texts = (path.with_name(name) for name in self._texts[str(folder)][path.stem])
        inside = folder.resolve()
        sidecars = tuple(
            location_of(text.absolute())
            for text in texts
            if text != path and _stays_in(text, inside)
        )
        return InputFile(location_of(path.absolute()), sidecars, problem)

    def expand(self, given: str) -> Iterator[InputFile]:
        """The files of a key, a prefix, a pattern or a list.

        Raises:
            ConfigError: there are none.
            StorageError: the bucket can't be listed.
        """
        fs, path = filesystem(given)
        with storage_errors(given, "list"):
            path = str(fs._strip_protocol(given))  # as the keys are written
            fs.invalidate_cache()
            if _GLOB & set(path) and not fs.exists(path):
                root = "/".join(_leading_parts(PurePosixPath(path)))
                matches = fs.glob(path)
                keys = [k for m in matches for k in (fs.find(m) if fs.isdir(m) else [m])]
            else:
                root, keys = path, []
                with suppress(FileNotFoundError):  # what s3fs says of a bucket that is not there
                    keys = fs.find(path)
            if not keys:
                raise ConfigError(f"input: {given!r} does not exist or holds no file")
        if keys == [path]:
            yield from (
                self._from_list(given)
                if _is_list(PurePosixPath(path))
                else [self._known_file(fs, path)]
            )
            return
        for key in keys:
            if not any(part.startswith(".") for part in key[len(root) :].split("/")):
                yield self._known_file(fs, key)

    def file(self, location: str) -> InputFile:
        """One file.

        Raises:
            StorageError: it does not exist, or its folder can't be listed.
        """
        if not is_remote(location):
            with storage_errors(location, "read"):
                if not local_path(location).exists():
                    raise StorageError(f"{location}: it does not exist any more")
            return self.beside(local_path(location))
        fs, path = filesystem(location)
        with storage_errors(location, "read"):
            if not fs.isfile(path):
                raise StorageError(f"{location}: it does not exist any more")
        return self._known_file(fs, path)

    def in_list(self, entry: str) -> Iterator[InputFile]:
        """What an entry of a list names. One that is not there is a reject, as any bad file."""
        refuse_secret(entry)
        try:
            fs, path = filesystem(entry)
            with storage_errors(entry, "list"):
                is_file = fs.isfile(path)
            yield from [self._known_file(fs, path)] if is_file else self.expand(entry)
        except ConfigError:
            yield InputFile(entry, problem=StorageError("it does not exist"))

    def _from_list(self, location: str) -> Iterator[InputFile]:
        """As `_from_list`; entries are addresses, or keys relative to the list's own folder."""
        folder = location.rpartition("/")[0]
        for line in read_bytes(location, _MAX_LIST_BYTES).decode("utf-8", "replace").split("\n"):
            entry = line.strip()
            if entry and not entry.startswith("#"):
                yield from self.in_list(entry if is_remote(entry) else f"{folder}/{entry}")

    def _known_file(self, fs: Any, key: str) -> InputFile:
        folder, _, name = key.rpartition("/")
        parent = str(fs.unstrip_protocol(folder))
        if parent not in self._texts:
            with storage_errors(parent, "list"):
                keys = fs.ls(folder, detail=False)
            self._texts[parent] = _texts_by_stem(key.rpartition("/")[2] for key in keys)
        texts = self._texts[parent][PurePosixPath(name).stem]
        sidecars = tuple(f"{parent}/{text}" for text in texts)
        return InputFile(f"{parent}/{name}", _without(name, sidecars))


def _texts_by_stem(names: Iterable[str]) -> defaultdict[str, list[str]]:
    """Text files by the stem of the video that they are about.

    film.de.srt and film.caption.txt are about film too.
    """
    texts: defaultdict[str, list[str]] = defaultdict(list)
    sidecars = [path for path in map(PurePosixPath, sorted(names)) if _is_sidecar(path)]
    for path in sidecars:
        texts[path.stem].append(path.name)
    for path in sidecars:
        in_language = is_named_subtitles(path.name) and LANGUAGE_TAG.fullmatch(tag(path.name))
        if in_language or is_named_caption(path.name):
            texts[PurePosixPath(path.stem).stem].append(path.name)
    return texts


def _is_sidecar(path: PurePosixPath) -> bool:
    return path.suffix.lower() in SIDECAR_SUFFIXES


def _without(name: str, sidecars: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sidecar for sidecar in sidecars if PurePosixPath(sidecar).name != name)

"""Advice before a build: what will probably not come out as its user means it."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from spark_ray.core.errors import ModelError
from spark_ray.core.provenance import VIDEO_ID_CHARS
from spark_ray.core.storage import user_path
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile
from spark_ray.models.caption_files import names_of
from spark_ray.models.registered import SCHEME, find_registered
from spark_ray.models.training_record import TrainingRecord
from spark_ray.models.weights import check_reference

_APOTHEON = "apotheon"
_ID = re.compile(rf"[0-9a-f]{{{VIDEO_ID_CHARS}}}(-\d{{8,}}-\d{{8,}})?")


def captions_advice(captioned: set[str], files: Iterable[InputFile]) -> Iterator[str]:
    """A sentence if a captions file names videos that are not among the input files.

    Ids are passed over: which files have them is not known before these are read.
    """
    missing = {name for name in captioned if not _ID.fullmatch(name)}
    for file in files:
        missing.difference_update(names_of(file.location))
    if missing:
        yield (
            f"captions_file: {len(missing)} of the {len(captioned)} videos that it names are not "
            f"among the input files, e.g. {min(missing)!r}; give a path, a file name or an id"
        )


def sampling_advice(config: BuildConfig) -> Iterator[str]:
    """A sentence for each Apotheon that learned from clips sampled otherwise than by `config`.

    Raises:
        ModelError: a reference names no model.
    """
    now = config.model_dump(mode="json")
    asked = {
        "caption_model": config.caption_model if config.caption_backend == _APOTHEON else None,
        "transcription_model": (
            config.transcription_model if config.transcription_backend == _APOTHEON else None
        ),
    }
    settings: dict[str, list[str]] = {}
    for setting, reference in asked.items():
        if reference:
            settings.setdefault(reference, []).append(setting)
    for reference, names in settings.items():
        setting = " and ".join(names)
        learned = _decoding(reference, setting)
        others = {name: value for name, value in learned.items() if now.get(name) != value}
        if others:
            flags = " ".join(_flag(name, value) for name, value in others.items())
            yield (
                f"{setting}: {reference} learned from clips that were sampled otherwise, and will "
                f"describe these worse; give {flags}"
            )


def _decoding(reference: str, setting: str) -> dict[str, Any]:
    """The settings by which a model's own clips were sampled; none where nobody knows."""
    check_reference(reference, setting)
    folder = user_path(reference)
    if reference.startswith(SCHEME):
        folder, _ = find_registered(reference, setting)
    elif not folder.is_dir():
        return {}  # on the hub: fetching it is the actor's
    try:
        return dict(TrainingRecord.read(folder).dataset.decoding)
    except ModelError:
        return {}  # an Apotheon of somebody else's, without our record


def _flag(name: str, value: Any) -> str:
    flag = name.replace("_", "-")
    if isinstance(value, bool):
        return f"--{flag}" if value else f"--no-{flag}"
    text = "x".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"--{flag} {text}"

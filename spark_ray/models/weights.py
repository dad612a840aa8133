"""Where a model's weights are, whether they may be fetched, and which bytes they are.

Nothing is downloaded in silence: what will come, how large it is and how to do without is logged
first, and `HF_HUB_OFFLINE=1` is honoured. Once resolved, a model is loaded from a local folder.
"""

import hashlib
import logging
import os
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from spark_ray.core.errors import ConfigError, ModelError
from spark_ray.core.schema import ModelInfo
from spark_ray.core.storage import is_folder, is_remote, user_path
from spark_ray.models.registered import SCHEME as REGISTERED
from spark_ray.models.registered import find_registered
from spark_ray.models.stored import find_stored

log = logging.getLogger(__name__)

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class WeightFormat:
    """What belongs to a model of one kind, and which of its files are the weights."""

    files: tuple[str, ...]
    weights: str


SAFETENSORS = WeightFormat(
    ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors"), "*.safetensors"
)
CTRANSLATE2 = WeightFormat(
    ("config.json", "preprocessor_config.json", "tokenizer.json", "vocabulary.*", "model.bin"),
    "model.bin",
)


class WantedWeights(TypedDict):
    """The arguments of `resolve_weights` and `check_weights`."""

    reference: str
    setting: str
    revision: str | None
    kind: WeightFormat
    instead: str


@dataclass(frozen=True)
class Weights:
    """A model on the local disk.

    `name` is what the user wrote, `revision` a hub commit or the version of a registered model.
    """

    name: str
    folder: Path
    revision: str | None
    files: tuple[Path, ...]

    @property
    def size_bytes(self) -> int:
        """Of all weight files: about what they take in memory."""
        return sum(file.stat().st_size for file in self.files)

    def info(self, prompt: str | None = None) -> ModelInfo:
        """What goes into a clip's provenance. Reads every weight file once per process."""
        return ModelInfo(
            name=self.name,
            revision=self.revision,
            weights_hash=hash_weights(self.files),
            prompt=prompt,
        )


def resolve_weights(
    reference: str, *, setting: str, revision: str | None, kind: WeightFormat, instead: str
) -> Weights:
    """The local files of a model: of a folder, in a bucket, registered, or on the hub.

    `setting` is the configuration field that held the reference, and `instead` a clause on how to
    do without a download; both go into messages.

    Raises:
        ConfigError: a revision was given for anything but a hub id.
        MissingDependency: a registered model was named, and MLflow is not installed.
        ModelError: nothing is there, it may not be fetched, or it holds no weights of this kind.
        StorageError: the bucket can't be read.
    """
    check_reference(reference, setting)
    folder = user_path(reference)
    if reference.startswith(REGISTERED):
        if revision is not None:
            raise ConfigError(
                f"{setting}: {reference} is a registered model, whose version is in its name, as "
                "in models:/apotheon/3; leave out the revision"
            )
        folder, revision = find_registered(reference, setting)
    elif is_folder(folder) or is_remote(reference):
        if revision is not None:
            raise ConfigError(f"{setting}: {reference} is a folder and has no revisions")
        if is_remote(reference):
            folder = find_stored(reference, setting, kind.files)
    else:
        folder = _from_hub(reference, setting, revision, kind, instead)
        revision = folder.name if _COMMIT.fullmatch(folder.name) else revision
    return Weights(reference, folder, revision, _weight_files(folder, setting, reference, kind))


def check_reference(reference: str, setting: str) -> None:
    """See, without asking anybody, whether a reference can name a model at all.

    Raises:
        ModelError: it can't, or it names a folder that holds none.
    """
    is_hub_id = _HUB_ID.fullmatch(reference) and not reference.startswith(".")
    folder = is_folder(user_path(reference))
    elsewhere = is_hub_id or is_remote(reference) or reference.startswith(REGISTERED)
    if not (folder or elsewhere):
        raise ModelError(
            f"{setting}: {reference} is neither a folder on this machine nor one at s3://, no "
            "hub id like 'organisation/model', and no registered model like "
            "'models:/apotheon@champion'"
        )
    if folder:
        _check_is_model(user_path(reference), setting, reference)


def check_weights(
    reference: str, *, setting: str, revision: str | None, kind: WeightFormat, instead: str
) -> None:
    """See, without asking anybody, whether `resolve_weights` can succeed on this machine.

    Raises:
        ModelError: it can't: nothing is there, or it is on the hub and may not be fetched.
    """
    check_reference(reference, setting)
    elsewhere = is_remote(reference) or reference.startswith(REGISTERED)
    if not elsewhere and not is_folder(user_path(reference)) and offline():
        _from_hub(reference, setting, revision, kind, instead)


def offline() -> bool:
    """Whether the user forbade downloads. Read on every call, unlike the hub client's own copy."""
    return any(
        os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"}
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def require_online(setting: str, reference: str, instead: str) -> None:
    """Raises ModelError if `reference`, which is not on this machine, may not be fetched."""
    if offline():
        raise ModelError(
            f"{setting}: {reference} is not on this machine and HF_HUB_OFFLINE=1 forbids "
            f"downloading it; unset HF_HUB_OFFLINE, or {instead}"
        )


def hash_weights(files: tuple[Path, ...]) -> str:
    """SHA-256, as hex, over the files' content in the order of their names.

    For a single file it equals `sha256sum`. About 1 s per GB, once per process and file.
    """
    stats = [file.stat() for file in files]
    return _hash_files(
        tuple(
            (file, stat.st_size, stat.st_mtime_ns)
            for file, stat in sorted(zip(files, stats, strict=True), key=lambda pair: pair[0].name)
        )
    )


@cache
def _hash_files(files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, _, _ in files:
        with path.open("rb") as file:
            while chunk := file.read(8 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _from_hub(
    hub_id: str, setting: str, revision: str | None, kind: WeightFormat, instead: str
) -> Path:
    # Imported here: openai-whisper uses this module and works without the hub's client.
    from huggingface_hub import errors, snapshot_download

    files: dict[str, Any] = {"allow_patterns": list(kind.files), "ignore_patterns": ["*/*"]}
    try:
        return Path(snapshot_download(hub_id, revision=revision, local_files_only=True, **files))
    except errors.LocalEntryNotFoundError:
        require_online(setting, hub_id, instead)

    # Not exported, but it is the base of every network error of whichever HTTP library is inside.
    network_error: type[Exception] = errors.HTTPError  # type: ignore[attr-defined]
    try:
        plan = snapshot_download(hub_id, revision=revision, dry_run=True, **files)
        missing = [file for file in plan if file.will_download]
        log.warning(
            "%s: downloading %s from the Hugging Face hub: %d files, %s. To do without, %s.",
            setting,
            hub_id,
            len(missing),
            _size(sum(file.file_size for file in missing)),
            instead,
        )
        return Path(snapshot_download(hub_id, revision=revision, **files))
    except (OSError, ValueError, network_error, errors.RevisionResolutionError) as error:
        # The hub's own words are about calls of its client; what they came from says more.
        root = error.__cause__ or error
        reason = str(root).strip().splitlines() or [type(root).__name__]
        raise ModelError(
            f"{setting}: {hub_id} can't be fetched from the Hugging Face hub ({reason[0]}); "
            f"check the name, the network and your access, or {instead}"
        ) from error


def _weight_files(
    folder: Path, setting: str, reference: str, kind: WeightFormat
) -> tuple[Path, ...]:
    _check_is_model(folder, setting, reference)
    files = tuple(sorted(folder.glob(kind.weights)))
    if not files:
        pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
        hint = (
            f"; {pickled[0]} can run code when it is opened and is never read: take a revision "
            "with safetensors or convert it"
            if pickled
            else ""
        )
        raise ModelError(f"{setting}: {reference} holds no {kind.weights} file{hint}")
    return files


def _check_is_model(folder: Path, setting: str, reference: str) -> None:
    if (folder / "config.json").is_file():
        return
    # What 'spark-ray train' is given as its output folder.
    inside = folder / "model" / "config.json"
    hint = f"; did you mean {reference.rstrip('/')}/model?" if inside.is_file() else ""
    raise ModelError(f"{setting}: {reference} holds no config.json, so it is no model{hint}")


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.0f} MB"

"""Errors that a user can act on.

Every message is one sentence that names the file or the setting, says what was wrong with it and
what to do. Entry points print the message alone; a traceback means a defect of ours.
"""


class SparkRayError(ValueError):
    """Base of every error that is the user's to mend."""


class ConfigError(SparkRayError):
    """A setting is missing, unknown, out of range or contradicts another."""


class FolderInUse(ConfigError):
    """Another job works in the folder that a setting names."""


class StorageError(SparkRayError):
    """A path or bucket can't be listed, read or written."""


class StorageUnavailable(StorageError):
    """The whole storage can't be used: no endpoint, or no valid credentials."""


class DatasetError(SparkRayError):
    """A dataset is missing, unfinished, damaged, or was built with other settings."""


class ModelError(SparkRayError):
    """A model's weights can't be found, read, or don't fit the backend that was asked for."""


class NothingSaid(ModelError):
    """A model that was loaded well has no words for a clip."""


class RegistryUnavailable(ModelError):
    """The registry of models can't be asked; what it would say is not known."""


class ModelFailed(SparkRayError):
    """A model that was loaded well fails again and again."""


class ClusterError(SparkRayError):
    """A cluster can't be reached, refuses us, or doesn't know the job that was named."""


class MissingDependency(SparkRayError):
    """An optional package is not installed."""

    def __init__(
        self, package: str, extra: str | None, needed_for: str, install: str | None = None
    ) -> None:
        install = install or f"pip install 'spark-ray[{extra}]'"
        super().__init__(f"{needed_for} needs the package '{package}': {install}")


class MediaError(SparkRayError):
    """A media file can't be used; becomes a reject with the class name as its reason."""


class NotAVideo(MediaError):
    """The file holds no video that we can demultiplex."""


class OutsideInput(MediaError):
    """A symbolic link leads out of the input folder; following it could publish any file."""


class UnsupportedCodec(MediaError):
    """The container is fine, but no decoder here knows its video codec."""


class CorruptMedia(MediaError):
    """More of the file is damaged or missing than the settings allow."""


class MediaLimitExceeded(MediaError):
    """The file is larger, longer, wider or faster than the settings allow."""


class MediaTimeout(MediaError):
    """Reading or decoding made no end within its deadline."""


class WorkerCrashed(MediaError):
    """Decoding this file killed its worker process more than once."""


def unknown_choice(setting: str, value: object, choices: object) -> ConfigError:
    """The error for a name that is not among the known ones; it lists them."""
    known = ", ".join(sorted(str(choice) for choice in choices))  # type: ignore[attr-defined]
    return ConfigError(f"{setting}: {value!r} is unknown; choose one of: {known}")

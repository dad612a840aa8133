"""The dataset job's configuration: the settings of every room that it uses, in one class."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from spark_ray.core.config import Gpus, JobConfig
from spark_ray.core.errors import ConfigError
from spark_ray.core.mistakes import written_as
from spark_ray.core.provenance import fingerprint
from spark_ray.core.storage import absolute, is_remote, local_path, refuse_secret, user_path
from spark_ray.datasets.ingest import IngestOptions
from spark_ray.media.decode import DecodeOptions
from spark_ray.models.captioning import CaptionOptions
from spark_ray.models.transcription import TranscriptionOptions, is_named_by_size

_JOB_FILES = "runtime_resources/working_dir_files"


def in_job_files() -> bool:
    """Whether the working folder is the one that Ray unpacks a job's files into."""
    return _JOB_FILES in str(Path.cwd())


def check_outlives_job(setting: str, location: str) -> None:
    """
    Raises:
        ConfigError: the location lies in the folder that Ray deletes with a job's files.
    """
    if in_job_files() and absolute(location) != location:
        raise ConfigError(
            f"{setting}: {location!r} is relative to the job's own files, which Ray deletes "
            "after the job; give an absolute path or s3://"
        )


VersionName = Annotated[
    str,
    written_as(
        r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}",
        "1 to 64 letters, digits, dots, hyphens or underscores, with a letter or digit first",
    ),
]


class PublishOptions(BaseModel):
    """What comes out."""

    output: str = Field(
        min_length=1,
        description="where the dataset goes; the last part is its name (a folder or s3://)",
    )
    version: VersionName | None = Field(
        None,
        description="version folder; unset: resume the unfinished one, or else the next vN",
    )
    supersede: bool = Field(
        False,
        description="discard an unfinished build that was begun with other settings, for jobs that "
        "nobody watches; unset: refuse to mix with it",
    )
    format: Literal["files", "parquet", "both"] = Field(
        "files",
        description="files: JPEGs and sound in folders; parquet: shards with the bytes inline",
    )
    shard_bytes: int = Field(
        256 << 20, ge=1 << 16, description="size at which a Parquet shard is full, in bytes"
    )
    provenance: bool = Field(
        True, description="write settings, models and steps into every manifest line"
    )
    min_clip_s: float = Field(0.0, ge=0, description="leave shorter clips out")


class ClusterOptions(BaseModel):
    """How the work is spread; changes nothing in the result."""

    ray_address: str | None = Field(
        None, description="Ray cluster to use; unset: RAY_ADDRESS, or a local one for this job"
    )
    dashboard: bool = Field(
        False, description="also start the Ray dashboard, when the job starts a local cluster"
    )
    decode_workers: int | None = Field(
        None, ge=1, description="decoding tasks at a time; unset: one for each CPU"
    )
    caption_workers: int = Field(1, ge=1, description="actors that caption")
    transcription_workers: int = Field(1, ge=1, description="actors that transcribe")
    model_gpus: Gpus = Field(
        1.0, description="GPUs for each model actor; without GPUs in the cluster it gets CPUs"
    )


class BuildConfig(
    JobConfig,
    IngestOptions,
    PublishOptions,
    DecodeOptions,
    CaptionOptions,
    TranscriptionOptions,
    ClusterOptions,
):
    """Build a dataset: decode, sample, find scenes, caption, transcribe, publish.

    Exit status: 0 published (rejects are counted in the last line), 1 nothing could be published
    or the work failed, 2 wrong usage or configuration, such as an output that can't be written to.
    """

    @model_validator(mode="after")
    def _check_together(self) -> "BuildConfig":
        if self.max_duration_s is not None and self.max_duration_s < self.min_duration_s:
            raise ValueError(
                f"max_duration_s={self.max_duration_s:g} is less than "
                f"min_duration_s={self.min_duration_s:g}; no video can pass both"
            )
        if self.min_clip_s > self.clip_max_s:
            raise ValueError(
                f"min_clip_s={self.min_clip_s:g} is more than clip_max_s={self.clip_max_s:g}; "
                "no clip can pass both"
            )
        if self.split == "scenes" and not self.scene_detection:
            raise ValueError(
                "split=scenes needs scene_detection; turn that on, or choose split=fixed or none"
            )
        return self

    def located(self) -> "BuildConfig":
        """With local paths made absolute, since workers have other working folders than the driver.

        Raises:
            ConfigError: the output would lie in the folder that Ray unpacks a job's files into and
                later deletes.
        """
        check_outlives_job("output", self.output)
        models = (self.captions_file, self.caption_model, self.transcription_model)
        for location in (*self.input, self.output, *models):
            if location is not None:
                refuse_secret(location)
        output = absolute(self.output)
        for location in self.input:
            if _is_in_input(output, location):
                raise ConfigError(
                    f"output: {self.output} lies in the input folder {location}, whose next build "
                    "would take its sounds and pictures for input; name a folder elsewhere"
                )
        settings = {"output": output}
        captions = self.captions_file
        if captions and not is_remote(captions) and not user_path(captions).is_file():
            raise ConfigError(f"captions_file: {captions!r} does not exist")
        for name in ("captions_file", "caption_model", "transcription_model"):
            value = getattr(self, name)
            if name == "transcription_model" and is_named_by_size(self):
                continue
            if value is not None and not is_remote(value) and user_path(value).exists():
                settings[name] = absolute(value)
        return self.model_copy(update=settings)

    def content_settings(self) -> dict[str, Any]:
        """The settings that decide what the dataset holds: its recipe.

        Where it goes and how the work is spread are not among them, so a build may be resumed on
        another cluster, or with smaller batches after memory ran out.
        """
        return self.model_dump(mode="json", exclude=OPERATIONAL)

    def fingerprint(self) -> str:
        return fingerprint(self.content_settings())


def _is_in_input(output: str, given: str) -> bool:
    """Whether the output lies in a folder that is an input."""
    if is_remote(given):
        return f"{output}/".startswith(f"{given.rstrip('/')}/")
    folder = user_path(given)
    if is_remote(output) or not folder.is_dir():
        return False
    return local_path(output).resolve().is_relative_to(folder.resolve())


OPERATIONAL = {
    *ClusterOptions.model_fields,
    "output",
    "version",
    "supersede",
    "caption_batch_size",
    "caption_cache_bytes",
    "caption_device",
    "transcription_batch_size",
    "transcription_device",
    "decode_timeout_s",
}

"""The evaluation job's configuration."""

import re
from typing import Literal

from pydantic import BaseModel, Field

from spark_ray.core.config import Gpus, JobConfig
from spark_ray.core.storage import absolute, is_remote, user_path
from spark_ray.datasets.config import check_outlives_job


class EvaluatedOptions(BaseModel):
    """What is evaluated, and where the results go."""

    model: str = Field(
        min_length=1,
        description="an Apotheon: a folder, a registered model (models:/apotheon@champion) or a "
        "hub id",
    )
    dataset: str = Field(
        min_length=1,
        description="a dataset's folder or s3:// address, with @vN for a version other than the "
        "newest; or a manifest.jsonl",
    )
    split: Literal["train", "validation", "test", "all"] = Field(
        "test", description="which of its clips"
    )
    limit: int | None = Field(
        None, ge=1, description="only the first so many clips of the split; unset: all"
    )
    output_dir: str | None = Field(
        None,
        description="folder or s3:// for predictions, results and report, and the run's name in "
        "comparisons; what an earlier run left there is replaced; unset: "
        "evaluations/<model>-<dataset>-<split>",
    )
    compare: list[str] = Field(
        [], description="earlier results.json, or their folders, to show beside this run"
    )
    pdf: bool = Field(False, description="also write the report as report.pdf")


class WritingOptions(BaseModel):
    """How the model writes: always its likeliest text, never a drawn one."""

    num_beams: int = Field(
        1, ge=1, description="beams of the search; 1 is greedy. Time and memory grow with them"
    )
    max_new_tokens: int = Field(
        256,
        ge=1,
        description="longest caption or transcript, in tokens. Too low cuts transcripts off, which "
        "counts as errors; too high costs time where a model does not stop by itself",
    )


class WorkerOptions(BaseModel):
    """How the work is spread."""

    batch_size: int = Field(
        16,
        ge=1,
        description="clips that an actor writes about at a time; lower it when memory runs out",
    )
    workers: int = Field(1, ge=1, description="actors, each with a model of its own")
    num_gpus: Gpus = Field(
        1.0, description="GPUs for each actor; without GPUs in the cluster it gets CPUs"
    )
    ray_address: str | None = Field(
        None, description="Ray cluster to use; unset: RAY_ADDRESS, or a local one for this job"
    )
    dashboard: bool = Field(
        False, description="also start the Ray dashboard, when the job starts a local cluster"
    )


class EvaluateConfig(JobConfig, EvaluatedOptions, WritingOptions, WorkerOptions):
    """Evaluate a model: captions, transcripts and retrieval, as JSON and as a report.

    Exit status: 0 evaluated (clips that could not be read are counted in the last line), 1 the
    results could not be written, 2 wrong usage, or nothing that can be evaluated.
    """

    def located(self) -> "EvaluateConfig":
        """With local paths made absolute, since workers have other working folders than the driver.

        Raises:
            ConfigError: the results would lie in the folder that Ray unpacks a job's files into and
                later deletes.
        """
        output = self.output_dir or self._default_output()
        check_outlives_job("output_dir", output)
        settings = {"output_dir": absolute(output), "dataset": absolute(self.dataset)}
        if not is_remote(self.model) and user_path(self.model).exists():
            settings["model"] = absolute(self.model)
        return self.model_copy(
            update={**settings, "compare": [absolute(location) for location in self.compare]}
        )

    def _default_output(self) -> str:
        return f"evaluations/{_word(self.model)}-{_word(self.dataset)}-{self.split}"


def _word(reference: str) -> str:
    """The last part of a reference, without what does not go into a shell line unquoted."""
    last = reference.rstrip("/").rpartition("/")[2].removesuffix(".jsonl")
    return re.sub(r"[^A-Za-z0-9._@-]+", "-", last).strip("-") or "run"

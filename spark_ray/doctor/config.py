"""What the doctor looks at."""

from typing import Literal, get_args

from pydantic import Field

from spark_ray.cluster.config import ClusterPlace
from spark_ray.core.config import JobConfig

Need = Literal[
    "cluster", "gpu", "models", "train", "tune", "serve", "ui", "s3", "whisper", "faster-whisper"
]


class DoctorConfig(JobConfig, ClusterPlace):
    """Look at this machine, and at the cluster and the places that are named.

    One line for each thing: ok, a note, or what is wrong and what to do about it. Exit status: 0
    nothing is wrong, 1 something is, 2 wrong usage.
    """

    inputs: list[str] = Field(
        default_factory=list, description="folders and s3:// that jobs only read"
    )
    outputs: list[str] = Field(
        default_factory=lambda: ["."],
        description="folders and s3:// that jobs write to; a small file is written and removed",
    )
    models: list[str] = Field(
        default_factory=list,
        description="weights that jobs take: folders, hub ids, models:/name@alias",
    )
    needs: list[Need] = Field(
        default_factory=list,
        description="what must be there, of " + ", ".join(get_args(Need)) + "; without it, it is "
        "but a note",
    )

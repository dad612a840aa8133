"""How commands are told which cluster, and what to send there. No Ray here: --help stays quick."""

import os
from typing import Any

from pydantic import BaseModel, Field, field_validator

from spark_ray.cluster.workload import CONFIGS
from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError, unknown_choice

# In this order Ray looks for an address itself, and lets what it finds go before what it is given.
ADDRESS_VARIABLES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


class ClusterPlace(BaseModel):
    """Which cluster."""

    address: str | None = Field(
        None,
        description="of the cluster, as http://head:8265; unset: RAY_API_SERVER_ADDRESS or "
        "RAY_ADDRESS. Where RAY_AUTH_MODE=token is set, its token comes from RAY_AUTH_TOKEN or "
        "~/.ray/auth_token",
    )
    ca_file: str | None = Field(
        None, description="certificates to trust where the address is https:// and they are private"
    )

    def resolved(self) -> str:
        """
        Raises:
            ConfigError: no cluster is named anywhere.
        """
        found = self.address or next(filter(None, map(os.environ.get, ADDRESS_VARIABLES)), None)
        if not found:
            raise ConfigError(
                "address: no cluster is named; give --address http://head:8265 or set RAY_ADDRESS"
            )
        return found


class SubmitConfig(JobConfig, ClusterPlace):
    """Send a job to a cluster and follow it; what comes after -- are the job's own flags.

    The job has this machine's version of SparkRay, and no path of this machine. Exit status: that
    of the job, 1 the cluster can't be reached, 2 wrong usage, 130 interrupted: the job goes on.
    """

    job: str = Field(description="what runs, as after `spark-ray`: " + ", ".join(CONFIGS))
    settings: dict[str, Any] = Field(
        default_factory=dict, description="of the job, as in its own --config file; YAML only"
    )
    files: list[str] = Field(
        default_factory=list,
        description="files and folders that go along, relative to the job's YAML file; settings "
        "name them by the same relative paths",
    )
    env: dict[str, str] = Field(
        default_factory=dict, description="environment of the job; YAML only"
    )
    env_from: list[str] = Field(
        default_factory=list,
        description="variables that the job takes over from this shell. Whoever has the cluster's "
        "token can read them",
    )
    wait: bool = Field(True, description="follow the job to its end, or leave it once it is sent")

    @field_validator("job")
    @classmethod
    def _known_job(cls, job: str) -> str:
        if job not in CONFIGS:
            raise unknown_choice("job", job, CONFIGS)
        return job

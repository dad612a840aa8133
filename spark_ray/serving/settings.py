"""How the server is configured: what it serves, to whom, and what a request may ask for.

These are the `args` of the application in `serve_configs/*.yaml`.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spark_ray.core.config import Gpus, JobConfig
from spark_ray.core.errors import unknown_choice
from spark_ray.core.mistakes import written_as
from spark_ray.core.storage import absolute, is_remote
from spark_ray.datasets.config import BuildConfig
from spark_ray.models.captioning import captioners
from spark_ray.models.registered import SCHEME as REGISTERED
from spark_ray.models.transcription import transcribers
from spark_ray.serving.dataset_names import doubled_name
from spark_ray.serving.tokens import TokenSettings

Ability = Literal["caption", "transcribe", "embed", "chat"]

APOTHEON = "apotheon"
VLLM = "vllm"
MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_ModelName = Annotated[
    str,
    written_as(
        MODEL_NAME,
        "a name of 1 to 64 letters, digits, dots, hyphens or underscores, with a letter or digit "
        "first",
    ),
]


class ModelSettings(BaseModel):
    """A model that requests may name."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    backend: str = Field(
        APOTHEON,
        description="apotheon, or a captioning or transcription backend of the dataset job",
    )
    reference: str | None = Field(
        None,
        description="a folder, a hub id, or a registered model without its alias: "
        "models:/apotheon answers as apotheon@champion, apotheon/3 and so on",
    )
    max_batch_size: int = Field(
        8, ge=1, description="most requests in one forward pass; vllm works best with 64 or more"
    )
    batch_wait_s: float = Field(0.01, ge=0, description="longest wait for a batch to fill")
    max_queued: int = Field(64, ge=1, description="requests that may wait; more are told to retry")
    min_replicas: int = Field(1, ge=1)
    max_replicas: int = Field(1, ge=1, description="Serve adds replicas as queues grow")
    num_cpus: float = Field(
        0.3, ge=0, description="that Ray sets aside; what is left on a laptop is for jobs"
    )
    num_gpus: Gpus = Field(
        0.0,
        description="a fraction lets models share a GPU; vllm divides its model among several",
    )
    memory_bytes: int | None = Field(
        None,
        ge=1,
        description="apotheon: of weights that a replica holds at once, by their files' sizes; the "
        "version that was asked longest ago goes first. Unset: room for two of the largest",
    )
    context_tokens: int | None = Field(
        None, ge=1, description="vllm: longest conversation with its answer; unset: the model's own"
    )
    cache_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="vllm: memory of its key-value cache; unset: what is left of nine tenths of "
        "its share of the GPU",
    )

    @property
    def abilities(self) -> tuple[Ability, ...]:
        if self.backend == APOTHEON:
            return ("caption", "transcribe", "embed")
        if self.backend == VLLM:
            return ("caption", "chat")
        return ("caption",) if self.backend in captioners.names else ("transcribe",)

    @property
    def takes_language(self) -> bool:
        """Whether a request may say what language is spoken; Apotheon writes what it hears."""
        return self.backend in ("whisper", "faster_whisper")

    @field_validator("backend")
    @classmethod
    def _known_backend(cls, backend: str) -> str:
        known = {*captioners.names, *transcribers.names} - {"none", "sidecar", "subtitles"}
        if backend not in known:
            raise unknown_choice("backend", backend, known)
        return backend

    @model_validator(mode="after")
    def _apotheon_needs_weights(self) -> "ModelSettings":
        if self.backend in (APOTHEON, VLLM) and not self.reference:
            raise ValueError(f"a model with backend {self.backend} needs a reference")
        return self

    @model_validator(mode="after")
    def _engine_settings_need_an_engine(self) -> "ModelSettings":
        given = self.context_tokens or self.cache_bytes
        if given and self.backend != VLLM:
            raise ValueError("context_tokens and cache_bytes have no effect without backend vllm")
        if self.memory_bytes and self.backend != APOTHEON:
            raise ValueError("memory_bytes has no effect without backend apotheon")
        if self.backend == VLLM and str(self.reference).startswith(REGISTERED):
            raise ValueError("reference: an engine holds one version; give the folder of its files")
        return self


class RequestLimits(BaseModel):
    """What a request may ask for."""

    model_config = ConfigDict(extra="forbid")

    max_upload_bytes: int = Field(256 << 20, gt=0, description="largest uploaded or fetched file")
    upload_timeout_s: float = Field(600.0, gt=0, description="longest upload of one file or part")
    max_body_bytes: int = Field(
        8 << 20, gt=0, description="largest JSON body; pictures may lie in it as data: URLs"
    )
    max_json_depth: int = Field(32, gt=0)
    max_clip_s: float = Field(60.0, gt=0, description="longest clip, in requests and jobs")
    max_pixels: int = Field(4096 * 2304, gt=0, description="largest picture or video frame")
    max_new_tokens: int = Field(256, gt=0)
    max_texts: int = Field(256, gt=0, description="texts to embed in one request")
    request_timeout_s: float = Field(120.0, gt=0)
    max_assets_per_key: int = Field(10_000, gt=0)
    max_asset_bytes_per_key: int = Field(64 << 30, gt=0)
    max_jobs_per_key: int = Field(100, gt=0, description="jobs that have not ended")
    asset_lifetime_s: float = Field(7 * 86_400.0, gt=0, description="then an asset is removed")


class ServeSettings(JobConfig):
    """The server."""

    state: Annotated[str, Field(min_length=1)] = Field(
        "serving", description="folder of assets, jobs and, without database_url, of the database"
    )
    database_url: str | None = Field(
        None, description="SQLAlchemy address; unset means SQLite in `state`"
    )
    models: dict[_ModelName, ModelSettings] = Field(
        default_factory=dict, description="models by the name that requests give"
    )
    datasets: list[str] = Field(
        default_factory=list, description="published datasets that can be searched, path[@version]"
    )
    jobs_output: str | None = Field(
        None, description="where datasets of jobs are published; unset means `state`/datasets"
    )
    jobs_at_once: int = Field(1, ge=1, description="jobs that run at a time; others are queued")
    job_settings: dict[str, object] = Field(
        default_factory=dict, description="settings of `spark-ray data build` for every job"
    )
    limits: RequestLimits = Field(default_factory=lambda: RequestLimits.model_validate({}))
    allowed_hosts: list[str] = Field(
        default_factory=list,
        description="hosts that media may be fetched from over https; none by default. "
        "`*.example.com` means every host below it",
    )
    allowed_buckets: list[str] = Field(
        default_factory=list, description="s3:// prefixes that requests may name"
    )
    tokens: TokenSettings | None = Field(
        None, description="JSON Web Tokens of an identity provider, taken besides API keys"
    )
    cors_origins: list[str] = Field(default_factory=list, description="off by default")
    gateway_replicas: int = Field(1, ge=1)
    gateway_cpus: float = Field(0.1, ge=0, description="of each replica")
    decoder_replicas: int = Field(1, ge=1)
    decoder_cpus: float = Field(0.2, ge=0, description="of each replica")
    alias_lifetime_s: float = Field(
        5.0, ge=0, description="how long an alias is remembered before the registry is asked again"
    )

    @field_validator("job_settings")
    @classmethod
    def _known_job_settings(cls, settings: dict[str, object]) -> dict[str, object]:
        for name in settings:
            if name not in BuildConfig.model_fields or name in {"input", "output", "version"}:
                known = set(BuildConfig.model_fields) - {"input", "output", "version"}
                raise unknown_choice("job_settings", name, known)
        return settings

    @field_validator("datasets")
    @classmethod
    def _datasets_have_names(cls, datasets: list[str]) -> list[str]:
        if name := doubled_name(datasets):
            raise ValueError(
                f"two of them are called {name!r}, which requests could not tell apart"
            )
        return datasets

    @model_validator(mode="after")
    def _database_is_somewhere(self) -> "ServeSettings":
        if self.database_url is None and is_remote(self.state):
            raise ValueError(
                f"database_url: state is {self.state}, where SQLite can't be; give an address such "
                "as postgresql+psycopg://user@host/name"
            )
        return self

    def located(self) -> "ServeSettings":
        """With places that mean the same in every process of the cluster."""
        tokens = self.tokens
        if tokens is not None and tokens.jwks_file is not None:
            tokens = tokens.model_copy(update={"jwks_file": absolute(tokens.jwks_file)})
        return self.model_copy(
            update={
                "state": absolute(self.state),
                "jobs_output": absolute(self.jobs_output or f"{self.state}/datasets"),
                "datasets": [absolute(reference) for reference in self.datasets],
                "tokens": tokens,
            }
        )

    @property
    def database(self) -> str:
        return self.database_url or f"sqlite:///{Path(self.state).absolute()}/serving.db"

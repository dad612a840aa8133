"""What goes in and out over HTTP under `/v1`, apart from OpenAI's shapes."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from spark_ray.core.schema import FrameSample, Scene, Segment
from spark_ray.media.sniff import MediaKind
from spark_ray.serving.messages import ServedModel, Timing

DEFAULT_TOKENS = 128
"""Of a text where nobody says when it ends."""

ModelName = Annotated[str, Field(min_length=1, max_length=140)]
AssetId = Annotated[str, Field(min_length=1, max_length=64)]
Url = Annotated[str, Field(min_length=8, max_length=2048)]
UploadedAsset = Annotated[AssetId | None, Field(description="id of an uploaded asset")]
Address = Annotated[
    Url | None, Field(description="https:// or s3:// address, where those are allowed")
]
Time = Annotated[float, Field(description="seconds since 1970")]
MaxNewTokens = Annotated[
    int | None,
    Field(
        ge=1, le=1_000_000, description=f"where a text ends at the latest; unset: {DEFAULT_TOKENS}"
    ),
]
Text = Annotated[str, Field(max_length=1 << 20)]
"""Pydantic looks whether a text is Unicode only where it is bounded, too."""


class Request(BaseModel):
    """Base of bodies: a field that we don't know is a mistake, not to be passed over."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class OpenAiRequest(Request):
    """Base of bodies in OpenAI's shapes, where null says as much as leaving a field out.

    Clients send it for what their user did not set, and with messages that they were answered.
    """

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if value is not None}


class Response(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(protected_namespaces=())


class MediaRequest(Request):
    """Media by `asset` or by `url`, or else a `file` in a multipart form."""

    asset: UploadedAsset = None
    url: Address = None
    model: ModelName | None = Field(
        None, description="name, name@alias or name/version; unset means the server's own choice"
    )
    max_new_tokens: MaxNewTokens = None


class AnalyzeRequest(Request):
    """As a `MediaRequest`, with a model for each kind of answer."""

    asset: UploadedAsset = None
    url: Address = None
    caption_model: ModelName | None = Field(None, description="as `model` of a caption")
    transcription_model: ModelName | None = Field(None, description="as `model` of a transcript")
    max_new_tokens: MaxNewTokens = None
    thumbnails: int = Field(0, ge=0, le=24, description="small pictures of sampled frames")
    stream: bool = Field(
        False, description="server-sent events: clip, caption and transcript by pieces, answer"
    )


class FetchRequest(Request):
    """An asset to be made of what is at an address."""

    url: Url


class AssetInfo(Response):
    """An asset. `received_bytes` is less than `size_bytes` while it is uploaded."""

    id: str
    kind: MediaKind | Literal["unknown"]
    media_type: str
    size_bytes: int | None
    received_bytes: int
    sha256: str | None
    complete: bool
    created: Time
    expires: Time


Finish = Annotated[
    Literal["stop", "length"], Field(description="length: it was cut off at max_new_tokens")
]


class Answer(Response):
    """What every answer says of itself: who asked for what, and who answered."""

    id: str = Field(description="id of the request")
    asset: str
    model: ServedModel
    timing_s: Timing


class CaptionAnswer(Answer):
    caption: str
    all_captions: list[str] = Field(description="of backends that write several; else empty")
    finish: Finish


class TranscriptionAnswer(Answer):
    text: str
    language: str | None = Field(description="two letters, where the model tells it")
    segments: list[Segment] = Field(description="where the model times them; else empty")
    finish: Finish


class Thumbnail(Response):
    """A small copy of a frame, as JPEG in base64; `time_s` from the clip's start."""

    time_s: float
    jpeg: str


class ClipView(Response):
    """What decoding alone tells of a clip. `dropped` are the frames that sampling left out."""

    id: str
    asset: str
    duration_s: float
    width: int | None
    height: int | None
    scenes: list[Scene]
    frame_times: list[float]
    dropped: list[FrameSample]
    thumbnails: list[Thumbnail]
    subtitles: str | None
    has_audio: bool


class AnalyzeAnswer(ClipView):
    """Everything at once; a kind that the media or the server lacks is null."""

    caption: str | None
    caption_model: ServedModel | None
    transcript: str | None
    transcript_segments: list[Segment]
    transcription_model: ServedModel | None
    timing_s: Timing


class SearchRequest(Request):
    """Clips of a published dataset that fit a text, or a picture or clip."""

    dataset: Annotated[str, Field(min_length=1, max_length=1024)] | None = Field(
        None, description="one of the server's datasets by name; unset means its first"
    )
    text: Annotated[str, Field(min_length=1, max_length=2000)] | None = Field(
        None, description="what is looked for; either this or an asset"
    )
    asset: AssetId | None = Field(None, description="picture or clip to look for the like of")
    model: ModelName | None = Field(None, description="that embeds; unset: the server's own choice")
    limit: int = Field(10, ge=1, le=100)


class Hit(Response):
    """A clip that was found. `score` is the cosine of the two embeddings, -1 to 1."""

    clip_id: str
    score: float
    caption: str | None
    transcript: str | None
    source_path: str
    label: str | None


class SearchAnswer(Response):
    id: str
    dataset: str
    dataset_version: str
    model: ServedModel
    hits: list[Hit]
    timing_s: Timing


_MOST_SETTING = 1 << 53
_MOST_SETTING_CHARS = 1024

JobState = Literal["queued", "running", "cancelling", "succeeded", "failed", "cancelled"]


class JobRequest(Request):
    """A dataset to be built of assets, addresses, or both."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = Field(
        description="name of the dataset; a job publishes its next version"
    )
    assets: list[AssetId] = Field(default_factory=list, max_length=10_000)
    urls: list[Url] = Field(default_factory=list, max_length=10_000, description="s3:// addresses")
    settings: dict[str, Any] = Field(
        default_factory=dict, description="settings of `spark-ray data build` for this job"
    )

    @field_validator("settings")
    @classmethod
    def _settings_are_plain(cls, settings: dict[str, Any]) -> dict[str, Any]:
        for name, value in settings.items():
            values = value if isinstance(value, list) else [value]
            if not all(map(_is_plain, values)):
                raise ValueError(
                    f"{name!r} must be a number, a text, true, false, null, or a list of these"
                )
        return settings


def _is_plain(value: object) -> bool:
    """Whether it is a value that every place it goes to can hold: a fingerprint, YAML, a table."""
    if isinstance(value, str):
        return len(value) <= _MOST_SETTING_CHARS and value.isprintable()
    if isinstance(value, int | float):
        return abs(value) < _MOST_SETTING  # as no NaN is, either
    return value is None


class JobInfo(Response):
    """A job, and while it runs how far it is."""

    id: str
    name: str
    state: JobState
    done: int | None = Field(description="units that are built; null unless it runs")
    total: int | None = Field(description="units in all; null before they are planned")
    attempts: int = Field(description="how often it was submitted; again after its driver was lost")
    created: Time
    finished: Time | None
    result: dict[str, Any] | None
    error: str | None


class ModelCard(Response):
    """A model that requests may name, in the shape of OpenAI's list."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "spark-ray"
    backend: str
    abilities: list[str]


class ModelList(Response):
    object: Literal["list"] = "list"
    data: list[ModelCard]


class ModelVersionInfo(Response):
    """A version of a model. What is only known of models that SparkRay trained may be null.

    `metrics` are by skill, on clips of `held_out_split`, which it has not learned from;
    `training_metrics` the last ones of its training.
    """

    version: str | None
    aliases: list[str] = Field(default_factory=list)
    created: float | None
    trained: str | None = None
    dataset: str | None = None
    dataset_version: str | None = None
    clips: dict[str, int] = Field(default_factory=dict)
    steps: int | None = None
    world_size: int | None = None
    code_version: str | None = None
    license: str | None = None
    training_metrics: dict[str, float | None] = Field(default_factory=dict)
    held_out_split: str | None = None
    metrics: dict[str, dict[str, float | None]] = Field(default_factory=dict)


class ModelDetails(ModelCard):
    versions: list[ModelVersionInfo]


class KeyInfo(Response):
    """The key that asks."""

    id: str
    name: str
    scopes: list[str]
    requests_per_minute: int
    max_concurrent: int


class NodeInfo(Response):
    """A node of the cluster, with what it has of each resource."""

    id: str
    address: str
    is_head: bool
    total: dict[str, float]


class DeploymentInfo(Response):
    """A deployment. Depths are of the last time that Ray exported its metrics, some seconds ago."""

    application: str
    name: str
    status: str
    replicas: dict[str, int]
    queued: int
    ongoing: int
    message: str


class OwnedJob(JobInfo):
    """A job as operators see it: with whose it is."""

    owner: str


class SystemInfo(Response):
    """The cluster: `available` is what all nodes together have free of each resource."""

    ray_version: str
    nodes: list[NodeInfo]
    available: dict[str, float]
    deployments: list[DeploymentInfo]
    jobs: list[OwnedJob]


class Health(Response):
    status: Literal["ok", "starting", "failed"] = Field(
        description="failed: some can't be started, and will not be without a new deployment"
    )
    waiting_for: list[str] = Field(default_factory=list, description="models that do not answer")

"""What `/v1/datasets` answers: published versions, their funnels and clips, and comparisons."""

from typing import Any

from pydantic import Field, JsonValue

from spark_ray.datasets.samples import Split
from spark_ray.serving.schemas import Response, Thumbnail


class VersionSummary(Response):
    """A published version in numbers. `parent` is the version that it was replayed from."""

    version: str
    created: str
    parent: str | None
    format: str
    clips: int
    videos: int
    hours: float
    frames: int
    scenes: int
    bytes: int
    with_audio: int
    captioned: int
    transcribed: int


class DatasetSummary(Response):
    """A dataset, with its versions from the newest to the oldest.

    `owned` ones were built by jobs of this key; their names begin with `mine:`. The others are the
    server's; those with `searchable` can be named in `POST /v1/search`.
    """

    name: str
    owned: bool
    searchable: bool
    versions: list[VersionSummary]
    problem: str | None = Field(None, description="why it can't be read, where it can't")


class DatasetList(Response):
    datasets: list[DatasetSummary]


class FunnelLoss(Response):
    kind: str
    rule: str
    count: int


class FunnelLevel(Response):
    """What one level of the build, files, clips or frames, found, kept, and lost to each rule."""

    unit: str
    found: int
    kept: int
    losses: list[FunnelLoss]
    beside: str


class RejectCount(Response):
    stage: str
    error: str
    count: int


class Histogram(Response):
    counts: list[int]
    edges: list[float]


class SettingInfo(Response):
    name: str
    value: JsonValue
    meaning: str


class VersionDetails(VersionSummary):
    """A version in full, apart from its clips. `settings` are those that are not at defaults."""

    dataset: str
    funnel: list[FunnelLevel]
    rejects: list[RejectCount]
    counts: dict[str, dict[str, int]] = Field(
        description="clips by label, language, codec, size and model"
    )
    histograms: dict[str, Histogram]
    settings: list[SettingInfo]


class ClipSummary(Response):
    id: str
    split: Split
    label: str | None
    source_path: str
    duration_s: float
    frames: int
    has_audio: bool
    caption: str | None
    transcript: str | None
    thumbnails: list[Thumbnail]


class ClipPage(Response):
    """Clips that fit, from `offset` on, in order of id. A published version never changes."""

    dataset: str
    version: str
    total: int
    offset: int
    clips: list[ClipSummary]


class ClipDetails(ClipSummary):
    """A clip with its whole record: times of its frames, scenes, segments and provenance."""

    record: dict[str, Any]


class ClipChange(Response):
    clip_id: str
    kind: str = Field(description="added, removed, or the field that changed")
    before: str | None
    after: str | None


class VersionComparison(Response):
    """What became of the clips of `before` in `after`; the examples are the first of each kind."""

    dataset: str
    before: VersionSummary
    after: VersionSummary
    same: int
    added: int
    removed: int
    changed: dict[str, int]
    examples: list[ClipChange]

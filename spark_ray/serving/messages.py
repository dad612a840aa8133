"""What the gateway and the deployments behind it tell each other."""

from typing import Literal, Self

from pydantic import Field, JsonValue

from spark_ray.core.schema import Clip, Record, Segment
from spark_ray.media.sniff import MediaKind

MOST_MEDIA = 16
"""Pictures and videos in one conversation."""


class MediaFile(Record):
    """A stored file to decode: where it is, what it seemed to be, and the hash of its bytes.

    `decoding` are settings of the model that asks, which go before those of the server.
    """

    location: str
    kind: MediaKind
    sha256: str
    decoding: dict[str, JsonValue] = Field(default_factory=dict)


class DatasetPlace(Record):
    """A dataset that a caller may look at: the name that requests give it, and where it is."""

    name: str
    reference: str
    owned: bool
    searchable: bool


class Decoded(Record):
    """A file as one clip, with the seconds that it took."""

    clip: Clip
    seconds: float


class ServedModel(Record):
    """Which model answered, and what it learned from: the way back to the clips."""

    name: str
    version: str | None = None
    weights_hash: str | None = None
    dataset: str | None = None
    dataset_version: str | None = None


class ModelFacts(Record):
    """What the gateway has to know of a model: who it is, and how its media are to be sampled."""

    served: ServedModel
    decoding: dict[str, JsonValue] = Field(default_factory=dict)


class Timing(Record):
    """Seconds that a request spent, by phase."""

    queue: float = 0.0
    preprocess: float = 0.0
    model: float = 0.0
    postprocess: float = 0.0

    @property
    def total(self) -> float:
        return self.queue + self.preprocess + self.model + self.postprocess

    def __add__(self, other: "Timing") -> "Timing":
        return Timing(
            **{name: getattr(self, name) + getattr(other, name) for name in Timing.model_fields}
        )


class Turn(Record):
    """What one side of a conversation says, and shows: texts and clips in their order."""

    role: Literal["system", "user", "assistant"]
    parts: list[str | Clip]


class Sampling(Record):
    """How an answer is chosen and where it ends; unset means as the model's own makers would."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    stop: list[str] = Field(default_factory=list)


class ModelAnswer(Record):
    """What a model answered, with who it is and how long that took."""

    model: ServedModel
    timing: Timing = Field(default_factory=Timing)

    def after(self, spent: Timing) -> Self:
        """The same, with time that others spent on it."""
        return self.model_copy(update={"timing": self.timing + spent})


class Written(ModelAnswer):
    """A text about a clip. `segments` are there where the model times them."""

    text: str
    all_captions: list[str] = Field(default_factory=list)
    segments: list[Segment] = Field(default_factory=list)
    language: str | None = None
    prompt_tokens: int | None = None
    tokens: int | None = None
    finish: Literal["stop", "length"] = "stop"


class Embedded(ModelAnswer):
    """Unit vectors, one for each text or clip; `tokens` are those of all texts."""

    vectors: list[list[float]]
    tokens: int = 0

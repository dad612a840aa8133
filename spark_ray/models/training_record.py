"""Where a trained model comes from: `training.json`, which travels in the model's own folder.

It is all that is needed to walk back from a served answer to the run, the dataset version and its
clips; the model card and the registry's tags are made from it.
"""

import math
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal, Self, get_args

from pydantic import BeforeValidator, Field, JsonValue, ValidationError

from spark_ray.core.errors import ModelError
from spark_ray.core.schema import Record

TRAINING_RECORD = "training.json"

Skill = Literal["caption", "transcript", "retrieval"]
SKILLS: tuple[Skill, ...] = get_args(Skill)


def _finite_or_none(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Measured = Annotated[float | None, BeforeValidator(_finite_or_none)]
"""A metric; None where it was not measured, or was no finite number, which JSON can't hold."""


class DatasetUse(Record):
    """The dataset version that a model learned from.

    `reference` is what the user wrote, `location` the version's folder. `clips` counts those of
    each split; `texts` those of the training split that have a caption, a transcript, or sound;
    `text_sources` says who wrote the captions and transcripts. `decoding` holds the settings by
    which its clips were sampled: the model should be shown others in the same way.
    """

    reference: str
    location: str
    version: str
    manifest_sha256: str
    clips: dict[str, int]
    texts: dict[str, int] = Field({})
    text_sources: dict[str, str] = Field({})
    decoding: dict[str, JsonValue] = Field({})

    @property
    def name(self) -> str:
        """What the dataset is called, wherever it lies."""
        place = PurePosixPath(self.location)
        return place.parent.name if place.name == self.version else place.name


class HeldOut(Record):
    """Metrics by skill, on clips that the model has not learned from."""

    split: str
    clips: int
    metrics: dict[Skill, dict[str, Measured]]


class TrainingRecord(Record):
    """One finished training run.

    `name` is what the model is called, in the registry and on its card. `curriculum` has one object
    a stage, and `config` every setting, both as they were written into the run. `training_metrics`
    are the last ones that the loop logged. `date` is ISO 8601, UTC; `license` an id of the Hugging
    Face hub's list, for which the data decides as much as the code.
    """

    name: str = "apotheon"
    date: str
    dataset: DatasetUse
    config: dict[str, JsonValue]
    curriculum: list[dict[str, JsonValue]]
    steps: int
    world_size: int
    training_metrics: dict[str, Measured] = Field({})
    held_out: HeldOut | None = None
    code_version: str
    git_commit: str | None
    environment: dict[str, str]
    run_id: str | None
    license: str = "unknown"

    def write(self, folder: Path) -> Path:
        """Put the record into a model's folder."""
        file = folder / TRAINING_RECORD
        file.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")
        return file

    @classmethod
    def read(cls, folder: Path) -> Self:
        """The record of the model in a folder.

        Raises:
            ModelError: there is none, or it is damaged.
        """
        file = folder / TRAINING_RECORD
        try:
            return cls.model_validate_json(file.read_bytes())
        except OSError as error:
            raise ModelError(
                f"{folder}: has no readable {TRAINING_RECORD}, so nobody knows what it learned "
                f"from ({error.strerror}); was it written by 'spark-ray train'?"
            ) from error
        except ValidationError as error:
            detail = error.errors(include_url=False)[0]
            place = ".".join(map(str, detail["loc"])) or "its text"
            raise ModelError(f"{file}: is damaged: {place}: {detail['msg']}") from error

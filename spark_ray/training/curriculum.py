"""The curriculum: stages of a run, each with what is seen, what learns, and how fast."""

from collections.abc import Collection
from typing import Literal, get_args

from pydantic import Field, field_validator

from spark_ray.core.anatomy import FREEZABLE, PARTS, Task
from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.schema import Record
from spark_ray.core.wording import counted

Modality = Literal["text", "image", "audio", "video"]
MODALITIES: tuple[Modality, ...] = get_args(Modality)


class Stage(Record):
    """Some epochs with the same inputs and the same trainable parts."""

    name: str = Field(description="what the logs call it")
    epochs: int = Field(ge=1, description="how many epochs it lasts")
    modalities: list[Modality] = Field(
        description="what is shown: text, image (one frame of a clip), audio, video (all frames)"
    )
    frozen: list[str] = Field([], description="what doesn't learn: " + ", ".join(FREEZABLE))
    batch_scale: int = Field(
        1, ge=1, description="times batch_size: a picture takes a fraction of a whole clip's time"
    )
    learning_rate_scale: float = Field(1.0, gt=0, description="times learning_rate")
    part_rates: dict[str, float] = Field(
        {}, description="for a part, a further factor of its learning rate"
    )
    mixture: dict[str, float] = Field(
        {}, description="for a label, how often its clips are drawn; 1 where none is given"
    )

    @property
    def shows_frames(self) -> bool:
        return bool({"image", "video"} & set(self.modalities))

    @property
    def shows_audio(self) -> bool:
        return "audio" in self.modalities

    def tasks(self, learned: Collection[Task]) -> tuple[Task, ...]:
        """Those of the `learned` tasks whose texts are about what it shows.

        A text about what is not there would only teach to make things up.
        """
        shown: dict[Task, bool] = {"caption": self.shows_frames, "transcript": self.shows_audio}
        return tuple(task for task in shown if shown[task] and task in learned)

    @field_validator("modalities")
    @classmethod
    def _has_media(cls, modalities: list[Modality]) -> list[Modality]:
        if len({"image", "video"} & set(modalities)) == 2:
            raise ValueError("image and video exclude each other; video has all frames")
        if not {"image", "video", "audio"} & set(modalities):
            raise ValueError("a stage needs image, video or audio; Apotheon describes media")
        return modalities

    @field_validator("frozen")
    @classmethod
    def _freezable(cls, parts: list[str]) -> list[str]:
        for part in parts:
            if part not in FREEZABLE:
                raise unknown_choice("part", part, FREEZABLE)
        return parts

    @field_validator("part_rates")
    @classmethod
    def _knows_parts(cls, rates: dict[str, float]) -> dict[str, float]:
        for part in rates:
            if part not in PARTS:
                raise unknown_choice("part", part, PARTS)
        return rates

    @field_validator("mixture", "part_rates")
    @classmethod
    def _is_positive(cls, factors: dict[str, float]) -> dict[str, float]:
        for name, factor in factors.items():
            if not 0 <= factor < 1e6:
                raise ValueError(f"the factor of {name!r} must be 0 or more, not {factor}")
        return factors


def default_curriculum(epochs: int, tasks: Collection[Task]) -> list[Stage]:
    """Text and a picture, then sound too, then whole clips: epochs 0-2, 2-5 and 5-10 of 10.

    Other numbers of epochs are divided in the same proportions; a stage without an epoch is left
    out, and the last one always stays. Without captions to learn, sound is there from the start.
    """
    first = round(0.2 * epochs) if "caption" in tasks else 0
    second = round(0.5 * epochs)
    if second >= epochs:
        first = second = epochs - 1
    lengths = (first, second - first, epochs - second)
    stages = (
        ("text and image", ["text", "image"]),
        ("audio", ["text", "image", "audio"]),
        ("video", ["text", "audio", "video"]),
    )
    return [
        Stage(name=name, epochs=length, modalities=modalities)
        for (name, modalities), length in zip(stages, lengths, strict=True)
        if length
    ]


def check_curriculum(stages: list[Stage], epochs: int, tasks: Collection[Task]) -> None:
    """
    Raises:
        ConfigError: the stages' epochs do not sum up to those of the run, or a stage shows nothing
            that any of the tasks is about.
    """
    for stage in stages:
        if not stage.tasks(tasks):
            raise ConfigError(
                f"curriculum: stage {stage.name!r} shows {', '.join(stage.modalities)}, but the "
                f"run learns {', '.join(tasks)} alone; captions need image or video, transcripts "
                "need audio"
            )
    total = sum(stage.epochs for stage in stages)
    if total != epochs:
        raise ConfigError(
            f"curriculum: its stages have {counted(total, 'epoch')} together, but epochs is "
            f"{epochs}; change one of the two"
        )

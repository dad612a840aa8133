"""The search space: which settings of a training run vary, and over what."""

import copy
import difflib
import itertools
import json
import math
import random
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import (
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.core.mistakes import sentences
from spark_ray.core.schema import Record
from spark_ray.training.config import TrainConfig
from spark_ray.training.curriculum import Stage

Scalar = None | bool | int | float | str

STUDY_OWNED = frozenset(
    {"output_dir", "tracking_uri", "experiment", "register_as", "ray_address", "dashboard"}
)
"""Settings of a run that the study decides."""

INHERITABLE = frozenset(
    {
        "learning_rate",
        "weight_decay",
        "beta1",
        "beta2",
        "max_grad_norm",
        "schedule",
        "warmup_ratio",
        "augment_mirror",
        "augment_shift",
        "augment_light",
    }
)
"""Settings that may change in the middle of a run: none shapes weights, order or steps."""

MAX_GRID = 10_000
_EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")
_MOST_CORNERS = 512
_INSIDE = 16
_EPSILON = 1e-9


class _Range(Record):
    """What ranges have in common."""

    type: str
    min: float = Field(allow_inf_nan=False)
    max: float = Field(allow_inf_nan=False)
    log: bool = Field(False, description="as likely between 1 and 10 as between 10 and 100")
    step: float | None = Field(None, gt=0, description="only min, min + step, min + 2 step, …")
    points: int | None = Field(None, ge=2, le=MAX_GRID, description="how many of them a grid tries")

    @model_validator(mode="after")
    def _is_range(self) -> Self:
        if not self.min < self.max:
            raise ValueError(f"min {self.min:g} must be less than max {self.max:g}")
        if self.log and self.min <= 0:
            raise ValueError(f"log needs a min over 0, not {self.min:g}")
        if self.step and (self.log or self.points):
            raise ValueError("step goes without log and points")
        if self.step and self.step > self.max - self.min:
            raise ValueError(f"step {self.step:g} is longer than the range")
        return self

    def ends(self) -> list[Scalar]:
        return [self.min, self.nearest(self.max)]

    def count(self) -> int | None:
        """How many values a step leaves; None where there is no step."""
        if self.step is None:
            return None
        return math.floor((self.max - self.min) / self.step + _EPSILON) + 1

    def nearest(self, value: float) -> Any:
        """What is in the range, and on one of its steps."""
        count = self.count()
        if self.step is None or count is None:
            return min(max(value, self.min), self.max)
        return self.min + min(max(round((value - self.min) / self.step), 0), count - 1) * self.step

    def shown(self) -> str:
        step = f" by {self.step:g}" if self.step else ""
        return f"{self.min:g} to {self.max:g}{step}{', logarithmic' if self.log else ''}"

    def _spaced(self, points: int) -> list[float]:
        spaced = np.geomspace if self.log else np.linspace
        return [float(value) for value in spaced(self.min, self.max, points)]


class FloatRange(_Range):
    """Any number from `min` to `max`."""

    type: Literal["float"]

    def grid(self) -> list[Scalar] | None:
        if self.points:
            return [*self._spaced(self.points)]
        if self.step:
            return [self.min + number * self.step for number in range(self.count() or 0)]
        return None

    def grid_size(self) -> int | None:
        return self.points or self.count()

    def draw(self, rng: random.Random) -> Scalar:
        if self.log:
            return math.exp(rng.uniform(math.log(self.min), math.log(self.max)))
        return self.clip(rng.uniform(self.min, self.max))

    def clip(self, value: float) -> float:
        return float(self.nearest(value))


class IntRange(_Range):
    """Any whole number from `min` to `max`, both included."""

    type: Literal["int"]
    min: int
    max: int
    step: int | None = Field(None, ge=1, description="only min, min + step, min + 2 step, …")

    def grid(self) -> list[Scalar]:
        if self.points:
            return [*sorted({round(value) for value in self._spaced(self.points)})]
        return list(range(self.min, self.max + 1, self.step or 1))

    def grid_size(self) -> int:
        if self.points:
            return len(self.grid())
        return self.count() or self.max - self.min + 1

    def draw(self, rng: random.Random) -> Scalar:
        if self.log:
            return round(math.exp(rng.uniform(math.log(self.min), math.log(self.max))))
        return self.clip(rng.randint(self.min, self.max))

    def clip(self, value: float) -> int:
        return round(self.nearest(value))


class Choice(Record):
    """One of the values, which may be lists or mappings."""

    type: Literal["choice"]
    values: list[JsonValue] = Field(min_length=1)

    @field_validator("values")
    @classmethod
    def _numbers(cls, values: list[JsonValue]) -> list[JsonValue]:
        """YAML takes 1e-4 for a text, for want of a point."""
        return [float(v) if isinstance(v, str) and _EXPONENT.fullmatch(v) else v for v in values]

    def ends(self) -> list[Scalar]:
        return list(self.labels())

    def shown(self) -> str:
        return ", ".join(map(str, self.ends()))

    def grid(self) -> list[Scalar]:
        return self.ends()

    def grid_size(self) -> int:
        return len(self.labels())

    def draw(self, rng: random.Random) -> Scalar:
        return rng.choice(self.ends())

    def labels(self) -> dict[Scalar, JsonValue]:
        """The values by what stands for them in a trial: themselves, or their JSON."""
        return {
            json.dumps(value) if isinstance(value, list | dict) else value: value
            for value in self.values
        }


Parameter = Annotated[FloatRange | IntRange | Choice, Field(discriminator="type")]
Params = dict[str, Scalar]


def parse_space(given: Mapping[str, Any]) -> dict[str, Parameter]:
    """
    Raises:
        ConfigError: a parameter is none; names it, and what is wrong with it.
    """
    adapter: TypeAdapter[Parameter] = TypeAdapter(Parameter)
    space: dict[str, Parameter] = {}
    for path, value in given.items():
        try:
            space[path] = adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(f"{path}: {sentences(error, Parameter, {})}") from error
    return space


def check_paths(space: Mapping[str, Parameter], base: Mapping[str, Any]) -> None:
    """
    Raises:
        ConfigError: a path names no setting of a run, or one that the study decides.
    """
    for path in space:
        name, *rest = path.split(".")
        if name in STUDY_OWNED:
            raise ConfigError(
                f"space: {name} belongs to the study, not to a trial; not to be varied: "
                + ", ".join(sorted(STUDY_OWNED))
            )
        if name not in TrainConfig.model_fields:
            close = difflib.get_close_matches(name, TrainConfig.model_fields, n=1)
            hint = f"did you mean {close[0]}?" if close else "see spark-ray train apotheon --help"
            raise ConfigError(f"space: a training run has no setting {name!r}; {hint}")
        if rest:
            _check_stage_path(path, base)


def _check_stage_path(path: str, base: Mapping[str, Any]) -> None:
    name, *rest = path.split(".")
    if name != "curriculum" or len(rest) < 2:
        raise ConfigError(
            f"space: {path!r} leads nowhere; below a setting there is only "
            "curriculum.STAGE.SETTING, such as curriculum.video.learning_rate_scale"
        )
    stages = [stage["name"] for stage in base["curriculum"]]
    if rest[0] not in stages:
        raise unknown_choice(f"space: stage of {path}", rest[0], stages)
    if rest[1] not in Stage.model_fields:
        raise unknown_choice(f"space: setting of {path}", rest[1], Stage.model_fields)


def needs_stages(space: Mapping[str, Parameter]) -> bool:
    return any(path.startswith("curriculum.") for path in space)


def settings_of(
    params: Mapping[str, Scalar], space: Mapping[str, Parameter], base: Mapping[str, Any]
) -> dict[str, Any]:
    """The settings of a trial: those of every trial, and its parameters laid over them."""
    settings: dict[str, Any] = copy.deepcopy(dict(base))
    for path, given in params.items():
        parameter = space[path]
        value = parameter.labels()[given] if isinstance(parameter, Choice) else given
        *way, last = path.split(".")
        place: Any = settings
        for step in way:
            if isinstance(place, list):
                place = next(stage for stage in place if stage["name"] == step)
            else:
                place = place.setdefault(step, {})
        place[last] = value
    return settings


def corners(space: Mapping[str, Parameter], seed: int = 0) -> Iterator[Params]:
    """Points at which a space is tried before anything is trained: its corners, and some inside.

    Where there are more than 512 corners, each end is taken at least once, the others drawn.
    """
    rng = random.Random(seed)  # noqa: S311 - no secret
    ends = {path: parameter.ends() for path, parameter in space.items()}
    if math.prod(len(values) for values in ends.values()) <= _MOST_CORNERS:
        for point in itertools.product(*ends.values()):
            yield dict(zip(ends, point, strict=True))
    else:
        for path, values in ends.items():
            for value in values:
                yield {name: rng.choice(others) for name, others in ends.items()} | {path: value}
        for _ in range(_MOST_CORNERS):
            yield {name: rng.choice(others) for name, others in ends.items()}
    for _ in range(_INSIDE):
        yield {path: parameter.draw(rng) for path, parameter in space.items()}


def grid_values(space: Mapping[str, Parameter]) -> dict[str, list[Scalar]]:
    """All values of each parameter, for a grid.

    Raises:
        ConfigError: a range has no end of values, or the grid would be too large.
    """
    for path, parameter in space.items():
        if parameter.grid_size() is None:
            raise ConfigError(
                f"space: a grid over {path} needs points (how many values), step, or a choice"
            )
    size = grid_size(space)
    if size > MAX_GRID:
        raise ConfigError(
            f"space: the grid has {size} points, and at most {MAX_GRID} are tried; leave "
            "parameters out, lower points, or search at random"
        )
    return {path: parameter.grid() or [] for path, parameter in space.items()}


def grid_size(space: Mapping[str, Parameter]) -> int:
    return math.prod(parameter.grid_size() or 0 for parameter in space.values())


def check_inheritable(space: Mapping[str, Parameter]) -> None:
    """
    Raises:
        ConfigError: a parameter can't change in the middle of a run.
    """
    for path in space:
        name, *rest = path.split(".")
        if name not in INHERITABLE and rest[1:] != ["learning_rate_scale"]:
            raise ConfigError(
                f"space: {path} can't change while a run goes on, as pbt would have it; it may "
                f"vary {', '.join(sorted(INHERITABLE))}, and a stage's learning_rate_scale"
            )


def explorer(space: Mapping[str, Parameter]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What keeps parameters in their ranges when population-based training multiplies them."""

    def explore(params: dict[str, Any]) -> dict[str, Any]:
        kept = dict(params)
        for path, parameter in space.items():
            if not isinstance(parameter, Choice):
                kept[path] = parameter.clip(params[path])
        return kept

    return explore

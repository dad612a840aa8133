"""A recorded recipe, explained: which settings were given, and what each means."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic_core import to_jsonable_python

from spark_ray.datasets.config import BuildConfig


@dataclass(frozen=True)
class Setting:
    """One setting of a finished build. `changed` says that it is not what it would be by itself."""

    name: str
    value: Any
    meaning: str
    changed: bool


def explain_settings(config: Mapping[str, Any]) -> list[Setting]:
    """The settings in `metadata.json`, those that were changed first.

    One that this version of SparkRay doesn't know, because it is of another, counts as changed.
    """
    settings = [_explain(name, value) for name, value in config.items()]
    return sorted(settings, key=lambda setting: not setting.changed)


def _explain(name: str, value: Any) -> Setting:
    field = BuildConfig.model_fields.get(name)
    if field is None:
        return Setting(name, value, "", changed=True)
    default = to_jsonable_python(field.get_default(call_default_factory=True), fallback=str)
    changed = field.is_required() or value != default
    return Setting(name, value, field.description or "", changed)

"""What the documentation takes from the code: commands, settings, metrics and alerts, as tables.

MkDocs calls `on_page_markdown`; `<!-- settings: module:Class -->` and its like become tables.
"""

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from spark_ray.cli import COMMANDS
from spark_ray.core.config import JobConfig, fields_by_owner
from spark_ray.monitoring.alerts import rules
from spark_ray.monitoring.metrics import declared

_DIRECTIVE = re.compile(r"^<!-- (settings|commands|metrics|alerts)(?:: (\S+))? -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    return _DIRECTIVE.sub(lambda match: _MAKERS[match[1]](match[2]), markdown)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", r"\|") for cell in row] for row in (heads, *rows)]
    lines = [escaped[0], ["---"] * len(heads), *escaped[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def commands(_: str | None) -> str:
    rows = [(f"`spark-ray {' '.join(command.words)}`", command.help) for command in COMMANDS]
    return table(("command", "what it does"), rows)


def settings(place: str | None) -> str:
    """A table for each class that declares settings, as `--help` groups them."""
    assert place is not None
    module, _, name = place.partition(":")
    cls: type[BaseModel] = getattr(import_module(module), name)
    flags = issubclass(cls, JobConfig)
    parts = []
    for owner, names in fields_by_owner(cls).items():
        title = (owner.__doc__ or owner.__name__).strip().split("\n")[0]
        rows = [_setting(cls, field, flags=flags) for field in names]
        parts.append(f"**{title}**\n\n{table(('setting', 'type', 'default', 'what'), rows)}")
    return "\n\n".join(parts)


def _setting(cls: type[BaseModel], name: str, *, flags: bool) -> tuple[str, str, str, str]:
    field = cls.model_fields[name]
    default = field.get_default(call_default_factory=True)
    if field.is_required() or default is PydanticUndefined:
        shown = "required"
    elif default is None or isinstance(default, BaseModel):
        shown = ""
    else:
        shown = f"`{'x'.join(map(str, default)) if isinstance(default, tuple) else default}`"
    called = f"`--{name.replace('_', '-')}`" if flags else f"`{name}`"
    return called, type_text(field.annotation), shown, field.description or ""


def type_text(annotation: Any) -> str:
    """A type as people write it: `text`, `list of text`, or the choices."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return type_text(arguments[0])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in arguments)
    if origin is list:
        return f"list of {type_text(arguments[0])}"
    if origin is dict:
        return f"{type_text(arguments[0])} to {type_text(arguments[1])}"
    if origin is tuple:
        return " × ".join(map(type_text, arguments))
    if arguments:  # a union
        return " or ".join(type_text(a) for a in arguments if a is not NoneType)
    words = {str: "text", int: "whole number", float: "number", bool: "yes or no", object: "any"}
    return words.get(annotation, annotation.__name__)


def metrics(_: str | None) -> str:
    rows = [
        (f"`{m.exported}`", m.kind, ", ".join(f"`{label}`" for label in m.labels), m.description)
        for m in declared()
    ]
    return table(("name in Prometheus", "kind", "labels", "what"), rows)


def alerts(_: str | None) -> str:
    rows = [
        (
            f"`{rule.alert}`",
            rule.labels["severity"],
            rule.lasting,
            f"`{rule.expr}`",
            rule.annotations.description,
        )
        for group in rules().groups
        for rule in group.rules
    ]
    return table(("alert", "severity", "after", "fires when", "what to do"), rows)


_MAKERS = {"settings": settings, "commands": commands, "metrics": metrics, "alerts": alerts}

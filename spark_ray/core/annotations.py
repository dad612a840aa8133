"""What the annotation of a setting says about its values."""

import inspect
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel


def members(annotation: Any) -> list[Any]:
    """The types that a value may have, None aside: what `Annotated`, `|` and `Optional` hold."""
    if get_origin(annotation) is Annotated:
        return members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        parts = (part for part in get_args(annotation) if part is not types.NoneType)
        return [member for part in parts for member in members(part)]
    return [annotation]


def plain_type(annotation: Any) -> Any:
    """The type behind `Annotated[...]` and `... | None`."""
    return members(annotation)[0]


def is_model(kind: Any) -> bool:
    return inspect.isclass(kind) and issubclass(kind, BaseModel)


def inner_type(annotation: Any) -> Any:
    """The type of a value, or of each of its items where it is a list."""
    kind = plain_type(annotation)
    return plain_type(get_args(kind)[0]) if get_origin(kind) is list else kind


def has_parts(annotation: Any) -> bool:
    """Whether a value has settings of its own, which no flag can give."""
    kind = inner_type(annotation)
    return get_origin(kind) is dict or is_model(kind)

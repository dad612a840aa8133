"""What is inside of a setting, for the tests that go through all of them."""

import inspect
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel


def nested(annotation: Any) -> Iterator[type[BaseModel]]:
    """The models in an annotation, at any depth."""
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
        for field in annotation.model_fields.values():
            yield from nested(field.annotation)
    for part in get_args(annotation):
        yield from nested(part)

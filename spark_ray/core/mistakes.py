"""What pydantic finds wrong with settings, told in the words and places of the user's file."""

import difflib
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from pydantic import AfterValidator, ValidationError
from pydantic_core import ErrorDetails

from spark_ray.core.annotations import has_parts, is_model, members, plain_type

# Of more, people find theirs sooner in --help.
_MOST_LISTED = 24


def written_as(pattern: str, words: str) -> AfterValidator:
    """For `Annotated[str, ...]`: a text that fits the whole pattern, which `words` describe.

    pydantic's own `pattern` answers a wrong text with the pattern itself.
    """
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(f"must be {words}, not {text!r}")
        return text

    return AfterValidator(check)


def sentences(error: ValidationError, kind: Any, origins: Mapping[str, str]) -> str:
    """All mistakes that were found in a value of the type `kind`.

    Args:
        origins: what to call the outermost settings where their name is not enough.
    """
    return "; ".join(_sentence(detail, kind, origins) for detail in error.errors())


def unknown_setting(name: object, known: Collection[str]) -> str:
    close = difflib.get_close_matches(str(name).replace("-", "_"), known, n=1)
    if close:
        hint = f"did you mean {close[0]!r}?"
    elif len(known) <= _MOST_LISTED:
        hint = f"choose one of: {', '.join(known)}"
    else:
        hint = "see --help for the known ones"
    return f"unknown setting {name!r}; {hint}"


def _sentence(detail: ErrorDetails, kind: Any, origins: Mapping[str, str]) -> str:
    message = detail["msg"].removeprefix("Value error, ").removeprefix("Input ")
    message = message.replace("a valid boolean, unable to interpret input", "true or false")
    loc, problem = detail["loc"], detail["type"]
    if loc:
        message = message.removeprefix(f"{loc[-1]}: ")  # as those say who don't know their place
    if problem == "extra_forbidden":
        place, owner = _follow(loc[:-1], kind, origins)
        return ": ".join([*place, unknown_setting(loc[-1], owner.model_fields)])
    place, wanted = _follow(loc, kind, origins)
    if problem == "union_tag_not_found":
        return ".".join([*place, "type is required"])
    if problem == "missing":
        return f"{place[0]} is required" + ("" if len(loc) > 1 else _how_to_give(loc[0], wanted))
    if problem in ("model_type", "model_attributes_type", "dict_type"):
        message = "must hold settings as 'name: value' lines"
    given = "" if problem == "value_error" else f", not {detail['input']!r}"
    return ": ".join([*place, message + given])


def _how_to_give(name: int | str, annotation: Any) -> str:
    if has_parts(annotation):
        return ": set it in the YAML file"
    return f": give --{str(name).replace('_', '-')} or set it in the YAML file"


def _follow(
    loc: Sequence[int | str], annotation: Any, origins: Mapping[str, str]
) -> tuple[list[str], Any]:
    """Go where an error is: the place as the file has it, if any, and what is expected there.

    pydantic's way there also names the member of a union that it tried, and says `[key]` where it
    means the name of an entry.
    """
    place = ""
    for part in loc:
        kinds = members(annotation)
        kind = plain_type(annotation)
        if len(kinds) > 1:
            annotation = next((each for each in kinds if part in _tags(each)), Any)
            continue
        if part == "[key]":
            continue
        if isinstance(part, int):
            place += f"[{part}]"
        elif place:
            place += f".{part}"
        else:
            place = origins.get(part, part)
        if is_model(kind) and part in kind.model_fields:
            annotation = kind.model_fields[str(part)].annotation
        elif arguments := get_args(kind):
            annotation = arguments[-1 if get_origin(kind) is dict else 0]
        else:
            annotation = Any
    return [place] if place else [], plain_type(annotation)


def _tags(kind: Any) -> set[Any]:
    """What pydantic may call a member of a union: by its name, or by the value that tells it."""
    if not is_model(kind):
        return {getattr(kind, "__name__", str(kind))}
    fields = (plain_type(field.annotation) for field in kind.model_fields.values())
    return {kind.__name__, *(v for f in fields if get_origin(f) is Literal for v in get_args(f))}

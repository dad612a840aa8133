"""Typed configuration: one class describes a job, and is its YAML, its flags and its docs.

Values come from, in falling priority: flags, environment (`SPARK_RAY_FPS=2`), the YAML file given
with `--config`, defaults. Every mistake ends in one sentence that names the setting.

pydantic-settings would do this too, but it splits list flags at commas and reads values that look
like JSON: a file called `a,b.mp4` could not be given. Here argparse hands strings to pydantic.
"""

import argparse
import difflib
import inspect
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NoReturn, Self, get_args, get_origin

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from spark_ray.core.annotations import has_parts, inner_type, is_model, plain_type
from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.core.mistakes import sentences, unknown_setting
from spark_ray.core.storage import read_bytes
from spark_ray.core.yaml_text import read_yaml

ENV_PREFIX = "SPARK_RAY_"

_MAX_FILE_BYTES = 4 << 20

# As in PATH, but `s3://bucket` stays whole.
_LIST_SEPARATOR = re.compile(re.escape(os.pathsep) + r"(?!//)")


def _as_ray_has_them(gpus: float) -> float:
    if gpus > 1 and gpus % 1:
        raise ValueError(f"{gpus:g} GPUs can't be had: give a part of one, or a whole number")
    return gpus


Gpus = Annotated[float, Field(ge=0), AfterValidator(_as_ray_has_them)]
"""GPUs of one process: Ray shares one among several, and else gives whole ones."""


class JobConfig(BaseModel):
    """Base of every job's configuration. Fields become flags, environment names and YAML keys."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)

    @classmethod
    def from_command_line(cls, arguments: Sequence[str], program: str) -> Self:
        """Read flags, environment and the YAML file of `--config`.

        Raises:
            ConfigError: a flag is unknown, or a value is missing or wrong; all mistakes are named.
            SystemExit: `--help` was asked for.
        """
        flags = vars(_parser(cls, program).parse_args(arguments))
        file = flags.pop("config", None)
        values: dict[str, Any] = {}
        origins: dict[str, str] = {}
        for origin, found in (
            (f"in {file}, {{name}}", _read_yaml(file, cls) if file else {}),
            (ENV_PREFIX + "{NAME}", _read_environment(cls)),
            ("{name}", flags),
        ):
            values |= found
            origins |= {n: origin.format(name=n, NAME=n.upper()) for n in found}
        return cls._validated(values, origins)

    @classmethod
    def from_values(cls, **values: Any) -> Self:
        """From Python, without looking at flags or the environment.

        Raises:
            ConfigError: as `from_command_line`.
        """
        return cls._validated(values, {})

    @classmethod
    def _validated(cls, values: dict[str, Any], origins: Mapping[str, str]) -> Self:
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(sentences(error, cls, origins)) from error

    def as_yaml(self) -> str:
        """The whole configuration as a file that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


class ArgumentParser(argparse.ArgumentParser):
    """argparse whose mistakes are our errors, with the known flag nearest to an unknown one."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}{self._suggestion(message)}; see {self.prog} --help")

    def _suggestion(self, message: str) -> str:
        flags = [re.split("[=:]", w)[0] for w in message.split() if w.startswith("--")]
        known = self._option_string_actions
        close = difflib.get_close_matches(flags[0], known, 1) if flags else []
        return f"; did you mean {close[0]}?" if close and flags[0] not in known else ""


def _parser(cls: type[JobConfig], program: str) -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog=program,
        description=(cls.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"{program} [--config FILE] [settings]",
        epilog=f"Settings also come from the environment ({ENV_PREFIX}FPS=2) and the YAML file "
        "of --config (fps: 2). Flags go before the environment, that before the file.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file, local or s3://, with any of these settings"
    )
    for owner, fields in fields_by_owner(cls).items():
        title = (owner.__doc__ or owner.__name__).strip().split("\n")[0].rstrip(".")
        known = {name: cls.model_fields[name] for name in fields}
        nested = {name: field for name, field in known.items() if has_parts(field.annotation)}
        group = parser.add_argument_group(title, _in_file_only(nested))
        for name in fields:
            if name not in nested:
                add_flag(group, name, known[name])
    return parser


def _in_file_only(fields: Mapping[str, FieldInfo]) -> str | None:
    lines = [f"{name}: {_with_parts(field)}".rstrip(": ") for name, field in fields.items()]
    wrapped = [textwrap.fill(line, 76, subsequent_indent="  ") for line in lines]
    return "\n".join(["only the file of --config can give", *wrapped]) if lines else None


def _with_parts(field: FieldInfo) -> str:
    """What a setting is, and the names of the settings in it, or in each of its items."""
    kind = inner_type(field.annotation)
    each = "each with" if get_origin(plain_type(field.annotation)) is list else "with"
    parts = f"{each} {', '.join(kind.model_fields)}" if is_model(kind) else ""
    return "; ".join(filter(None, [field.description, parts]))


def fields_by_owner(cls: type[BaseModel]) -> dict[type, list[str]]:
    """Fields under the class that declares them, so that `--help` is grouped by room."""
    groups: dict[type, list[str]] = {}
    for owner in cls.__mro__:
        for name in inspect.get_annotations(owner):
            if name in cls.model_fields and not any(name in names for names in groups.values()):
                groups.setdefault(owner, []).append(name)
    return groups


def add_flag(group: Any, name: str, field: FieldInfo) -> None:
    """Give a parser, or a group of one, the flag of a field."""
    flag = "--" + name.replace("_", "-")
    text = (field.description or "") + _default_text(field)
    kind = plain_type(field.annotation)
    if kind is bool:
        group.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
    elif get_origin(kind) is list:
        group.add_argument(flag, nargs="+", metavar="VALUE", help=text)
    elif get_origin(kind) is Literal:
        # Wrong choices are left to pydantic, which says the same for flags, YAML and environment.
        group.add_argument(flag, metavar="{" + ",".join(map(str, get_args(kind))) + "}", help=text)
    else:
        group.add_argument(flag, metavar=name.rpartition("_")[2].upper(), help=text)


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return " (required)"
    default = field.get_default(call_default_factory=True)
    if default in (None, PydanticUndefined, []):
        return ""
    shown = "x".join(map(str, default)) if isinstance(default, tuple) else default
    return f" (default: {str(shown).replace('%', '%%')})"


def _read_environment(cls: type[JobConfig]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in cls.model_fields.items():
        text = os.environ.get(ENV_PREFIX + name.upper())
        if text is not None:
            is_list = get_origin(plain_type(field.annotation)) is list
            values[name] = _LIST_SEPARATOR.split(text) if is_list else text
    _warn_of_misspelt_names(cls)
    return values


def _warn_of_misspelt_names(cls: type[JobConfig]) -> None:
    """Other jobs have other settings, so a name that is none of this one's may be right."""
    known = [ENV_PREFIX + name.upper() for name in cls.model_fields]
    ours = {name for name in os.environ if name.startswith(ENV_PREFIX)}
    for name in sorted(ours - {*known, ENV_PREFIX + "LOG_LEVEL"}):
        if close := difflib.get_close_matches(name, known, 1, cutoff=0.9):
            print(
                f"warning: {name} in the environment is no setting; did you mean {close[0]}?",
                file=sys.stderr,
            )


def _read_yaml(file: str, cls: type[JobConfig]) -> dict[str, Any]:
    try:
        data = read_bytes(file, _MAX_FILE_BYTES)
    except StorageError as error:
        raise ConfigError(f"--config {error}") from error
    values = read_yaml(data, f"--config {file}")
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: must hold settings as 'name: value' lines")
    for name in values:
        if name not in cls.model_fields:
            raise ConfigError(f"--config {file}: {unknown_setting(name, cls.model_fields)}")
    return values


def exit_with(error: Exception, status: int) -> int:
    """Print one sentence to the user and hand back the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return status

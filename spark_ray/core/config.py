"""Typed configuration: one class describes a job, and is its YAML, its flags and its docs.

Values come from, in falling priority: flags, environment (`SPARK_RAY_FPS=2`), the YAML file given
with `--config`, defaults. Every mistake ends in one sentence that names the setting.
"""

import argparse
import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from spark_ray.core.errors import ConfigError

_ENV_PREFIX = "SPARK_RAY_"


class JobConfig(BaseSettings):
    """Base of every job's configuration. Fields become flags, environment names and YAML keys."""

    model_config = SettingsConfigDict(
        extra="forbid",
        env_prefix=_ENV_PREFIX,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_enforce_required=False,
        cli_exit_on_error=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @classmethod
    def from_command_line(cls, arguments: Sequence[str], program: str) -> Self:
        """Read flags, environment and the YAML file of `--config`.

        Raises:
            ConfigError: a value is missing, unknown or wrong; every mistake is named.
            SystemExit: `--help` was asked for, or a flag is unknown (status 2).
        """
        arguments, file = _split_config_flag(list(arguments), program)
        values = _read_yaml(file, cls) if file else {}
        flags = CliSettingsSource[Any](
            cls,
            cli_prog_name=program,
            cli_parse_args=arguments,
            root_parser=_parser(program, cls),
        )
        try:
            return cls(_cli_settings_source=flags, **{_FILE_VALUES: values})
        except ValidationError as error:
            raise ConfigError(_explain(error)) from error
        except SettingsError as error:
            raise ConfigError(str(error)) from error

    @classmethod
    def from_values(cls, **values: Any) -> Self:
        """From Python, without looking at the environment.

        Raises:
            ConfigError: as `from_command_line`.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise ConfigError(_explain(error)) from error

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        values = init_settings()
        if _FILE_VALUES not in values:
            return (init_settings,)
        return (env_settings, _FileValues(settings_cls, values[_FILE_VALUES]))

    def as_yaml(self) -> str:
        """The whole configuration as a file that `--config` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


_FILE_VALUES = "__file_values__"


class _FileValues(PydanticBaseSettingsSource):
    """The parsed YAML file, last in priority before the defaults."""

    def __init__(self, settings_cls: type[BaseSettings], values: dict[str, Any]) -> None:
        super().__init__(settings_cls)
        self._values = values

    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        return self._values.get(field_name), field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._values


def _parser(program: str, cls: type[JobConfig]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program,
        description=(cls.__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of these settings")
    return parser


def _split_config_flag(arguments: list[str], program: str) -> tuple[list[str], Path | None]:
    early = argparse.ArgumentParser(prog=program, add_help=False, allow_abbrev=False)
    early.add_argument("--config", type=Path)
    known, rest = early.parse_known_args(arguments)
    return rest, known.config


def _read_yaml(file: Path, cls: type[JobConfig]) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise ConfigError(f"--config {file}: can't be read: {reason}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"--config {file}: is not valid YAML: {_one_line(error)}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"--config {file}: must hold settings as 'name: value' lines")
    for name in values:
        if name not in cls.model_fields:
            raise ConfigError(f"--config {file}: unknown setting {name!r}{_suggest(name, cls)}")
    return values


def _suggest(name: object, cls: type[JobConfig]) -> str:
    close = difflib.get_close_matches(str(name).replace("-", "_"), cls.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see --help for the known ones"


def _explain(error: ValidationError) -> str:
    return "; ".join(_explain_one(detail) for detail in error.errors())


def _explain_one(detail: ErrorDetails) -> str:
    path = [str(part) for part in detail["loc"] if not isinstance(part, int)]
    name = ".".join(path) or "configuration"
    if detail["type"] == "missing":
        return f"{name}: is required; give --{name.replace('_', '-')} or set it in the YAML file"
    message = detail["msg"].removeprefix("Value error, ")
    if detail["type"] == "value_error" and not path:
        return message
    return f"{name}: {message[0].lower()}{message[1:]}, not {detail['input']!r}"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def exit_with(error: Exception, status: int) -> int:
    """Print one sentence to the user and hand back the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return status

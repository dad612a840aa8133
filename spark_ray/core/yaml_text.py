"""YAML that people wrote: what stands there twice is a mistake, not a matter of the last line."""

from typing import Any

import yaml

from spark_ray.core.errors import ConfigError


def read_yaml(data: bytes | str, source: str) -> Any:
    """The one document in a text.

    Args:
        source: what to call the text in errors.

    Raises:
        ConfigError: it is no UTF-8 or no YAML, or gives a key of a mapping twice.
    """
    try:
        text = data.decode() if isinstance(data, bytes) else data
        return yaml.load(text, _Loader)  # noqa: S506 - a safe loader
    except _Doubled as error:
        raise ConfigError(f"{source}: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{source}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"{source}: is not valid YAML: {reason}") from error


class _Doubled(yaml.YAMLError):
    """A key is given twice in one mapping."""


class _Loader(yaml.SafeLoader):
    """Looks at mappings as they are written, before `<<` adds what may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            name, line = (key.tag, key.value), key.start_mark.line + 1
            if name in lines:
                raise _Doubled(
                    f"{key.value!r} is given twice, in line {lines[name]} and in line {line}; "
                    "leave one out"
                )
            lines[name] = line
        return node

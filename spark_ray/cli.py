"""The command line: `spark-ray data build`, `spark-ray demo`, …"""

import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from spark_ray import __version__
from spark_ray.core.config import exit_with
from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.logging import configure_logging

_COMMANDS = {
    ("data", "build"): ("spark_ray.datasets.commands:build", "video in, published dataset out"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run(words)


def run(words):
    target=_COMMANDS[tuple(words[:2])][0]
    module,_,name=target.partition(":")
    return getattr(import_module(module),name)(words[2:])
if __name__ == "__main__":
    raise SystemExit(main())

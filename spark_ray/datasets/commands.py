"""What stands behind `spark-ray data …`."""

import sys
import time
from collections.abc import Sequence

from spark_ray.core.config import exit_with
from spark_ray.core.errors import ConfigError, DatasetError, SparkRayError
from spark_ray.datasets.config import BuildConfig


def build(arguments: Sequence[str]) -> int:
    """`spark-ray data build`: see `BuildConfig`."""
    from spark_ray.datasets.build import build_dataset

    started = time.monotonic()
    config = BuildConfig.from_command_line(arguments, "spark-ray data build")
    result = build_dataset(config)
    print(result)
    return 0

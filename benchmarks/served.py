"""Our application, brought up for a benchmark in this process's own Ray."""

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray
from ray import serve

from benchmarks.harness import ROOT
from spark_ray.serving.app import build
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.proxy import PROXY_ENVIRONMENT
from spark_ray.serving.settings import ServeSettings


@contextlib.contextmanager
def served(
    folder: Path, port: int, *, max_concurrent: int = 1000, dashboard: bool = False, **settings: Any
) -> Iterator[str]:
    """The application with these settings at that port; the secret of a key that may do much.

    Jobs need Ray's dashboard.
    """
    settings = {"state": str(folder / "state"), **settings}
    database = Database(ServeSettings.from_values(**settings).located().database)
    limits: dict[str, Any] = {"requests_per_minute": 10_000_000, "lifetime_s": None}
    _, secret = KeyStore(database).create(
        "benchmark", ["infer", "jobs"], max_concurrent=max_concurrent, **limits
    )
    os.environ.update(PROXY_ENVIRONMENT)
    # More CPUs than there are: each part of the server takes its share of them by itself.
    ray.init(
        "local", num_cpus=4, log_to_driver=False, logging_level=logging.ERROR,
        include_dashboard=dashboard,
    )  # fmt: skip
    logging.getLogger("httpx2").setLevel(logging.WARNING)  # Serve would log every request of ours
    try:
        quiet = {"enable_access_log": False, "log_level": "ERROR"}
        serve.start(http_options={"host": "127.0.0.1", "port": port}, logging_config=quiet)
        serve.run(build(settings), name="spark-ray", route_prefix="/")
        yield secret
    finally:
        serve.shutdown()
        ray.shutdown()


def untrained_apotheon(folder: Path) -> Path:
    """An untrained `apotheon-tiny`: what it says means nothing and costs as much."""
    sys.path.append(str(ROOT / "tests"))
    import apotheons

    apotheons.model().save_pretrained(folder)
    apotheons.processor().save_pretrained(folder)
    return folder

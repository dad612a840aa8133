"""Our application, brought up for a benchmark in this process's own Ray."""

import contextlib
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import torch
from ray import serve

from spark_ray.apotheon import ApotheonConfig, ApotheonModel
from spark_ray.apotheon.sizes import processor_for, tiny
from spark_ray.apotheon.tokenization import train_tokenizer
from spark_ray.serving.app import build
from spark_ray.serving.database import Database
from spark_ray.serving.keys import KeyStore
from spark_ray.serving.settings import ServeSettings

_TEXTS = ("a red circle moves left", "a blue square grows", "the train to london leaves at six")


@contextlib.contextmanager
def served(
    folder: Path, port: int, *, max_concurrent: int = 1000, **settings: Any
) -> Iterator[str]:
    """The application with these settings at that port; the secret of a key that may do much."""
    settings = {"state": str(folder / "state"), **settings}
    database = Database(ServeSettings.from_values(**settings).located().database)
    limits: dict[str, Any] = {"requests_per_minute": 10_000_000, "lifetime_s": None}
    _, secret = KeyStore(database).create(
        "benchmark", ["infer", "jobs"], max_concurrent=max_concurrent, **limits
    )
    # More CPUs than there are: each part of the server takes its share of them by itself.
    ray.init(
        "local", num_cpus=4, log_to_driver=False, logging_level=logging.ERROR,
        include_dashboard=False,
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


def untrained_apotheon(folder: Path, size: Callable[[Any], ApotheonConfig] = tiny) -> Path:
    """An untrained Apotheon: what it says means nothing and costs as much."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(_TEXTS, 400)
    config = size(tokenizer)
    ApotheonModel(config).save_pretrained(folder)
    processor_for(config, tokenizer, max_frames=6).save_pretrained(folder)
    return folder

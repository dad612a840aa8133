"""A job's connection to Ray: the caller's, a cluster's, or a local one that ends with the job."""

import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from typing import Protocol

import ray
from ray.data import DataContext

from spark_ray.core.errors import ConfigError
from spark_ray.core.interrupts import interrupts_held

_CONNECT_TIMEOUT_S = 10.0
_STARTED_HERE = Path(os.environ.get("RAY_TMPDIR") or gettempdir(), "ray", "ray_current_cluster")
"""The cluster of `ray start`, which `ray.init` joins where no address is given; see its docs."""


class HasCluster(Protocol):
    """Settings that say which cluster is meant."""

    ray_address: str | None
    dashboard: bool


def starts_ray(config: HasCluster) -> bool:
    """Whether `ray_session` will start a cluster of this machine alone, and join none."""
    address = config.ray_address or os.environ.get("RAY_ADDRESS")
    joins = address not in (None, "", "local") or ray.is_initialized()
    return not joins and not _STARTED_HERE.exists()


@contextmanager
def ray_session(config: HasCluster) -> Iterator[None]:
    """Be connected to Ray while the block runs.

    Raises:
        ConfigError: nobody answers at the address that was given.
    """
    ours = not ray.is_initialized()
    if ours:
        _check_answers(config.ray_address or os.environ.get("RAY_ADDRESS"))
        with interrupts_held():
            client = ray.init(
                address=config.ray_address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if config.dashboard else False,
            )
        if config.dashboard:
            print(f"  dashboard    http://{client.dashboard_url}", file=sys.stderr)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    try:
        yield
    finally:
        if ours:
            ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Ray itself would try for a quarter of an hour, and hear no Ctrl-C meanwhile.

    Raises:
        ConfigError: nobody listens there.
    """
    host, separator, port = (address or "").rpartition(":")
    if not separator or not port.isdigit() or "://" in host:
        return  # `auto`, `local`, or another protocol
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"ray_address: no Ray cluster answers at {address} ({error.strerror or error}); check "
            "it, or leave it and RAY_ADDRESS out for a local cluster"
        ) from error

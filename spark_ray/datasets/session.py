"""A job's connection to Ray: the caller's, a cluster's, or a local one that ends with the job."""

import logging
import os
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import gettempdir
from typing import Any, Protocol

import ray
from ray.data import DataContext
from ray.data._internal.execution.resource_manager import ResourceManager
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.interrupts import hear_sigterm, interrupts_held
from spark_ray.core.logging import get_logger

log = get_logger(__name__)

_CONNECT_TIMEOUT_S = 10.0
_LIMITS_INTERVAL_S = 0.3
_DATA_ENDS_S = 30.0
_STARTED_HERE = Path(os.environ.get("RAY_TMPDIR") or gettempdir(), "ray", "ray_current_cluster")
"""The cluster of `ray start`, which `ray.init` joins where no address is given; see its docs."""


class HasCluster(Protocol):
    """Settings that say which cluster is meant."""

    ray_address: str | None
    dashboard: bool


def starts_ray(config: HasCluster) -> bool:
    """Whether `ray_session` will start a cluster of this machine alone, and join none."""
    joins = _address(config) not in (None, "local") or ray.is_initialized()
    return not joins and not _STARTED_HERE.exists()


@contextmanager
def ray_session(config: HasCluster) -> Iterator[None]:
    """Be connected to Ray while the block runs.

    Raises:
        ConfigError: no Ray that takes our token answers at the address that was given.
        SparkRayError: no local Ray came up.
    """
    ours = not ray.is_initialized()
    if ours:
        address = _address(config)
        _check_answers(address)
        with interrupts_held(), _connection_errors(address), _private_token():
            connect = partial(
                ray.init,
                address=config.ray_address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                include_dashboard=None if config.dashboard else False,
            )
            client = _start_or_join(connect, address)
        hear_sigterm()
        if config.dashboard:
            print(f"  dashboard    http://{client.dashboard_url}", file=sys.stderr)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Before it first hears what the cluster has, Ray Data keeps to one task, and it asks anew only
    # after this time, which is a second: all other CPUs would wait for so long. No setting of it.
    ResourceManager.GLOBAL_LIMITS_UPDATE_INTERVAL_S = _LIMITS_INTERVAL_S  # type: ignore[assignment]
    try:
        yield
    finally:
        if ours:
            _await_ray_data()
            ray.shutdown()


def _await_ray_data() -> None:
    """Until no thread of Ray Data works any more, within bounds.

    It waits two seconds for its scheduler, which may need more on a busy machine, and which then
    would reach into the Ray that is gone: the process would end with a segmentation fault.
    """
    for thread in threading.enumerate():
        if isinstance(thread, StreamingExecutor) and thread._shutdown:
            thread.join(_DATA_ENDS_S)


def _start_or_join(connect: Callable[[], Any], address: str | None) -> Any:
    """Connected. A busy machine may be too slow for the 30 s that Ray allows its own processes."""
    try:
        return connect()
    except Exception as error:
        if address not in (None, "local"):
            raise
        log.warning("no local Ray came up; one more try", reason=_first_sentence(error))
        ray.shutdown()
        return connect()


def _address(config: HasCluster) -> str | None:
    return config.ray_address or os.environ.get("RAY_ADDRESS") or None


@contextmanager
def _private_token() -> Iterator[None]:
    """A local Ray makes a token where there is none, which all users of the machine could read."""
    file = Path.home() / ".ray" / "auth_token"
    made_here = not file.exists()
    yield
    if made_here and file.exists():
        file.chmod(0o600)


def token_advice() -> str:
    """What to do where a cluster did not take Ray's token, as a clause about it."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token":
        return (
            "wants Ray's token, which is sent only with RAY_AUTH_MODE=token in the environment; "
            "set that, and the token as RAY_AUTH_TOKEN or in ~/.ray/auth_token"
        )
    return (
        "refuses this token; set the cluster's as RAY_AUTH_TOKEN, or put it into ~/.ray/auth_token"
    )


@contextmanager
def _connection_errors(address: str | None) -> Iterator[None]:
    """What Ray raises where it can't connect or start, as a sentence."""
    try:
        yield
    except Exception as error:
        if address in (None, "local"):
            raise SparkRayError(
                f"no local Ray came up ({_first_sentence(error)}); on a busy machine try again, or "
                "start one with 'ray start --head' and give --ray-address auto"
            ) from error
        if isinstance(error, ConnectionError) and ":" in address and "://" not in address:
            raise ConfigError(
                f"ray_address: {address} answers, but lets this job into no Ray cluster; perhaps "
                f"it {token_advice()}"
            ) from error
        raise ConfigError(
            f"ray_address: {address} leads to no Ray cluster ({_first_sentence(error)}); give "
            "host:port (6379 unless told otherwise), 'auto' for one on this machine, or leave it "
            "and RAY_ADDRESS out for a local one"
        ) from error


def _first_sentence(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].partition(". ")[0].rstrip(".")


def knock(address: str) -> bool:
    """Whether it is host:port, where then somebody listens; or `auto`, or of another protocol.

    Raises:
        OSError: nobody listens there.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit() or "://" in host:
        return False
    socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S).close()
    return True


def _check_answers(address: str | None) -> None:
    """Ray itself would try for a quarter of an hour, and hear no Ctrl-C meanwhile.

    Raises:
        ConfigError: nobody listens there, or it is a dashboard's.
    """
    if (address or "").startswith(("http://", "https://")):
        raise ConfigError(
            f"ray_address: {address} is the address of a dashboard, to which 'spark-ray submit' "
            "sends jobs; to drive a cluster from here give host:port, or 'auto'"
        )
    try:
        knock(address or "")
    except OSError as error:
        raise ConfigError(
            f"ray_address: no Ray cluster answers at {address} ({error.strerror or error}); check "
            "it, or leave it and RAY_ADDRESS out for a local cluster"
        ) from error

"""Ray's Jobs API, whose mistakes are ours to explain."""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import requests
from ray.exceptions import AuthenticationError, RpcError
from ray.job_submission import JobDetails, JobSubmissionClient

from spark_ray.cluster.config import ADDRESS_VARIABLES, ClusterPlace
from spark_ray.core.errors import ClusterError, ConfigError
from spark_ray.core.storage import is_there
from spark_ray.datasets.session import knock, token_advice

_PROBE_S = 5.0


def connect(place: ClusterPlace) -> JobSubmissionClient:
    """A client of the cluster's Jobs API.

    Raises:
        ClusterError: nothing answers there, or it refuses the token.
        ConfigError: no cluster is named, or `ca_file` does not exist.
    """
    address = place.resolved()
    if place.ca_file is not None and not is_there(Path(place.ca_file)):
        raise ConfigError(f"ca_file: {place.ca_file} does not exist")
    logging.getLogger("ray.dashboard.modules").setLevel(logging.WARNING)
    with cluster_errors(address):
        address = _with_scheme(address)
    with cluster_errors(address), only_address(address):
        return JobSubmissionClient(address, verify=place.ca_file or True)


def _with_scheme(address: str) -> str:
    """With http:// before it, where that was left out.

    To Ray such an address is that of its GCS (port 6379), which it would wait for without a word.

    Raises:
        ConnectionError: nobody listens there.
    """
    try:
        if not knock(address):
            return address
    except OSError as error:
        raise ConnectionError(str(error)) from error
    with suppress(requests.exceptions.RequestException):
        requests.get(f"http://{address}/api/version", timeout=_PROBE_S)
        return f"http://{address}"
    return address


def find_job(client: JobSubmissionClient, job_id: str) -> JobDetails:
    """
    Raises:
        ClusterError: the cluster knows no such job.
    """
    with cluster_errors(client.get_address()):
        jobs = client.list_jobs()
    for job in jobs:
        if job_id in (job.submission_id, job.job_id):
            return job
    known = ", ".join(sorted(job.submission_id for job in jobs if job.submission_id)[-5:])
    raise ClusterError(
        f"{job_id}: {client.get_address()} knows no such job; "
        + (f"it knows {known}" if known else "it knows none")
    )


def ray_version(client: JobSubmissionClient) -> str:
    """The version of the cluster's Ray, which the client asked for when it connected."""
    version = client._server_ray_version
    assert version is not None
    return version


@contextmanager
def cluster_errors(address: str) -> Iterator[None]:
    """Turn what Ray's client raises into one sentence that names the cluster."""
    try:
        yield
    except AuthenticationError as error:
        raise ClusterError(f"{address}: {token_advice()}") from error
    except requests.exceptions.SSLError as error:
        raise ClusterError(
            f"{address}: its certificate is not trusted here; give the authority's as --ca-file"
        ) from error
    except (ConnectionError, RpcError, requests.exceptions.RequestException) as error:
        raise ClusterError(
            f"{address}: no Ray cluster answers there; check the address, the port (8265 by "
            "default) and the network"
        ) from error
    except RuntimeError as error:
        raise ClusterError(f"{address}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def only_address(address: str) -> Iterator[None]:
    """Have Ray take this address, whatever the environment says."""
    name = ADDRESS_VARIABLES[0]
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before

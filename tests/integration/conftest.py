"""One Ray cluster for all integration tests of a session, and an S3 server beside it."""

import os
import secrets
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import fsspec
import psutil
import pytest
import ray

from spark_ray.media.synthetic import Truth, write_world

pytest.register_assert_rewrite("builds")
import builds  # noqa: E402

HERE = Path(__file__).parent


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a local cluster with two CPUs; drivers in subprocesses find it by themselves.

    Its workers can import the modules of this folder, and look for S3 where `s3` will listen.
    """
    plugins = tmp_path_factory.mktemp("plugins")
    _install_plugin(plugins)
    environment = {
        "PYTHONPATH": os.pathsep.join([str(HERE), str(plugins), os.environ.get("PYTHONPATH", "")]),
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or the tests beside these would have all the CPUs
        # Ten seconds are long for a test to wait. A gauge is gone after two that its agent missed.
        "RAY_metrics_report_interval_ms": "3000",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{free_port()}",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.syspath_prepend(str(plugins))
        fsspec.register_implementation("deadly", "deadly_files.DeadlyFileSystem", clobber=True)
        address = _start_ray()
        patch.setenv("RAY_ADDRESS", address)
        yield address
        ray.shutdown()


def _start_ray() -> str:
    """Its address. Ray allows its own processes some seconds to come up, few on a busy machine."""
    start = partial(ray.init, num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        context = start()
    except Exception:  # noqa: BLE001 - it raises no other
        ray.shutdown()
        context = start()
    return str(context.address_info["address"])


def _install_plugin(folder: Path) -> None:
    """Make `deadly://` known to fsspec in every process, in the way that packages do."""
    info = folder / "deadly_files-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly-files\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[fsspec.specs]\ndeadly = deadly_files:DeadlyFileSystem\n"
    )


@pytest.fixture
def workers(cluster: str) -> psutil.Process:
    """The process among whose descendants the cluster's workers are."""
    return psutil.Process()


@pytest.fixture(scope="session")
def s3(cluster: str) -> Iterator[str]:
    """The address of an S3 server over HTTP, moto's, with an empty bucket called `sets`."""
    import boto3
    from moto.server import ThreadedMotoServer

    endpoint = os.environ["AWS_ENDPOINT_URL"]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(endpoint.rpartition(":")[2]))
    server.start()
    boto3.client("s3").create_bucket(Bucket="sets")
    yield endpoint
    server.stop()


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Truth]]:
    """Twelve drawn clips, spoken and captioned, and what is true of them."""
    folder = tmp_path_factory.mktemp("world")
    return folder, write_world(folder, 12, seed=7)


@pytest.fixture(scope="session")
def numbers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen tiny videos, each showing a number that its caption tells."""
    return builds.write_numbers(tmp_path_factory.mktemp("numbers") / "videos", range(1, 17))

"""A Ray cluster for the tests of vLLM, which have an environment of their own: `make test-vllm`."""

import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("integration", "system")]
import builds  # noqa: E402
from clusters import RAY, START_S, Node, ask, free_port  # noqa: E402


@pytest.fixture(scope="session")
def cluster_environment() -> dict[str, str]:
    """As a user of the cluster has it: its token, and nothing of other clusters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session")
def cluster(
    cluster_environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    """A node of two CPUs; its address for drivers, and for `serve deploy`."""
    port, dashboard = free_port(), free_port()
    log = tmp_path_factory.mktemp("node") / "log"
    # Ray's sockets lie below its folder, and their paths may have 107 characters at most.
    folder = Path("/tmp") / f"srt{secrets.token_hex(3)}"
    command = [
        RAY,
        "start",
        "--head",
        "--block",
        "--disable-usage-stats",
        "--num-cpus=2",
        "--include-dashboard=true",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={folder}",
        f"--port={port}",
        f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=cluster_environment,
            start_new_session=True,
        )
    node = Node(process, log)
    jobs = f"http://127.0.0.1:{dashboard}"
    try:
        builds.wait_until(
            lambda: ask(jobs, "/api/jobs/", cluster_environment) is not None,
            f"a cluster that answers; see {log}",
            seconds=START_S,
        )
        yield {"address": f"127.0.0.1:{port}", "jobs": jobs}
    finally:
        node.kill()
        shutil.rmtree(folder, ignore_errors=True)

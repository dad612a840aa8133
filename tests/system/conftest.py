"""System tests start clusters of their own; they share the helpers of the integration tests."""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
pytest.register_assert_rewrite("builds", "serving_world")
import builds  # noqa: E402
from clusters import (  # noqa: E402
    RAY,
    START_S,
    Node,
    StartNode,
    ask,
    start_head,
    started,
    starting_nodes,
)
from serving_world import client, folder, keys, server, settings  # noqa: E402, F401 - fixtures

from spark_ray.serving.proxy import PROXY_ENVIRONMENT  # noqa: E402


@pytest.fixture(scope="session")
def token() -> str:
    return secrets.token_hex(32)


@pytest.fixture(scope="session")
def environment(token: str) -> dict[str, str]:
    """As a user of the cluster has it: the token, and nothing of other clusters."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {
        **kept,
        "PATH": os.pathsep.join([str(RAY.parent), os.environ["PATH"]]),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": token,
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_worker_niceness": "0",  # or the tests beside these would have all the CPUs
        **PROXY_ENVIRONMENT,
    }


@pytest.fixture(scope="session")
def start_node(
    environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[StartNode]:
    with starting_nodes(environment, tmp_path_factory.mktemp("nodes")) as start:
        yield start


@pytest.fixture(scope="session")
def head(start_node: StartNode, environment: dict[str, str]) -> dict[str, Any]:
    """A head node with two CPUs; its address for drivers, and for submitted jobs."""
    return start_head(start_node, environment)


@pytest.fixture
def second_node(
    start_node: StartNode, head: dict[str, Any], environment: dict[str, str]
) -> Iterator[Node]:
    """A worker node of two CPUs, which the head counts among its own; gone after the test."""

    def counts(cpus: float) -> bool:
        status = ask(head["jobs"], "/api/cluster_status?format=1", environment)
        return status is not None and f"/{cpus} CPU" in status

    # One that an earlier test has killed is counted for some seconds more.
    builds.wait_until(lambda: counts(2.0), "the head to be alone", seconds=START_S)
    arguments = [f"--address={head['address']}", "--num-cpus=2"]
    node = started(lambda: start_node(*arguments), lambda _: counts(4.0))
    yield node
    node.kill()

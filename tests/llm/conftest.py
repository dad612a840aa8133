"""A Ray cluster for the tests of vLLM, which have an environment of their own: `make test-vllm`."""

import os
import secrets
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("integration", "system")]
from clusters import RAY, start_head, starting_nodes  # noqa: E402


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
) -> Iterator[dict[str, Any]]:
    """A node of two CPUs; its address for drivers, and for `serve deploy`."""
    logs = tmp_path_factory.mktemp("nodes")
    with starting_nodes(cluster_environment, logs) as start_node:
        yield start_head(start_node, cluster_environment)

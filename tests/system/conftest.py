"""System tests start clusters of their own; they share the helpers of the integration tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "integration"))
pytest.register_assert_rewrite("builds")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "slow_clone: installs a bare clone; takes minutes")

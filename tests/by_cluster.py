"""Shares tests out to processes of pytest-xdist: a cluster with all its tests, or a file."""

from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

# Files whose tests share a cluster, which takes a while to start: they run in one process.
_SHARING = ("tests/integration/", "tests/system/test_serving")


class ByCluster(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return next((shared for shared in _SHARING if file.startswith(shared)), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByCluster:
    return ByCluster(config, log)

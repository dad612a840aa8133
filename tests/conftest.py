"""Fixtures that more than one room's tests use."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing runs beside the tests of the server.

    Some bound its time and memory, and to bring it up again for the others takes a minute.
    """
    for item in items:
        if "server" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.alone)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Two at a time, as `make test` runs them: those that share a cluster stay in one process."""
    from xdist.scheduler import LoadScopeScheduling

    class ByCluster(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.partition("::")[0]
            folder = file.rpartition("/")[0]
            return folder if folder in ("tests/integration", "tests/system") else file

    return ByCluster(config, log)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Path of a tiny random checkpoint by its family, made when it is first asked for."""
    # Imported here: torch, transformers and whisper take seconds that most tests need not wait.
    import tiny_checkpoints
    import torch

    # More threads than one only wait for each other over networks as small as these.
    torch.set_num_threads(1)
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            target = tmp_path_factory.mktemp(family)
            if family == "openai_whisper":
                made[family] = tiny_checkpoints.openai_whisper(target / "tiny.pt")
            elif family == "ctranslate2_whisper":
                source = make("hf_whisper")
                made[family] = tiny_checkpoints.ctranslate2_whisper(target, source)
            else:
                made[family] = getattr(tiny_checkpoints, family)(target)
        return made[family]

    return make

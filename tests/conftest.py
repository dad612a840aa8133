"""Fixtures that more than one room's tests use."""

from collections.abc import Callable
from pathlib import Path

import pytest


def pytest_collection_modifyitems(items: list[pytest.Function]) -> None:
    """Unit tests last, to fill up what is left of the time."""
    items.sort(key=lambda item: "unit" in item.path.parts)


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

"""Unit tests need no Ray."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def without_ray() -> Iterator[None]:
    """Some of Ray's functions start it in silence, and what it prints then ends up anywhere."""
    before = _connected()
    yield
    assert _connected() == before, "this test started Ray, or stopped it"


def _connected() -> bool:
    """Integration tests, which share a cluster, may have run in this process before."""
    return "ray" in sys.modules and sys.modules["ray"].is_initialized()

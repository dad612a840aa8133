"""A cluster that is not there is a sentence, at once."""

import socket
from types import SimpleNamespace

import pytest
import ray

from spark_ray.core.errors import ConfigError
from spark_ray.datasets.session import ray_session


@pytest.mark.parametrize("by", ["setting", "environment"])
def test_an_address_where_nobody_answers_is_an_error(
    by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as held:  # bound, but not listening
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        monkeypatch.setattr(ray, "is_initialized", lambda: False)  # by tests before this one
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        if by == "environment":
            monkeypatch.setenv("RAY_ADDRESS", address)
        config = SimpleNamespace(ray_address=address if by == "setting" else None, dashboard=False)
        with (
            pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"),
            ray_session(config),
        ):
            pytest.fail("there is no cluster")

"""A cluster that is not there is a sentence, at once."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray._private.authentication.authentication_token_setup import generate_and_save_token
from ray.data import DataContext
from ray.data._internal.execution.streaming_executor import StreamingExecutor

from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.datasets.session import _private_token, ray_session


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


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ("http://127.0.0.1:8265", "is the address of a dashboard"),
        ("banana", "banana leads to no Ray cluster"),
    ],
)
def test_what_is_no_address_of_a_cluster_is_an_error(
    address: str, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    config = SimpleNamespace(ray_address=address, dashboard=False)
    with pytest.raises(ConfigError, match=sentence), ray_session(config):
        pytest.fail("there is no cluster")


@pytest.mark.parametrize("made_before", [False, True])
def test_a_token_that_ray_makes_is_for_its_owner_alone(
    made_before: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    if made_before:
        generate_and_save_token()
    with _private_token():
        if not made_before:
            generate_and_save_token()
    assert (token.stat().st_mode & 0o077 == 0) is not made_before, "others' files stay as they are"


def test_a_local_ray_that_does_not_come_up_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def time_out(**_: object) -> None:
        raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", time_out)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    config = SimpleNamespace(ray_address=None, dashboard=False)
    with (
        pytest.raises(SparkRayError, match=r"no local Ray came up \(The current node timed out"),
        ray_session(config),
    ):
        pytest.fail("it is not up")


def test_a_local_ray_is_started_once_more(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def init(**_: object) -> None:
        tries.append("a Ray")
        if len(tries) == 1:
            raise Exception("The current node timed out during startup. This could happen because")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(SimpleNamespace(ray_address=None, dashboard=False)):
        assert tries == ["a Ray"] * 2


def test_ray_is_there_until_the_last_thread_of_ray_data_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order = []

    class Busy(StreamingExecutor):
        """Whose two seconds are over."""

        def __init__(self) -> None:
            super().__init__(DataContext.get_current())
            self._shutdown = True

        def run(self) -> None:
            time.sleep(0.3)
            order.append("the thread")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", lambda **_: None)
    monkeypatch.setattr(ray, "shutdown", lambda: order.append("Ray"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with ray_session(SimpleNamespace(ray_address=None, dashboard=False)):
        Busy().start()
    assert order == ["the thread", "Ray"]

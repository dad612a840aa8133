"""Serve's batches, as the servers of models fill them."""

import time
from collections.abc import Iterator

import pytest
from ray import serve
from ray.serve.handle import DeploymentHandle

from spark_ray.serving.inference import Worker

BATCH_S = 0.5


@serve.deployment(max_ongoing_requests=64, ray_actor_options={"num_cpus": 0})
class Slow:
    """Works as `ApotheonServer` does, on nothing."""

    def __init__(self) -> None:
        self._worker = Worker("slow")
        self._sizes: list[int] = []

    async def answer(self, number: int) -> int:
        await self._worker.free()
        return await self._answer(number)

    @serve.batch(max_batch_size=16, batch_wait_timeout_s=0.01)
    async def _answer(self, numbers: list[int]) -> list[int]:
        self._sizes.append(len(numbers))
        await self._worker.run_batch(lambda: time.sleep(BATCH_S))
        return numbers

    def sizes(self) -> list[int]:
        return self._sizes


@pytest.fixture
def slow(cluster: None) -> Iterator[DeploymentHandle]:
    serve.start(proxy_location="Disabled")
    try:
        yield serve.run(Slow.bind(), name="slow", route_prefix=None)
    finally:
        serve.shutdown()


def test_requests_that_trickle_in_while_a_batch_is_worked_on_go_into_the_next_one(
    slow: DeploymentHandle,
) -> None:
    """Serve would hand them on by ones and twos, as they came, one batch after the other."""
    answers = []
    for number in range(10):
        answers.append(slow.answer.remote(number))
        time.sleep(BATCH_S / 15)
    assert [answer.result(timeout_s=30) for answer in answers] == list(range(10))
    first, second, *rest = slow.sizes.remote().result(timeout_s=30)
    assert first + second >= 9, rest

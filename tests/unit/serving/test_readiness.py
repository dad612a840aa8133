"""Whether the server is ready, which anybody may ask."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2 as httpx
import pytest
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.testclient import TestClient

from spark_ray.core.errors import ModelError
from spark_ray.serving.gateway import create_app
from spark_ray.serving.messages import ModelFacts, ServedModel
from spark_ray.serving.services import Handles, Services
from spark_ray.serving.settings import ServeSettings

GONE = DeploymentID(name="model-seer")


class Model:
    """Answers after a moment, or fails; counts how often it is asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.asked, self._error = 0, error
        self.facts = SimpleNamespace(remote=self._facts)

    def _facts(self) -> Any:
        self.asked += 1
        return self

    def __await__(self) -> Any:
        return self._answer().__await__()

    async def _answer(self) -> ModelFacts:
        await asyncio.sleep(0.1)
        if self._error is not None:
            raise self._error
        return ModelFacts(served=ServedModel(name="seer"))

    def cancel(self) -> None: ...


@pytest.mark.parametrize("error", [None, ModelError("its weights are gone")])
def test_many_who_ask_at_once_cost_a_model_one_answer(
    tmp_path: Path, error: Exception | None
) -> None:
    """They need no key, and would take the places in its queue from those who have one."""
    model = Model(error)
    settings = ServeSettings.from_values(state=str(tmp_path), models={"seer": {"backend": "blip"}})
    app = create_app(Services(settings.located(), Handles(decoder=None, models={"seer": model})))

    async def ask(times: int) -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await asyncio.gather(*(client.get("/readyz") for _ in range(times)))

    async def play() -> None:
        answers = await ask(20)
        assert {answer.status_code for answer in answers} == {200 if error is None else 503}
        assert answers[0].json()["waiting_for"] == ([] if error is None else ["seer"])
        assert model.asked == 1
        await ask(1)
        assert model.asked == 2, "what was true then need not be true now"

    asyncio.run(play())


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelError("it is late"), "starting"), (DeploymentUnavailableError(GONE), "failed")],
)
def test_a_model_that_will_never_answer_is_told_from_one_that_is_late(
    tmp_path: Path, error: Exception, status: str
) -> None:
    settings = ServeSettings.from_values(state=str(tmp_path), models={"seer": {"backend": "blip"}})
    handles = Handles(decoder=None, models={"seer": Model(error)})
    with TestClient(create_app(Services(settings.located(), handles))) as client:
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.json() == {"status": status, "waiting_for": ["seer"]}

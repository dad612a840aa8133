"""The files that operators begin with are what Serve and the server read."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from spark_ray.serving import app
from spark_ray.serving.settings import ServeSettings
from spark_ray.serving.ui import app as ui
from spark_ray.serving.ui.settings import UiSettings

FILES = sorted((Path(__file__).parents[3] / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_is_read_without_a_leftover(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    schema = ServeDeploySchema.model_validate(values)
    assert set(values) <= set(ServeDeploySchema.model_fields)
    for application, given in zip(schema.applications, values["applications"], strict=True):
        assert set(given) <= set(type(application).model_fields)
    server, *front_ends = schema.applications
    assert server.import_path == f"{app.__name__}:{app.build.__name__}"
    assert ServeSettings.from_values(**server.args).models
    assert len(front_ends) == (file.stem != "llm"), "vLLM's environment has no Gradio"
    port = values["http_options"]["port"]
    for front_end in front_ends:
        assert front_end.import_path == f"{ui.build.__module__}:{ui.build.__name__}"
        assert UiSettings.from_values(**front_end.args).api_url == f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_serves_proxy_waits_for_longer_than_the_gateway_allows(file: Path) -> None:
    """Whole streams count, too: who follows a job, here or at `/ui`, does so until it ends."""
    values = yaml.safe_load(file.read_text())
    limits = ServeSettings.from_values(**values["applications"][0]["args"]).limits
    waits_s = values["http_options"]["request_timeout_s"]
    assert waits_s > limits.upload_timeout_s + limits.request_timeout_s
    assert waits_s >= 86_400


def test_there_is_one_for_a_laptop_one_for_gpus_and_one_for_conversations() -> None:
    assert [file.stem for file in FILES] == ["gpu", "llm", "local"]


def test_whoever_is_asked_has_a_queue_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, int] = {}
    deployed = app._deployed

    def noted(server: type, **options: Any) -> Any:
        deployment = deployed(server, **options)
        found[deployment.name] = deployment._deployment_config.max_queued_requests
        return deployment

    monkeypatch.setattr(app, "_deployed", noted)
    app.build({"state": str(tmp_path), "models": {"seer": {"backend": "blip"}}})
    assert found.pop("JobKeeper") == -1  # which nobody asks
    assert set(found) == {"Decoder", "Gateway", "SearchServer", "model-seer"}
    assert min(found.values()) > 0

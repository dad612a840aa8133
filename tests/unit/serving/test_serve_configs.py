"""The files that operators begin with are what Serve and the server read."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from spark_ray.serving.app import build
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
    assert server.import_path == f"{build.__module__}:{build.__name__}"
    assert ServeSettings.from_values(**server.args).models
    assert len(front_ends) == (file.stem != "llm"), "vLLM's environment has no Gradio"
    port = values["http_options"]["port"]
    for front_end in front_ends:
        assert front_end.import_path == f"{ui.build.__module__}:{ui.build.__name__}"
        assert UiSettings.from_values(**front_end.args).api_url == f"http://127.0.0.1:{port}"


def test_there_is_one_for_a_laptop_one_for_gpus_and_one_for_conversations() -> None:
    assert [file.stem for file in FILES] == ["gpu", "llm", "local"]

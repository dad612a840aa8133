"""The files that operators begin with are what Serve and the server read."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from spark_ray.serving.app import build
from spark_ray.serving.settings import ServeSettings

FILES = sorted((Path(__file__).parents[3] / "serve_configs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_config_is_read_without_a_leftover(file: Path) -> None:
    values = yaml.safe_load(file.read_text())
    schema = ServeDeploySchema.model_validate(values)
    assert set(values) <= set(ServeDeploySchema.model_fields)
    (application,) = schema.applications
    assert set(values["applications"][0]) <= set(type(application).model_fields)
    module, _, function = application.import_path.partition(":")
    assert (module, function) == (build.__module__, build.__name__)
    settings = ServeSettings.from_values(**application.args)
    assert settings.models


def test_there_is_one_for_a_laptop_one_for_gpus_and_one_for_conversations() -> None:
    assert [file.stem for file in FILES] == ["gpu", "llm", "local"]

"""Wrong settings inside others: told in the words of the file, whichever model they belong to."""

import importlib
import json
import pkgutil
from typing import Any

import pytest
from nested_models import nested

import spark_ray
from spark_ray.cluster.values import ClusterValues
from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError
from spark_ray.datasets.config import BuildConfig
from spark_ray.serving.settings import ServeSettings
from spark_ray.training.config import TrainConfig

STAGE = {"name": "films", "epochs": 10, "modalities": ["video"]}


def configurations() -> list[type[JobConfig]]:
    """Every class that reads settings of users."""
    for module in pkgutil.walk_packages(spark_ray.__path__, "spark_ray."):
        if module.name.rpartition(".")[2] in ("config", "settings", "values", "commands"):
            importlib.import_module(module.name)
    return sorted(_below(JobConfig), key=lambda cls: cls.__qualname__)


def _below(cls: type[JobConfig]) -> set[type[JobConfig]]:
    return {found for each in cls.__subclasses__() for found in (each, *_below(each))
            if each.__module__.startswith("spark_ray.")}  # fmt: skip


def complaint(cls: type[JobConfig], **values: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        cls.from_values(**values)
    return str(caught.value)


def train(**stage: Any) -> str:
    return complaint(TrainConfig, dataset="x", output_dir="y", curriculum=[{**STAGE, **stage}])


@pytest.mark.parametrize("cls", configurations(), ids=lambda cls: cls.__qualname__)
def test_no_setting_is_ignored_at_any_depth(cls: type[JobConfig]) -> None:
    open_ = [kind for kind in nested(cls) if kind.model_config.get("extra") != "forbid"]
    assert not open_


def test_the_configurations_are_found() -> None:
    assert {ClusterValues, ServeSettings, TrainConfig} <= set(configurations())


@pytest.mark.parametrize(
    ("told", "sentence"),
    [
        (
            train(show=["image"]),
            "curriculum[0]: unknown setting 'show'; choose one of: name, epochs, modalities, "
            "frozen, batch_scale, learning_rate_scale, part_rates, mixture",
        ),
        (train(epoch=2), "curriculum[0]: unknown setting 'epoch'; did you mean 'epochs'?"),
        (
            complaint(ServeSettings, models={"apotheon-base": {"refrence": "x"}}),
            "models.apotheon-base: unknown setting 'refrence'; did you mean 'reference'?",
        ),
        (
            complaint(ServeSettings, limits={"max_clips": 1}),
            "limits: unknown setting 'max_clips'; did you mean 'max_clip_s'?",
        ),
        (
            complaint(ClusterValues, provider="aws", head={"cpu": 2}),
            "head: unknown setting 'cpu'; did you mean 'cpus'?",
        ),
        (complaint(ServeSettings, stat="x"), "unknown setting 'stat'; did you mean 'state'?"),
    ],
)
def test_an_unknown_setting_is_told_by_its_place_and_what_is_near(told: str, sentence: str) -> None:
    assert told == sentence


def test_what_is_wrong_inside_is_told_by_its_place() -> None:
    told = complaint(TrainConfig, dataset="x", output_dir="y", curriculum=[{"name": "films"}, "x"])
    assert told == (
        "curriculum[0].epochs is required; curriculum[0].modalities is required; "
        "curriculum[1]: must hold settings as 'name: value' lines, not 'x'"
    )
    assert train(part_rates={"vision": "fast"}).startswith("curriculum[0].part_rates.vision: ")


def test_what_only_the_file_can_give_is_not_asked_for_by_a_flag() -> None:
    told = complaint(importlib.import_module("spark_ray.training.search.config").StudyConfig)
    assert "space is required: set it in the YAML file" in told
    assert "--space" not in told
    assert "study_dir is required: give --study-dir" in told


@pytest.mark.parametrize("cls", configurations(), ids=lambda cls: cls.__qualname__)
def test_no_setting_answers_with_a_pattern(cls: type[JobConfig]) -> None:
    assert '"pattern":' not in json.dumps(cls.model_json_schema())


def test_a_text_of_another_form_is_answered_in_words() -> None:
    assert complaint(BuildConfig, input=["x"], output="y", version="v/1") == (
        "version: must be 1 to 64 letters, digits, dots, hyphens or underscores, with a letter or "
        "digit first, not 'v/1'"
    )
    assert "version: must be" in complaint(BuildConfig, input=["x"], output="y", version="v1\n")
    assert complaint(ServeSettings, models={"a/b": {"reference": "x"}}).startswith(
        "models.a/b: must be a name of 1 to 64 letters"
    )


def test_a_name_stands_once_where_the_mistake_names_it_too() -> None:
    told = complaint(ServeSettings, models={"seer": {"backend": "blipp"}})
    assert told.startswith("models.seer.backend: 'blipp' is unknown; choose one of: ")

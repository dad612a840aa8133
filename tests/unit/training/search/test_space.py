"""The search space: what can be varied, what is tried first, what is refused in one sentence."""

import math
from typing import Any

import pytest
import yaml

from spark_ray.core.errors import ConfigError
from spark_ray.training.search.space import (
    check_inheritable,
    check_paths,
    corners,
    explorer,
    grid_size,
    grid_values,
    parse_space,
    settings_of,
)

RATE = {"type": "float", "min": 1e-5, "max": 1e-3, "log": True}
BASE = {"curriculum": [{"name": "films", "epochs": 2, "modalities": ["video"]}]}


@pytest.mark.parametrize(
    ("parameter", "sentence"),
    [
        ({"type": "float", "min": 1}, "^x: max is required"),
        ({"type": "flot", "min": 1, "max": 2}, "^x: .*'float', 'int', 'choice'"),
        ({"min": 1, "max": 2}, "^x: type is required"),
        ({"type": "float", "min": 1, "max": 2, "lgo": 1}, "setting 'lgo'; did you mean 'log'"),
        ({"type": "float", "min": 0, "max": float("inf")}, "^x: max: .*finite"),
        ({"type": "float", "min": 2, "max": 1}, "min 2 must be less than max 1"),
        ({"type": "float", "min": 0, "max": 1, "log": True}, "log needs a min over 0"),
        ({"type": "int", "min": 1, "max": 9, "log": True, "step": 2}, "step goes without log"),
        ({"type": "int", "min": 1, "max": 3, "step": 7}, "longer than the range"),
        ({"type": "choice", "values": []}, "^x: values: List should have at least 1"),
        ({"type": "choice", "value": [1]}, "unknown setting 'value'; did you mean 'values'"),
        ("3", "^x: must hold settings"),
    ],
)
def test_a_parameter_that_is_none_is_explained(parameter: Any, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        parse_space({"x": parameter})


def test_a_number_without_a_point_is_one():
    given = yaml.safe_load("{type: choice, values: [1e-4, 2E3, 1.5e+1, e-4, 3, large]}")
    (choice,) = parse_space({"x": given}).values()
    assert choice.ends() == [1e-4, 2000.0, 15.0, "e-4", 3, "large"]


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("learning_rat", "did you mean learning_rate"),
        ("zzz", "no setting 'zzz'; see spark-ray train apotheon --help"),
        ("output_dir", "output_dir belongs to the study"),
        ("learning_rate.x", "leads nowhere"),
        ("curriculum.films", "leads nowhere"),
        ("curriculum.cinema.epochs", "'cinema' is unknown; choose one of: films"),
        ("curriculum.films.pace", "'pace' is unknown; choose one of: batch_scale"),
    ],
)
def test_a_path_that_leads_nowhere_is_explained(path: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        check_paths(parse_space({path: RATE}), BASE)


def test_parameters_reach_the_settings_that_they_name_and_no_others():
    space = parse_space(
        {
            "learning_rate": RATE,
            "curriculum.films.part_rates.vision": RATE,
            "frozen": {"type": "choice", "values": [[], ["vision"]]},
        }
    )
    params = {
        "learning_rate": 1e-4,
        "curriculum.films.part_rates.vision": 0.5,
        "frozen": '["vision"]',
    }
    settings = settings_of(params, space, BASE)
    assert settings["learning_rate"] == 1e-4
    assert settings["frozen"] == ["vision"]
    assert settings["curriculum"] == [{**BASE["curriculum"][0], "part_rates": {"vision": 0.5}}]
    assert "part_rates" not in BASE["curriculum"][0], "what all trials share has not changed"


def test_every_corner_and_some_points_inside_are_tried():
    space = parse_space(
        {"learning_rate": RATE, "engine": {"type": "choice", "values": ["ddp", "zero1", "zero3"]}}
    )
    tried = list(corners(space))
    at_corners = [point for point in tried if point["learning_rate"] in (1e-5, 1e-3)]
    assert len({tuple(point.values()) for point in at_corners}) == 6
    inside = [point["learning_rate"] for point in tried if point not in at_corners]
    assert inside
    assert all(1e-5 < rate < 1e-3 for rate in inside)


def test_of_too_many_corners_each_end_is_tried():
    names = [f"p{number}" for number in range(12)]
    space = parse_space({name: {"type": "int", "min": 0, "max": 1} for name in names})
    tried = list(corners(space))
    assert len(tried) < 1000 < 2**12
    for name in names:
        assert {point[name] for point in tried} == {0, 1}


def test_a_grid_counts_its_points():
    space = parse_space(
        {
            "rate": {**RATE, "points": 3},
            "decay": {"type": "float", "min": 0, "max": 0.3, "step": 0.1},
            "batch": {"type": "int", "min": 2, "max": 8, "step": 3},
            "engine": {"type": "choice", "values": ["ddp"]},
        }
    )
    values = grid_values(space)
    assert values["rate"] == pytest.approx([1e-5, 1e-4, 1e-3])
    assert values["decay"] == pytest.approx([0, 0.1, 0.2, 0.3])
    assert values["batch"] == [2, 5, 8]
    assert grid_size(space) == 3 * 4 * 3


def test_only_the_steps_of_a_range_are_tried():
    space = parse_space(
        {
            "batch": {"type": "int", "min": 3, "max": 8, "step": 2},
            "decay": {"type": "float", "min": 0.05, "max": 0.3, "step": 0.1},
        }
    )
    tried = list(corners(space))
    assert {point["batch"] for point in tried} == {3, 5, 7}
    assert {round(float(point["decay"] or 0), 9) for point in tried} == {0.05, 0.15, 0.25}
    kept = explorer(space)({"batch": 5.9, "decay": 0.18})
    assert kept == {"batch": 5, "decay": pytest.approx(0.15)}


def test_a_grid_needs_an_end():
    with pytest.raises(ConfigError, match="grid over rate needs points"):
        grid_values(parse_space({"rate": RATE}))
    wide = {f"p{number}": {"type": "int", "min": 1, "max": 30} for number in range(3)}
    with pytest.raises(ConfigError, match="27000 points, and at most 10000"):
        grid_values(parse_space(wide))
    endless = {"seed": {"type": "int", "min": 0, "max": 10**15}}
    with pytest.raises(ConfigError, match="1000000000000001 points, and at most 10000"):
        grid_values(parse_space(endless))


def test_only_what_shapes_no_weights_changes_in_the_middle_of_a_run():
    check_inheritable(
        parse_space({"learning_rate": RATE, "curriculum.films.learning_rate_scale": RATE})
    )
    for path in ("batch_size", "curriculum.films.part_rates.vision", "seed"):
        with pytest.raises(ConfigError, match=f"{path} can't change while a run goes on"):
            check_inheritable(parse_space({path: RATE}))


def test_what_is_multiplied_stays_in_its_range():
    space = parse_space({"rate": RATE, "norm": {"type": "int", "min": 1, "max": 4}})
    explored = explorer(space)({"rate": 1.2e-3, "norm": 0.8})
    assert explored == {"rate": 1e-3, "norm": 1}
    assert math.isclose(explorer(space)({"rate": 5e-4, "norm": 2})["rate"], 5e-4)

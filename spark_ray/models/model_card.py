"""The model card: `README.md` of a trained model, made from its folder and nothing else."""

import json
import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined
from safetensors import SafetensorError, safe_open

from spark_ray.core.anatomy import PARTS
from spark_ray.core.errors import ModelError
from spark_ray.models.training_record import SKILLS, HeldOut, TrainingRecord

MODEL_CARD = "README.md"

NOT_MEASURED = "not measured"

# Task ids of the Hugging Face hub.
_HUB_TASKS = {
    "caption": "video-text-to-text",
    "transcript": "automatic-speech-recognition",
    "retrieval": "feature-extraction",
}


def write_model_card(folder: Path) -> Path:
    """Write `README.md` into a folder with a saved model, its processor and `training.json`.

    Raises:
        ModelError: one of these is missing or damaged.
    """
    file = folder / MODEL_CARD
    file.write_text(render_model_card(folder, TrainingRecord.read(folder)), encoding="utf-8")
    return file


def render_model_card(folder: Path, record: TrainingRecord) -> str:
    """The card's text: YAML for the hub, then Markdown for people.

    Raises:
        ModelError: the folder holds no model with its processor.
    """
    return (
        _environment()
        .get_template("model_card.md.j2")
        .render(
            front_matter=_front_matter(record),
            record=record,
            parts=_count_parameters(folder),
            metrics=_metric_rows(record.held_out),
            processor=_read_json(folder / "processor_config.json"),
            settings=yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True).strip(),
            columns=list(dict.fromkeys(key for stage in record.curriculum for key in stage)),
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("spark_ray.models"),
        # Markdown: names are escaped where they stand in a table, by the filter `cell`.
        autoescape=False,  # noqa: S701
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": _cell, "count": lambda number: f"{number:,}"}
    environment.globals |= {"not_measured": NOT_MEASURED}
    return environment


def _cell(value: Any) -> str:
    """A value as the text of a table's cell, which neither ends the cell nor is HTML."""
    if value is None or value in ([], {}, ""):
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{_cell(key)} {_cell(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


def _front_matter(record: TrainingRecord) -> str:
    measured = record.held_out.metrics if record.held_out else {}
    data: dict[str, Any] = {
        "license": record.license,
        "library_name": "transformers",
        "pipeline_tag": _HUB_TASKS["caption"],
        "tags": ["apotheon", "video-captioning", "speech-recognition", "spark-ray"],
        "datasets": [record.dataset.name],
        "metrics": sorted({key for values in measured.values() for key in values}),
    }
    results = [
        _hub_result(skill, record)
        for skill in SKILLS
        if any(value is not None for value in measured.get(skill, {}).values())
    ]
    if results:
        data["model-index"] = [{"name": record.name, "results": results}]
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True).strip()


def _hub_result(skill: str, record: TrainingRecord) -> dict[str, Any]:
    assert record.held_out is not None
    values = record.held_out.metrics[skill]  # type: ignore[index]
    name = record.dataset.name
    return {
        "task": {"type": _HUB_TASKS[skill], "name": skill},
        "dataset": {
            "name": f"{name} {record.dataset.version}",
            "type": name,
            "split": record.held_out.split,
            "revision": record.dataset.version,
        },
        "metrics": [
            {"type": key, "name": key, "value": value}
            for key, value in values.items()
            if value is not None
        ],
    }


def _metric_rows(held_out: HeldOut | None) -> list[tuple[str, str, float | str]]:
    """Skill, metric and value; every skill has a row, also where nothing was measured."""
    rows: list[tuple[str, str, float | str]] = []
    for skill in SKILLS:
        values = held_out.metrics.get(skill, {}) if held_out else {}
        for key, value in values.items():
            rows.append((skill, key, NOT_MEASURED if value is None else value))
        if not values:
            rows.append((skill, "", NOT_MEASURED))
    return rows


def _count_parameters(folder: Path) -> dict[str, int]:
    """Parameters of each part, from the headers of the weight files, which takes milliseconds."""
    part_of = {module: part for part, modules in PARTS.items() for module in modules}
    counts: Counter[str] = Counter()
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise ModelError(f"{folder}: holds no *.safetensors file, so it is no model")
    for file in files:
        try:
            with safe_open(file, framework="numpy") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    module = key.partition(".")[0]
                    shape = tensors.get_slice(key).get_shape()
                    counts[part_of.get(module, module)] += math.prod(shape)
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file}: can't be read: {error}") from error
    return {part: counts[part] for part in (*PARTS, *counts) if part in counts}


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{file}: can't be read ({error}); save the processor there") from error

import math
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from trained import record, save_tiny

from spark_ray.apotheon import ApotheonModel
from spark_ray.core.errors import ModelError
from spark_ray.models.held_out import record_held_out
from spark_ray.models.model_card import render_model_card, write_model_card
from spark_ray.models.training_record import HeldOut, TrainingRecord

HELD_OUT = HeldOut(
    split="test",
    clips=200,
    metrics={"caption": {"exact_match": 0.95, "cider_d": None}, "transcript": {"wer": 1 / 3}},
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("apotheon")
    save_tiny(folder)
    return folder


def sections(card: str) -> dict[str, str]:
    body = card.split("---\n", 2)[2]
    parts = re.split(r"^## (.*)$", body, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def rows(section: str) -> list[list[str]]:
    lines = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_the_hub_understands_the_front_matter(saved: Path) -> None:
    record(held_out=HELD_OUT).write(saved)
    data = ModelCard.load(write_model_card(saved)).data
    assert data.license == "unknown"
    assert data.library_name == "transformers"
    assert data.datasets == ["street"]
    assert data.metrics == ["cider_d", "exact_match", "wer"]
    results = [(r.task_name, r.metric_type, r.metric_value) for r in data.eval_results]
    assert results == [("caption", "exact_match", 0.95), ("transcript", "wer", 1 / 3)]
    assert {result.dataset_name for result in data.eval_results} == {"street v3"}
    assert {result.dataset_split for result in data.eval_results} == {"test"}


def test_the_sections_hold_what_the_record_says(saved: Path) -> None:
    record("0123", HELD_OUT).write(saved)
    found = sections(render_model_card(saved, TrainingRecord.read(saved)))
    assert list(found) == [
        "Parameters",
        "Data",
        "Curriculum",
        "Training",
        "Metrics",
        "How to load it",
        "Limits",
        "Provenance",
    ]
    parts = {
        name: int(count.strip("*").replace(",", ""))
        for name, count in rows(found["Parameters"])[2:]
    }
    total = parts.pop("**all**")
    assert total == sum(parts.values()) == ApotheonModel.from_pretrained(saved).num_parameters()
    assert {"vision", "audio", "text", "fusion", "heads"} <= parts.keys()
    assert ["train clips", "1,700"] in rows(found["Data"])
    assert ["training clips with transcript", "1,200"] in rows(found["Data"])
    assert rows(found["Curriculum"]) == [
        ["name", "epochs", "modalities", "frozen", "part_rates"],
        ["---"] * 5,
        ["pictures", "2", "text, image", "–", "–"],
        [r"all \| &lt;b>", "8", "–", "vision", "text 0.1"],
    ]
    assert ["loss/transcript", "no finite number"] in rows(found["Training"])
    assert yaml.safe_load(found["Training"].split("```")[1].removeprefix("yaml")) == {
        "size": "tiny",
        "learning_rate": 3e-4,
    }
    assert rows(found["Metrics"])[2:] == [
        ["caption", "exact_match", "0.95"],
        ["caption", "cider_d", "not measured"],
        ["transcript", "wer", "0.3333"],
        ["retrieval", "–", "not measured"],
    ]
    assert "at most 8 frames" in found["Limits"]
    assert "first 16 s" in found["Limits"]
    assert ["MLflow run", "0123"] in rows(found["Provenance"])
    assert ["git commit", "–"] in rows(found["Provenance"])


def test_what_an_evaluation_measured_goes_into_record_and_card(saved: Path) -> None:
    record().write(saved)
    write_model_card(saved)
    before = (saved / "README.md").read_bytes()
    assert not record_held_out(str(saved), HELD_OUT, "of another dataset")
    assert (saved / "README.md").read_bytes() == before
    assert record_held_out(str(saved), HELD_OUT, record().dataset.manifest_sha256)
    assert TrainingRecord.read(saved) == record(held_out=HELD_OUT)
    metrics = sections((saved / "README.md").read_text())["Metrics"]
    assert "On the test split" in metrics
    assert ["caption", "exact_match", "0.95"] in rows(metrics)


def test_a_model_without_a_record_is_left_as_it_is(tmp_path: Path) -> None:
    save_tiny(tmp_path)
    names = sorted(tmp_path.iterdir())
    assert not record_held_out(str(tmp_path), HELD_OUT, record().dataset.manifest_sha256)
    assert sorted(tmp_path.iterdir()) == names


def test_nothing_is_claimed_where_nothing_was_measured(saved: Path) -> None:
    record().write(saved)
    card = render_model_card(saved, TrainingRecord.read(saved))
    assert "model-index" not in yaml.safe_load(card.split("---")[1])
    metrics = sections(card)["Metrics"]
    assert "Nothing was measured" in metrics
    assert [row[-1] for row in rows(metrics)[2:]] == ["not measured"] * 3


def test_the_snippet_runs_as_it_stands(
    saved: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record().write(saved)
    snippet = sections(render_model_card(saved, TrainingRecord.read(saved)))[
        "How to load it"
    ].split("```")[1]
    monkeypatch.chdir(saved)
    picture = np.full((48, 64, 3), 200, np.uint8)
    cv2.circle(picture, (20, 20), 10, (255, 0, 0), -1)
    names = {"frames": [picture] * 2, "frame_times": [0.0, 1.0], "sound": np.zeros(16_000)}
    exec(snippet.removeprefix("python"), names)
    assert capsys.readouterr().out.strip()


def test_the_record_comes_back_as_it_was_written(saved: Path) -> None:
    written = record("0123", HELD_OUT)
    written.write(saved)
    assert TrainingRecord.read(saved) == written
    assert written.training_metrics["loss/transcript"] is None
    lost = HeldOut(split="test", clips=1, metrics={"caption": {"cider_d": math.inf}})
    assert lost.metrics["caption"]["cider_d"] is None


def test_a_folder_that_is_incomplete_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no readable training\.json"):
        write_model_card(tmp_path)
    (tmp_path / "training.json").write_text('{"date": 1}')
    with pytest.raises(ModelError, match=r"training\.json: is damaged: date"):
        write_model_card(tmp_path)
    record().write(tmp_path)
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors"):
        write_model_card(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match=r"model\.safetensors: can't be read"):
        write_model_card(tmp_path)

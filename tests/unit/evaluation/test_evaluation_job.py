"""The whole job on the driver: which clips are asked about, what is counted, what is written."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import fake_run
import pytest
from fake_run import perfect, run, some_clip, unreadable, write_clips

from spark_ray.core.errors import DatasetError, MissingDependency
from spark_ray.core.schema import Transcript
from spark_ray.datasets.samples import SampleIndex
from spark_ray.evaluation import evaluate as job
from spark_ray.evaluation.config import EvaluateConfig
from spark_ray.evaluation.results import load_results


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_a_perfect_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, output = write_clips(tmp_path / "set"), tmp_path / "out"
    results = run(monkeypatch, perfect, dataset=str(dataset), output_dir=str(output)).results
    scores = results.overall
    assert scores.captions is not None
    assert scores.transcripts is not None
    assert scores.text_to_clip is not None
    assert (scores.captions.exact, scores.captions.rouge_l) == (1.0, 1.0)
    assert scores.captions.bleu == pytest.approx(100)
    assert scores.captions.cider == pytest.approx(10)
    assert (scores.transcripts.wer, scores.transcripts.cer) == (0.0, 0.0)
    assert (scores.text_to_clip.recall_at_1, scores.text_to_clip.candidates) == (1.0, 6)
    assert results.clips.model_dump() == {
        "asked": 6,
        "evaluated": 6,
        "failed": 0,
        "without_reference": 0,
    }
    assert {kind: list(groups) for kind, groups in results.slices.items()} == {
        "label": ["blue", "red"],
        "duration": ["under 3 s", "3 to 10 s"],
        "source": ["blue", "red"],
    }
    assert results.model == fake_run.MODEL
    assert (results.dataset.name, results.dataset.version) == ("set", "v1")
    assert load_results(str(output)) == results
    ids = [json.loads(line)["id"] for line in (dataset / "v1/manifest.jsonl").open()]
    assert [line["id"] for line in lines(output)] == ids


def test_clips_without_a_reference_are_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nothing = Transcript(text=" ... ")
    clips = [
        some_clip(0),
        some_clip(1, caption=None),
        some_clip(2, transcript=None),
        some_clip(3, caption=None, transcript=nothing),
    ]
    asked = []

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        asked.append(row)
        return perfect(row)

    dataset = write_clips(tmp_path / "set", clips)
    results = run(
        monkeypatch, answer, dataset=str(dataset), output_dir=str(tmp_path / "out")
    ).results
    assert len(asked) == 3
    assert results.clips.without_reference == 1
    assert results.overall.captions is not None
    assert results.overall.transcripts is not None
    assert results.overall.captions.clips == 2
    assert results.overall.transcripts.clips == 2
    assert "4 of split all: 2 with a caption, 2 with a transcript" in capsys.readouterr().err


def test_only_transcripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_clips(tmp_path / "set", [some_clip(n, caption=None) for n in range(2)])
    output = tmp_path / "out"
    results = run(
        monkeypatch, perfect, dataset=str(dataset), output_dir=str(output), pdf=True
    ).results
    assert results.overall.captions is None
    assert results.overall.clip_to_text is None
    assert results.overall.transcripts is not None
    assert "No clip has a reference caption" in (output / "report.html").read_text()


def test_nothing_to_compare_with_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = write_clips(tmp_path / "set", [some_clip(0, caption=None, transcript=None)])
    with pytest.raises(DatasetError, match=r"none of 1 clips \(split all\) has a caption"):
        run(monkeypatch, perfect, dataset=str(dataset), output_dir=str(tmp_path / "out"))


def test_unreadable_clips_are_listed_and_not_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, output = write_clips(tmp_path / "set"), tmp_path / "out"

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return unreadable(row) if row["label"] == "red" else perfect(row)

    results = run(monkeypatch, answer, dataset=str(dataset), output_dir=str(output)).results
    assert (results.clips.evaluated, results.clips.failed) == (3, 3)
    assert results.overall.captions is not None
    assert results.overall.captions.exact == 1.0
    assert [failure.error for failure in results.failures] == ["CorruptMedia"] * 3
    assert {line["label"] for line in lines(output)} == {"blue"}


def test_all_unreadable_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, output = write_clips(tmp_path / "set"), tmp_path / "out"
    with pytest.raises(
        DatasetError, match=r"none of 6 clips could be read; of the first: a frame of the clip"
    ):
        run(monkeypatch, unreadable, dataset=str(dataset), output_dir=str(output))
    assert not output.exists()


def test_limit_and_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_clips(tmp_path / "set")
    first = run(
        monkeypatch, perfect, dataset=str(dataset), output_dir=str(tmp_path / "a"), limit=2
    ).results
    assert first.clips.asked == 2
    manifest = dataset / "v1/manifest.jsonl"
    backwards = dataset / "v1/backwards.jsonl"
    backwards.write_text("".join(reversed(manifest.read_text().splitlines(keepends=True))))
    one, other = (
        run(monkeypatch, perfect, dataset=str(of), output_dir=str(tmp_path / "b")).results
        for of in (dataset, backwards)
    )
    assert one.clips_hash == other.clips_hash != first.clips_hash
    assert one.overall == other.overall
    assert one.slices == other.slices
    assert (other.dataset.name, other.dataset.version) == ("backwards.jsonl", None)


def test_no_pdf_of_an_earlier_run_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, output = write_clips(tmp_path / "set"), tmp_path / "out"
    run(monkeypatch, perfect, dataset=str(dataset), output_dir=str(output), pdf=True)
    assert (output / "report.pdf").exists()
    run(monkeypatch, perfect, dataset=str(dataset), output_dir=str(output))
    assert sorted(path.name for path in output.iterdir()) == [
        "predictions.jsonl",
        "report.html",
        "results.json",
    ]


class Asked(Exception):
    """The actors would begin now."""


def test_every_actor_asks_the_version_that_an_alias_stands_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def predict(config: EvaluateConfig, clips: SampleIndex) -> None:
        raise Asked(config.model)

    monkeypatch.setattr(job, "predict", predict)
    monkeypatch.setattr(job, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(job, "find_registered", lambda *_: (tmp_path, "3"))
    config = EvaluateConfig.from_values(
        model="models:/apotheon@champion",
        dataset=str(write_clips(tmp_path / "set")),
        split="all",
        output_dir=str(tmp_path / "out"),
    )
    with pytest.raises(Asked, match=r"^models:/apotheon/3$"):
        job.evaluate(config)


def test_missing_packages_are_named_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "find_spec", lambda name: None if name == "rouge_score" else name)
    with pytest.raises(MissingDependency, match=r"'rouge-score'.*spark-ray\[train\]"):
        run(monkeypatch, perfect, dataset="/nowhere")

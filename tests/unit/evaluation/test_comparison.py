"""Metrics as text, and runs side by side."""

from pathlib import Path

import fake_run
import pytest

from spark_ray.core.errors import DatasetError
from spark_ray.evaluation.comparison import compare
from spark_ray.evaluation.metrics import METRICS, Metric, headline, long_title
from spark_ray.evaluation.results import CaptionScores, Results, Scores, load_results

WER = next(metric for metric in METRICS if metric.field == "wer")
CIDER = next(metric for metric in METRICS if metric.field == "cider")


def without_captions() -> Scores:
    return Scores(clips=1, captions=None, transcripts=None, clip_to_text=None, text_to_clip=None)


def test_values_as_text() -> None:
    assert (WER.text(0.1234), WER.text(None), CIDER.text(0.714)) == ("12.3 %", "–", "0.71")
    assert CIDER.text(12.34) == "12.3"
    assert [long_title(m) for m in METRICS if m.field == "recall_at_1"] == [
        "R@1 text → clip",
        "R@1 clip → text",
    ]


@pytest.mark.parametrize(
    ("metric", "value", "baseline", "text", "kind"),
    [
        (WER, 0.1, 0.3, "−20.0 pp", "better"),
        (WER, 0.3, 0.1, "+20.0 pp", "worse"),
        (CIDER, 1.5, 1.0, "+0.50", "better"),
        (CIDER, 1.0, 1.5, "−0.50", "worse"),
        (CIDER, 1.001, 1.0, "±0.00", "same"),
        (WER, 0.10001, 0.1002, "±0.0 pp", "same"),
    ],
)
def test_less_is_better_for_errors(
    metric: Metric, value: float, baseline: float, text: str, kind: str
) -> None:
    difference = metric.difference(value, baseline)
    assert difference is not None
    assert (difference.text, difference.kind) == (text, kind)
    assert metric.difference(value, None) is None


def test_headline_leaves_out_what_no_run_has() -> None:
    none = without_captions()
    some = none.model_copy(
        update={
            "captions": CaptionScores(
                clips=1, exact=1.0, bleu=1.0, rouge_l=1.0, meteor=1.0, cider=1.0
            )
        }
    )
    assert headline([none]) == []
    assert [m.title for m in headline([none, some])] == [
        "exact",
        "BLEU",
        "ROUGE-L",
        "METEOR",
        "CIDEr",
    ]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Results]:
    """One that knows everything, one of the same name that says nothing, and one of other clips."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return _run_all(tmp_path_factory.mktemp("runs"), monkeypatch)


def _run_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Results]:
    dataset = fake_run.write_clips(tmp_path / "set")
    silent = {"caption": "", "transcript": ""}
    results = []
    for folder, answer, limit in (
        ("good/run", fake_run.perfect, None),
        ("bad/run", lambda row: fake_run.perfect(row) | silent, None),
        ("part", fake_run.perfect, 3),
    ):
        output = tmp_path / folder
        fake_run.run(monkeypatch, answer, dataset=str(dataset), output_dir=str(output), limit=limit)
        results.append(load_results(str(output)))
    return results


def test_runs_side_by_side(runs: list[Results]) -> None:
    comparison = compare(runs[0], runs[1:])
    assert comparison is not None
    assert [run.name for run in comparison.runs] == ["run", "run (2)", "part"]
    assert comparison.others == ("part",)
    by_title = {
        row.metric.title: row for row in comparison.rows if row.metric.group != "clip_to_text"
    }
    assert by_title["exact"].values == (1.0, 0.0, 1.0)
    assert by_title["exact"].best == {0, 2}
    assert by_title["WER"].values == (0.0, 1.0, 0.0)
    assert by_title["WER"].best == {0, 2}
    assert by_title["R@1"].best == {0, 1, 2}


def test_slices_against_each_earlier_run(runs: list[Results]) -> None:
    comparison = compare(runs[1], [runs[0]])
    assert comparison is not None
    labels = next(table for table in comparison.slices if table.kind == "label")
    assert labels.earlier == "run (2)"
    assert [(row.name, row.clips) for row in labels.rows] == [("blue", 3), ("red", 3)]
    exact, wer = (
        [metric.field for metric in comparison.headline].index(name) for name in ("exact", "wer")
    )
    differences = labels.rows[0].differences
    assert differences[exact] is not None
    assert (differences[exact].text, differences[exact].kind) == ("−100.0 pp", "worse")
    assert differences[wer] is not None
    assert (differences[wer].text, differences[wer].kind) == ("+100.0 pp", "worse")


def test_nothing_to_compare_with(runs: list[Results]) -> None:
    assert compare(runs[0], []) is None


def test_results_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"compare: .*results.json.*does not exist; give the"):
        load_results(str(tmp_path))
    (tmp_path / "results.json").write_text('{"name": "x"}')
    with pytest.raises(DatasetError, match=r"holds no results of this version.*created.*again"):
        load_results(str(tmp_path / "results.json"))
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(DatasetError, match="holds no results"):
        load_results(str(tmp_path))

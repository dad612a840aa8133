"""The report as a page and on paper."""

import re
from pathlib import Path
from typing import Any

import pytest
from fake_run import perfect, run, some_clip, unreadable, write_clips
from fake_version import HOSTILE
from test_report import Page

from spark_ray.core.schema import Transcript
from spark_ray.evaluation.report import slice_groups
from spark_ray.evaluation.results import load_results


def wrong(row: dict[str, Any]) -> dict[str, Any]:
    """Nothing where the clip is blue, else the first three words."""
    words = "" if row["label"] == "blue" else " ".join(row["caption"].split()[:3])
    return perfect(row) | {"caption": words, "transcript": "my friend lost <b>$5 $ no</b> boats"}


@pytest.fixture(scope="module")
def full_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run with everything: earlier runs, failures, wrong words."""
    tmp_path = tmp_path_factory.mktemp("full")
    with pytest.MonkeyPatch.context() as monkeypatch:
        _run_all(tmp_path, monkeypatch)
    return tmp_path / "after"


@pytest.fixture(scope="module")
def page(full_run: Path) -> tuple[str, Page]:
    html = (full_run / "report.html").read_text()
    return html, Page(html)


def _run_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write_clips(tmp_path / "set", [some_clip(number) for number in range(10)])
    for name, limit in (("before", None), ("part", 4)):
        output = str(tmp_path / name)
        run(monkeypatch, perfect, dataset=str(dataset), output_dir=output, limit=limit)

    def answer(row: dict[str, Any]) -> dict[str, Any]:
        return unreadable(row) if " 9 " in row["caption"] else wrong(row)

    run(
        monkeypatch,
        answer,
        dataset=str(dataset),
        output_dir=str(tmp_path / "after"),
        compare=[str(tmp_path / "before"), str(tmp_path / "part/results.json")],
        pdf=True,
    )


def test_shows_numbers_examples_and_failures(page: tuple[str, Page]) -> None:
    html, parsed = page
    text = " ".join(parsed.text.split())
    assert "after models:/apotheon@champion on set@v1, all clips" in text
    assert "ROUGE-L" in text
    assert "Worst captions" in text
    assert "Worst transcripts" in text
    assert "1 of 10 clips could not be read or decoded" in text
    assert "a frame of the clip is no readable JPEG" in text
    assert "ab" * 32 in text  # the weights' hash
    assert parsed.tags.count("article") == 16
    assert parsed.tags.count("img") == 16 * 2
    assert '<mark class="missed">number' in html
    assert "nothing" in text  # where the model wrote nothing
    assert len(set(parsed.ids())) == len(parsed.ids())


def test_compares_with_earlier_runs(page: tuple[str, Page]) -> None:
    html, _ = page
    text = " ".join(re.sub("<[^>]+>", " ", html).split())
    assert "after (this run) before part" in text
    assert "Not the same questions: before, part judged other clips" in text
    assert "exact 0.0 % 100.0 % −100.0 pp" in text
    assert '<span class="worse">−100.0 pp</span>' in html
    assert "by label, against before" in text
    assert "by source" not in text  # the same clips as by label


def test_plots_take_the_pages_colours(page: tuple[str, Page]) -> None:
    html, _ = page
    plots = re.findall(r'<svg class="plot".*?</svg>', html, flags=re.S)
    assert len(plots) == 4  # word errors, labels, ranks, and the comparison
    for plot in plots:
        assert not re.search(r"#0[1-9a-f]{5}", re.sub(r"#[a-z]+-", "", plot))
        assert "var(--soft)" in plot
    assert "var(--copy)" in plots[0]  # the third run of the comparison


def test_loads_nothing(page: tuple[str, Page]) -> None:
    html, parsed = page
    assert not {"link", "script", "iframe"} & set(parsed.tags)
    assert not re.search(r"url\((?!#)|@import", html)
    for tag, name, value in parsed.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:80])
    policy = next(value for _, name, value in parsed.attributes if "default-src" in value)
    assert "default-src 'none'" in policy
    assert "script-src" not in policy


def test_texts_cannot_become_markup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = some_clip(0, source_path=HOSTILE, transcript=Transcript(text=f"it says {HOSTILE}"))
    clip.label = HOSTILE
    clip.caption.text = "</td><img src=x onerror=alert(1)> $x_$"
    dataset = write_clips(tmp_path / "set", [clip, some_clip(1)])
    output = tmp_path / "<b>out"
    run(
        monkeypatch,
        lambda row: (
            perfect(row) | {"caption": f"{HOSTILE} \ud800".encode("utf-8", "replace").decode()}
        ),
        dataset=str(dataset),
        output_dir=str(output),
        pdf=True,
    )
    html = (output / "report.html").read_text()
    parsed = Page(html)
    assert "script" not in parsed.tags
    assert "b" in parsed.tags or "<b>out" in parsed.text
    assert not [name for _, name, _ in parsed.attributes if name.startswith("on")]
    assert "<script>alert" not in html
    assert "\u202e" not in html
    assert r"</script> & 'c'" in parsed.text


def test_slices_that_divide_as_another_or_not_at_all_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clips = [some_clip(number) for number in range(4)]
    for clip in clips:
        clip.end_s = 6.0
    dataset, output = write_clips(tmp_path / "set", clips), tmp_path / "out"
    run(monkeypatch, wrong, dataset=str(dataset), output_dir=str(output))
    results = load_results(str(output))
    assert list(results.slices) == ["label", "duration", "source"]
    (group,) = slice_groups(results)
    assert (group.kind, [name for name, _ in group.rows]) == ("label", ["blue", "red"])


def test_on_paper(full_run: Path) -> None:
    pdf = (full_run / "report.pdf").read_bytes()
    assert pdf.startswith(b"%PDF-")
    # Numbers, comparison, distributions, slices, and two pages for each of four lists of examples.
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 4 + 4
    assert b"/CreationDate" not in pdf

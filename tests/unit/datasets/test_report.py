import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_version import HOSTILE, jpeg, make_clip, make_reject, write_version

from spark_ray.core.errors import StorageError
from spark_ray.datasets.contact_sheet import sample_clips, spread
from spark_ray.datasets.layout import frame_name
from spark_ray.datasets.plots import histogram_svg
from spark_ray.datasets.report import write_report
from spark_ray.datasets.statistics import histogram

VOID = {"meta", "img", "br", "input", "link", "rect", "line", "circle", "path", "use"}


class Page(HTMLParser):
    """Checks that elements are closed in order, and collects what tests ask for."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("script", "style"):
            self.text += data

    def ids(self) -> list[str]:
        return [value for _, name, value in self.attributes if name == "id"]


def report(root: Path, *args: Any, **kwargs: Any) -> tuple[str, Page]:
    version, metadata = write_version(root, *args, **kwargs)
    write_report(version, metadata)
    html = version.read("report.html").decode()
    return html, Page(html)


def test_shows_counts_rules_and_clips(tmp_path: Path) -> None:
    clips = [make_clip(i) for i in range(3)]
    _, page = report(tmp_path / "films", clips, filtered=(0.5, 1.5), duplicates=("/films/2.mp4",))
    text = " ".join(page.text.split())
    assert "films v1" in text
    assert "3 kept of 5" in text
    assert "filter min_clip_s = 2 2 40 %" in text
    assert "too little motion: below 0.3 3 25 %" in text
    assert "a red square moves left" in text
    assert "1.00 s: motion (motion 0.2)" in text
    assert "dropped frames: 1 by motion, 1 by duplicate" in text
    assert page.tags.count("img") == 6
    assert page.tags.count("article") == 3


def test_loads_nothing(tmp_path: Path) -> None:
    html, page = report(tmp_path / "films", [make_clip(0)])
    assert "link" not in page.tags
    assert "iframe" not in page.tags
    assert not re.search(r"url\((?!#)|@import", html)
    for tag, name, value in page.attributes:
        if name in ("src", "href", "xlink:href", "srcset", "action", "poster"):
            assert value.startswith(("data:image/jpeg;base64,", "#")), (tag, name, value[:80])
    policy = next(value for _, name, value in page.attributes if "default-src" in value)
    assert "default-src 'none'" in policy


def test_names_cannot_become_markup_or_hide(tmp_path: Path) -> None:
    clip = make_clip(0, source=HOSTILE, caption="</h3><img src=x onerror=alert(1)>")
    clip.label = clip.transcript.text = HOSTILE  # type: ignore[union-attr]
    html, page = report(
        tmp_path / "films",
        [clip],
        rejects=(make_reject(HOSTILE, "<b>bold</b>\x1b[31m \ud800"),),
        duplicates=(HOSTILE,),
    )
    assert page.tags.count("script") == 1
    assert "b" in page.tags
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert "<script>alert" not in html
    assert "\u202e" not in html
    assert "\x1b" not in html
    assert r"<b>bold</b>\x1b[31m \ud800" in page.text
    assert r"</script> & 'c'\nline\u202egnp.mp4" in page.text


def test_a_clip_with_nothing_but_a_frame(tmp_path: Path) -> None:
    clip = make_clip(0, caption=None, frames=1, dropped=())
    clip.transcript, clip.scenes, clip.label = None, [], None
    clip.video.audio_codec = None  # type: ignore[union-attr]
    html, page = report(tmp_path / "films", [clip], smart_sampling=False)
    assert "no caption" in page.text
    assert "No file or clip was rejected" in page.text
    assert "dropped frames" not in page.text
    assert "None" not in page.text.replace("NoneType", "")
    assert "nan" not in html.lower().split("<main>")[1].split("base64")[0]


def test_rejects_show_three_examples_of_each_kind(tmp_path: Path) -> None:
    rejects = tuple(make_reject(f"/films/{i}.mp4", f"message {i}") for i in range(9))
    _, page = report(tmp_path / "films", [make_clip(0)], rejects=rejects)
    assert "message 2" in page.text
    assert "message 3" not in page.text


def test_is_the_same_each_time(tmp_path: Path) -> None:
    version, metadata = write_version(tmp_path / "films", [make_clip(i) for i in range(30)])
    write_report(version, metadata)
    first = version.read("report.html")
    write_report(version, metadata)
    assert version.read("report.html") == first


def test_ids_are_unique(tmp_path: Path) -> None:
    _, page = report(tmp_path / "films", [make_clip(0)], filtered=(0.5, 1.0))
    assert len(page.ids()) == len(set(page.ids()))


def test_parquet_frames_come_from_the_folder_that_still_exists(tmp_path: Path) -> None:
    _, page = report(tmp_path / "films", [make_clip(0)], format="parquet")
    assert page.tags.count("img") == 2


def test_a_lost_frame_is_an_error_that_names_it(tmp_path: Path) -> None:
    clip = make_clip(0)
    version, metadata = write_version(tmp_path / "films", [clip])
    version.remove(frame_name(clip.clip_id, 2))
    with pytest.raises(StorageError, match="frame_000002"):
        write_report(version, metadata)


def test_sample_is_spread_over_the_manifest(tmp_path: Path) -> None:
    clips = [make_clip(i, frames=12, dropped=()) for i in range(60)]
    for clip in clips:
        clip.frames = [jpeg(1, size=64)] * 12
    version, _ = write_version(tmp_path / "films", clips)
    sample = sample_clips(version, 60)
    ids = sorted(clip.clip_id for clip in clips)
    assert len(sample) == 24
    assert sample[0].id == ids[0]
    assert sample[-1].id == ids[-1]
    assert [frame.time for frame in sample[0].frames] == [0.0, 1.0, 1.5, 2.5, 3.0, 4.0, 4.5, 5.5]


def test_large_frames_make_a_smaller_sample(tmp_path: Path) -> None:
    clips = [make_clip(i, frames=3, dropped=()) for i in range(30)]
    for clip in clips:
        clip.frames = [jpeg(1) + bytes(60_000) for _ in clip.frames]
    html, page = report(tmp_path / "films", clips)
    assert page.tags.count("img") == 24
    assert len(html) < 3_000_000
    assert "1 of its 3 frames" in page.text


def test_spread_includes_both_ends() -> None:
    assert spread(3, 8) == [0, 1, 2]
    assert spread(0, 8) == []
    assert spread(100, 3) == [0, 50, 99]
    assert spread(100, 1) == [0]


def test_histogram_takes_its_colours_from_the_page() -> None:
    values = histogram([0.1, 0.2, 0.8], 0.0, 1.0)
    svg = histogram_svg("motion", values, 0.3, lost="below")
    assert not re.search(r"#0[1-9a-f]{5}", svg.replace("#motion-", ""))
    assert "var(--lost)" in svg
    assert "stroke: var(--ink)" in svg
    assert "<metadata" not in svg
    assert "http" not in svg

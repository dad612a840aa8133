import json
from pathlib import Path

import pytest
from fake_version import HOSTILE, make_clip, make_reject, write_version

from spark_ray.core.errors import DatasetError
from spark_ray.datasets.layout import METADATA
from spark_ray.datasets.views import dataset_stats, inspect_dataset


def words(text: str) -> str:
    return " ".join(text.split())


def test_inspect_shows_a_dataset_at_a_glance(tmp_path: Path) -> None:
    write_version(
        tmp_path / "films",
        [make_clip(i) for i in range(12)],
        rejects=(make_reject("/films/x.mp4", "it is cut off"),),
        filtered=(0.5,),
        fps=2.0,
    )
    text = words(inspect_dataset(str(tmp_path / "films")))
    assert text.startswith("films@v1")
    assert "clips 12 from 12 videos" in text
    assert "v1 * 12 from 12 videos 24" in text
    assert "filter min_clip_s = 2" in text
    assert "decode CorruptMedia 1" in text
    assert "fps 2" in text
    assert text.count("a red square moves left") == 8


def test_inspect_lists_other_versions_even_if_damaged(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path / "films", [make_clip(0)])
    damaged = tmp_path / "films" / "v2"
    damaged.mkdir()
    (damaged / METADATA).write_bytes(b"{")
    unfinished = tmp_path / "films" / "v3" / "parts"
    unfinished.mkdir(parents=True)
    (unfinished / "recipe.json").write_bytes(b"{}")
    text = words(inspect_dataset(version.location))
    assert "v2 metadata.json is damaged" in text
    assert "v3 not finished" in text


def test_inspect_one_clip_in_full(tmp_path: Path) -> None:
    clip = make_clip(0)
    write_version(tmp_path / "films", [clip, make_clip(1)])
    for identity in (clip.clip_id, clip.clip_id[:10]):
        text = words(inspect_dataset(str(tmp_path / "films"), identity))
        assert text.startswith(clip.clip_id)
        assert "0.00–1.00 s it moves" in text
        assert "2.500–6.000 s" in text
        assert "1.00 s: motion (motion 0.2)" in text
        assert "frames/frame_000002.jpg" in text


def test_inspect_names_clips_that_do_not_exist_or_are_several(tmp_path: Path) -> None:
    write_version(tmp_path / "films", [make_clip(i) for i in range(3)])
    with pytest.raises(DatasetError, match="no clip of this id"):
        inspect_dataset(str(tmp_path / "films"), "nothing")
    with pytest.raises(DatasetError, match="several clips begin so"):
        inspect_dataset(str(tmp_path / "films"), "")


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    clip = make_clip(0, source=HOSTILE + "\x1b[2J", caption="[bold]x[/] \x1b]0;title\x07")
    write_version(tmp_path / "films", [clip])
    for text in (
        inspect_dataset(str(tmp_path / "films")),
        inspect_dataset(str(tmp_path / "films"), clip.clip_id),
    ):
        assert "\x1b" not in text
        assert "\u202e" not in text
        assert r"[bold]x[/] \x1b]0;title\x07" in text


def test_stats_count_the_manifest_anew(tmp_path: Path) -> None:
    version, metadata = write_version(tmp_path / "films", [make_clip(i) for i in range(4)])
    for reference in (str(tmp_path / "films"), version / "manifest.jsonl"):
        result = json.loads(dataset_stats(reference, as_json=True))
        assert result["statistics"] == metadata["statistics"]
        assert result["broken_lines"] == {"count": 0, "examples": []}
    text = words(dataset_stats(str(tmp_path / "films")))
    assert "clips 4 from 4 videos" in text
    assert "h264 4" in text
    assert "can't be used" not in text


def test_stats_pass_over_broken_lines_and_say_so(tmp_path: Path) -> None:
    version, _ = write_version(tmp_path / "films", [make_clip(i) for i in range(4)])
    good = version.read("manifest.jsonl").splitlines(keepends=True)
    version.write("manifest.jsonl", b"".join([good[0], b"\n", b"{\n", *good[1:], b"[]"]))
    result = json.loads(dataset_stats(str(tmp_path / "films"), as_json=True))
    assert result["statistics"]["clips"] == 4
    assert [example["line"] for example in result["broken_lines"]["examples"]] == [2, 3, 7]
    text = words(dataset_stats(str(tmp_path / "films")))
    assert "3 lines of the manifest can't be used line 2 it is empty" in text
    assert "can't be used" in inspect_dataset(str(tmp_path / "films"))


def test_stats_of_an_empty_manifest(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_bytes(b"")
    assert "clips 0 from 0 videos" in words(dataset_stats(str(tmp_path / "manifest.jsonl")))


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("notes.txt", b"buy milk\nbuy bread\n", r"no line .* \(line 1: it is not valid JSON"),
        ("rejects.jsonl", b"", "it is empty"),
        ("rejects.jsonl", b'{"id": "x"}\n', r"no line .* \(line 1: it has no meta"),
        ("manifest.jsonl", b"\n{\n", r"no line .* \(line 1: it is empty"),
    ],
)
def test_a_file_without_one_line_of_a_manifest_is_none(
    tmp_path: Path, name: str, data: bytes, reason: str, as_json: bool
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DatasetError, match=f"{name}: it is no manifest, as {reason}.*manifest"):
        dataset_stats(str(tmp_path / name), as_json=as_json)

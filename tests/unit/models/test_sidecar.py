import csv
import json
import logging
from pathlib import Path

import pytest

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.core.schema import Caption, Clip
from spark_ray.models.captioning import CaptionOptions, build_captioner
from spark_ray.models.sidecar_files import MAX_SIDECAR_BYTES, SidecarError, decode_text

SRT = """1
00:00:00,500 --> 00:00:02,000
A red <i>circle</i> moves left.

2
00:00:02,000 --> 00:00:04,000
A blue square
stands still.
"""


def make_clip(
    start_s: float = 0.0, end_s: float | None = 4.0, *, sidecars: tuple[Path, ...] = ()
) -> Clip:
    return Clip(
        clip_id=f"0a1b-{start_s}",
        video_id="0a1b",
        unit_id="unit",
        source_path="s3://raw/train/street.mp4",
        start_s=start_s,
        end_s=end_s,
        sidecars=[str(path) for path in sidecars],
    )


def captions_of(clips: list[Clip], captions_file: Path | None = None) -> dict[str, Caption]:
    options = CaptionOptions(captions_file=captions_file and str(captions_file))
    captioner = build_captioner(options)
    assert captioner.load() is None
    return captioner.caption(clips)


def caption_of(clip: Clip, captions_file: Path | None = None) -> Caption | None:
    return captions_of([clip], captions_file).get(clip.clip_id)


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("a.txt", "A red circle\n moves left. \n", Caption(text="A red circle moves left.",
            all_captions=["A red circle moves left."])),
        ("a.json", '"one"', Caption(text="one", all_captions=["one"])),
        ("a.json", '["one", "two"]', Caption(text="one", all_captions=["one", "two"])),
        ("a.json", '{"caption": "one"}', Caption(text="one", all_captions=["one"])),
        ("a.json", '{"text": " one "}', Caption(text="one", all_captions=["one"])),
        ("a.json", '{"captions": ["one", {"caption": "two"}]}',
            Caption(text="one", all_captions=["one", "two"])),
        ("a.json", '{"segments": [{"start": 0, "end": 1, "text": "one"}]}',
            Caption(text="one", all_captions=["one"])),
    ],
)  # fmt: skip
def test_forms_of_a_sidecar(name: str, content: str, caption: Caption, tmp_path: Path) -> None:
    assert caption_of(make_clip(sidecars=(write(tmp_path / name, content),))) == caption


@pytest.mark.parametrize(
    ("start_s", "end_s", "cues"),
    [
        (0.0, 4.0, ["A red circle moves left.", "A blue square stands still."]),
        (0.0, 2.0, ["A red circle moves left."]),
        (2.0, 4.0, ["A blue square stands still."]),
        (1.9, 2.1, ["A red circle moves left.", "A blue square stands still."]),
        (3.0, None, ["A blue square stands still."]),
        (4.0, 9.0, []),
    ],
)
@pytest.mark.parametrize("kind", ["srt", "vtt"])
def test_a_clip_gets_the_cues_of_its_span(
    kind: str, start_s: float, end_s: float | None, cues: list[str], tmp_path: Path
) -> None:
    text = SRT if kind == "srt" else "WEBVTT\n\n" + SRT.replace(",", ".")
    sidecar = write(tmp_path / f"a.{kind}", text)
    caption = caption_of(make_clip(start_s, end_s, sidecars=(sidecar,)))
    assert caption == (Caption(text=" ".join(cues), all_captions=cues) if cues else None)


def test_json_comes_before_text_and_text_before_subtitles(tmp_path: Path) -> None:
    files = [
        write(tmp_path / "a.srt", SRT),
        write(tmp_path / "a.txt", "from txt"),
        write(tmp_path / "a.json", '"from json"'),
        write(tmp_path / "a.nfo", "ignored"),
    ]
    for expected, sidecars in (("from json", files), ("from txt", files[:2])):
        caption = caption_of(make_clip(sidecars=tuple(sidecars)))
        assert caption is not None
        assert caption.text == expected


def test_what_is_named_a_caption_comes_first(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.json", '"from json"'), write(tmp_path / "a.caption.srt", SRT)]
    caption = caption_of(make_clip(0.0, 1.0, sidecars=tuple(files)))
    assert caption is not None
    assert caption.text != "from json"


def test_texts_beside_copies_are_further_captions(tmp_path: Path) -> None:
    texts = {"a": "a street", "b": "cars wait", "c": " a street\n", "d": " "}
    files = [write(tmp_path / f"{name}.txt", text) for name, text in texts.items()]
    subtitles = write(tmp_path / "b.srt", SRT)
    expected = Caption(text="a street", all_captions=["a street", "cars wait"])
    assert caption_of(make_clip(sidecars=(*files, subtitles))) == expected
    named = write(tmp_path / "b.caption.txt", "it rains")
    expected = Caption(text="it rains", all_captions=["it rains"])
    assert caption_of(make_clip(sidecars=(*files, named))) == expected


def test_a_clip_without_a_sidecar_is_left_out(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.txt", "\n")
    metadata = write(tmp_path / "metadata.json", '{"views": 3}')
    clips = [make_clip(), make_clip(1.0, sidecars=(empty,)), make_clip(2.0, sidecars=(metadata,))]
    assert captions_of(clips) == {}


CUE = "1\n00:00:01.000 --> 00:00:02.000\nok"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{caption: broken", "can't be understood: Expecting property name"),
        ("a.json", '[{"views": 3}]', "no caption in it; expected one of: caption, text"),
        ("a.json", '{"caption": "a", "start": "soon"}', "expected a time in seconds"),
        ("a.json", "[" * 100_000, "can't be understood"),
        ("a.srt", "just some prose", "holds no cue with times"),
        ("a.vtt", "WEBVTT\n\nnot a cue", "holds no cue with times"),
        ("a.srt", f"{CUE}\n\n2\n00:00:99 --> oops\nbroken", "'00:00:99 --> oops' are no times"),
        ("a.vtt", f"WEBVTT\n\n{CUE}\n\n00:7 --> later\nbroken", "'00:7 --> later' are no times"),
    ],
)
def test_a_malformed_sidecar_is_an_error_that_names_it(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    sidecar = write(tmp_path / name, content)
    with pytest.raises(SidecarError, match=message) as caught:
        caption_of(make_clip(sidecars=(sidecar,)))
    assert str(sidecar) in str(caught.value)


def test_an_enormous_or_missing_sidecar_is_an_error(tmp_path: Path) -> None:
    sidecar = write(tmp_path / "a.txt", b"x" * (MAX_SIDECAR_BYTES + 1))
    with pytest.raises(StorageError, match="larger than"):
        caption_of(make_clip(sidecars=(sidecar,)))
    with pytest.raises(StorageError, match="does not exist"):
        caption_of(make_clip(sidecars=(tmp_path / "gone.txt",)))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_guessed(encoding: str) -> None:
    assert decode_text("Ein Käfer läuft über Straße".encode(encoding)) == (
        "Ein Käfer läuft über Straße"
    )


def test_notes_styles_names_and_entities_of_webvtt_are_no_text(tmp_path: Path) -> None:
    vtt = (
        "WEBVTT - title\n\nSTYLE\n::cue { color: red }\n\nNOTE a remark\nof two lines\n\n"
        "intro\n00:01.000 --> 00:02.000 align:start\n<v Anna>Tom &amp; I</v>\n\n"
        "NOTE another\n\nouter name\n00:00:02.500 --> 00:00:03.000\n<c.yellow>run</c>\n"
    )
    caption = caption_of(make_clip(sidecars=(write(tmp_path / "a.vtt", vtt),)))
    assert caption == Caption(text="Tom & I run", all_captions=["Tom & I", "run"])


ROWS = [
    {"video_id": "0a1b", "caption": "by id"},
    {"video_id": "s3://raw/train/street.mp4", "caption": "by path"},
    {"video_id": "train/street.mp4", "caption": "by relative path"},
    {"video_id": "street.mp4", "caption": "by name"},
    {"video_id": "street", "caption": "by stem"},
]


def write_captions(path: Path, rows: list[dict[str, str]]) -> Path:
    if path.suffix == ".jsonl":
        return write(path, "".join(json.dumps(row) + "\n\n" for row in rows))
    if path.suffix == ".json":
        return write(path, json.dumps(rows))
    with path.open("w", newline="") as file:
        delimiter = "\t" if path.suffix == ".tsv" else ","
        writer = csv.DictWriter(file, rows[0].keys(), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv"])
def test_the_most_precise_key_of_a_captions_file_wins(kind: str, tmp_path: Path) -> None:
    for first in range(len(ROWS)):
        file = write_captions(tmp_path / f"c.{kind}", ROWS[first:][::-1])
        caption = caption_of(make_clip(), file)
        assert caption is not None
        assert caption.text == ROWS[first]["caption"]


@pytest.mark.parametrize(
    "content",
    [
        {"street.mp4": "one"},
        {"street.mp4": ["one", "two"]},
        {"annotations": [{"file_name": "street.mp4", "caption": "one"}]},
        {"sentences": [{"video_id": "street", "caption": "one"}], "videos": [{"id": 1}]},
    ],
)
def test_forms_of_a_json_captions_file(content: object, tmp_path: Path) -> None:
    file = write(tmp_path / "c.json", json.dumps(content))
    caption = caption_of(make_clip(), file)
    assert caption is not None
    assert caption.text == "one"


def test_timed_rows_go_to_the_clips_that_they_overlap(tmp_path: Path) -> None:
    rows = [
        {"file": "street.mp4", "caption": "late", "start": "2", "end": "4"},
        {"file": "street.mp4", "caption": "early", "start": "0", "end": "2"},
        {"file": "street.mp4", "caption": "of the whole", "start": "", "end": ""},
    ]
    file = write_captions(tmp_path / "c.csv", rows)
    captions = captions_of([make_clip(0, 2), make_clip(2, 4), make_clip(4, 6)], file)
    assert [caption.text for caption in captions.values()] == ["early", "late"]


@pytest.mark.parametrize(
    ("start_s", "end_s", "captions"),
    [
        (0.0, 10.0, ["a dog", "a fence"]),
        (5.0, 12.0, ["a dog", "a fence", "a cat"]),
        (20.0, 25.0, ["a cat"]),
        (20.0, None, ["a cat"]),
    ],
)
def test_a_caption_without_an_end_lasts_until_the_next_one(
    start_s: float, end_s: float | None, captions: list[str], tmp_path: Path
) -> None:
    rows = [(10, "a cat"), (0, "a dog"), (0, "a fence")]
    content = {"captions": [{"start": start, "text": text} for start, text in rows]}
    sidecar = write(tmp_path / "a.json", json.dumps(content))
    assert caption_of(make_clip(start_s, end_s, sidecars=(sidecar,))) == Caption(
        text=" ".join(captions), all_captions=captions
    )


def test_a_captions_file_goes_before_sidecars_and_they_fill_its_gaps(tmp_path: Path) -> None:
    file = write_captions(tmp_path / "c.jsonl", [{"video_id": "0a1b", "caption": "from file"}])
    sidecar = write(tmp_path / "a.txt", "from sidecar")
    known = make_clip(sidecars=(sidecar,))
    other = make_clip(9.0, None, sidecars=(sidecar,)).model_copy(
        update={"video_id": "ffff", "source_path": "other.mp4"}
    )
    texts = [caption.text for caption in captions_of([known, other], file).values()]
    assert texts == ["from file", "from sidecar"]


@pytest.mark.parametrize(
    ("key", "warnings"),
    [("street.mp4", 1), ("street", 1), ("train/street.mp4", 0), ("0a1b", 0)],
)
def test_a_bare_name_that_captions_files_of_several_folders_is_told_once(
    key: str, warnings: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = write_captions(tmp_path / "c.jsonl", [{"key": key, "caption": "one for all"}])
    folders = ("raw/train", "raw/train", "raw/test", "raw/validation")
    clips = [
        make_clip(float(number)).model_copy(update={"source_path": f"s3://{folder}/street.mp4"})
        for number, folder in enumerate(folders)
    ]
    with caplog.at_level(logging.WARNING):
        captions_of(clips, file)
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == warnings
    assert all("in s3://raw/train and in s3://raw/test alike" in message for message in told)


def test_broken_rows_are_counted_and_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = '{"file": "street.mp4", "caption": "good"}\n{"file": \n[]\n{"caption": "whose?"}\n'
    with caplog.at_level(logging.WARNING):
        caption = caption_of(make_clip(), write(tmp_path / "c.jsonl", text))
    assert caption is not None
    assert caption.text == "good"
    assert "skipped 3 rows, line 2: " in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("c.jsonl", "", "it is empty"),
        ("c.jsonl", '{"caption": "whose?"}', "no video is named; expected one of: clip_id"),
        ("c.json", "[", "is no valid JSON"),
        ("c.json", "3", "expected an object"),
        ("c.csv", 'file,caption\na,"' + "x" * 200_000, "is no valid csv"),
    ],
)
def test_a_captions_file_without_captions_is_an_error(
    name: str, content: str, message: str, tmp_path: Path
) -> None:
    with pytest.raises(SidecarError, match=message):
        caption_of(make_clip(), write(tmp_path / name, content))


def test_a_captions_file_of_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"must be a \.jsonl"):
        caption_of(make_clip(), write(tmp_path / "c.xlsx", "x"))

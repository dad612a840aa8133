"""What docs/how-to/build.md tells people to type and to program, to the letter, in its order.

All but the models of a hub, which is not here.
"""

import re
import shlex
import shutil
from pathlib import Path

import boto3
import builds
import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "build.md").read_text()
CLIPS = range(1, 7)
SOME_CLIP = "0123456789abcdef-00000000-00004000"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


@pytest.fixture
def home(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that the page takes for granted, as the working directory."""
    for folder in ("videos", "demo/clips"):
        builds.write_numbers(tmp_path / folder, CLIPS)
    (tmp_path / "videos" / "broken.mp4").write_bytes(b"no video")
    unlike = (0b01010101, 0b10101010, 0b01010101)
    builds.write_counting(tmp_path / "films" / "film.mp4", unlike, seconds_each=12)
    captions = [f"clip_{number:03d}.mp4,number {number} of a file" for number in CLIPS]
    (tmp_path / "captions.csv").write_text("\n".join(["video,caption", *captions]))
    bucket = boto3.resource("s3").create_bucket(Bucket="raw")
    for path in (tmp_path / "demo" / "clips").iterdir():
        bucket.upload_file(str(path), f"videos/{path.name}")
    (tmp_path / "jobs").mkdir()
    shutil.copy(ROOT / "jobs" / "build_dataset.yaml", tmp_path / "jobs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_command_of_the_page_does_what_it_says(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    street = home / "datasets" / "street"
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "blip" in words:
            continue
        if words[:3] == ["spark-ray", "data", "replay"]:
            builds.write_number(home / "videos" / "broken.mp4", 9)
        if SOME_CLIP in words:
            words[words.index(SOME_CLIP)] = builds.manifest(street / "v1")[0]["id"]
        with monkeypatch.context() as only_here:
            while "=" in words[0]:
                only_here.setenv(*words.pop(0).split("=", 1))
            assert words[0] == "spark-ray"
            assert builds.main_here(*words[1:]) == 0, line + capsys.readouterr().err

    sizes = [len(builds.manifest(version)) for version in sorted(street.iterdir())]
    assert sizes == [len(CLIPS), len(CLIPS), len(CLIPS) + 1], "a replay has what was mended"
    captions = {line["meta"]["caption"] for line in builds.manifest(street / "v2")}
    assert captions == {f"number {number} of a file" for number in CLIPS}
    films = builds.manifest(home / "datasets" / "films" / "v1")
    assert len(films) == 3, "a clip a scene"
    configured = [
        builds.manifest(home / "datasets" / "multimodal" / version) for version in ("v1", "v2")
    ]
    assert [len(lines) for lines in configured] == [len(CLIPS), len(CLIPS)]
    assert list((home / "exported").rglob("*.tar"))
    told = capsys.readouterr().out
    assert "s3://sets/street/v1" in told


def test_the_programs_of_the_page_run(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build, read = blocks("python")
    names: dict[str, object] = {}

    exec(build.replace("fps=2.0", 'fps=2.0, format="both"'), names)
    # The workers of this cluster were started elsewhere; a user's are where the program is.
    exec(read.replace('"datasets/', f'"{home}/datasets/'), names)

    told = capsys.readouterr().out
    assert f"{builds.caption_of_number(3)} " in told
    assert names["clips"].count() == len(CLIPS)  # type: ignore[attr-defined]

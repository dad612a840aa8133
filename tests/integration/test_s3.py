"""The same builds on object storage, over HTTP to a real S3 server: moto's."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import boto3
import builds
import pytest

from spark_ray.core.errors import ModelError
from spark_ray.models.weights import SAFETENSORS, Weights, resolve_weights

SETTINGS: dict[str, Any] = {"split": "fixed", "clip_max_s": 1, "fps": 2}
NOBODY_LISTENS = "http://127.0.0.1:9"
BOUND_S = 60


@pytest.fixture(scope="module")
def raw(s3: str, numbers: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A prefix with sixteen videos and their captions, a long one, a broken one and a copy."""
    bucket = boto3.resource("s3").create_bucket(Bucket="raw")
    for path in numbers.iterdir():
        bucket.upload_file(str(path), f"videos/{path.name}")
    counting = builds.write_counting(
        tmp_path_factory.mktemp("raw") / "counting.mp4", range(100, 112)
    )
    bucket.upload_file(str(counting), "videos/deep/er/counting.mp4")
    bucket.put_object(Key="videos/broken.mp4", Body=b"no video")
    bucket.upload_file(str(numbers / "clip_001.mp4"), "videos/z_copy.mp4")
    return "s3://raw/videos"


@pytest.fixture(scope="module")
def local(raw: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The version that the same build writes into a folder, by its format."""
    made: dict[str, Path] = {}

    def build(form: str) -> Path:
        if form not in made:
            output = tmp_path_factory.mktemp(form) / "set"
            made[form] = builds.build(raw, output, format=form, shard_bytes=65536, **SETTINGS)
        return made[form]

    return build


def download(prefix: str, to: Path) -> Path:
    """Every object below `prefix` in the bucket `sets`, as files."""
    for item in boto3.resource("s3").Bucket("sets").objects.filter(Prefix=f"{prefix}/"):
        path = to / item.key.removeprefix(f"{prefix}/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(item.get()["Body"].read())
    return to


def keys(prefix: str) -> list[str]:
    found = boto3.resource("s3").Bucket("sets").objects.filter(Prefix=f"{prefix}/")
    return [item.key for item in found]


@pytest.mark.parametrize("form", ["files", "parquet"])
def test_a_dataset_on_s3_is_the_dataset_in_a_folder(
    local: Callable[[str], Path], raw: str, tmp_path: Path, form: str
) -> None:
    """Input, captions and output on S3: byte for byte what a folder gets."""
    status = builds.main_here(
        *builds.build_command(
            raw, f"s3://sets/{form}/set", format=form, shard_bytes=65536, **SETTINGS
        )[3:]
    )

    assert status == 0
    version = download(f"{form}/set/v1", tmp_path / "v1")
    builds.assert_same(version, local(form))
    captions = {
        line["meta"]["source_path"]: line["meta"]["caption"] for line in builds.manifest(version)
    }
    assert captions["s3://raw/videos/clip_003.mp4"] == builds.caption_of_number(3)
    assert len(captions) == 17


def test_killed_on_s3_and_resumed(local: Callable[[str], Path], raw: str, tmp_path: Path) -> None:
    command = builds.build_command(
        raw, "s3://sets/killed/set", format="files", shard_bytes=65536, **SETTINGS
    )
    driver = builds.start(command)
    builds.wait_until(
        lambda: len(keys("killed/set/v1/parts/committed")) >= 4, "4 parts", driver=driver
    )
    builds.kill(driver)
    assert "killed/set/v1/metadata.json" not in keys("killed/set/v1"), "killed too late"

    resumed = builds.run(command)

    builds.assert_published(resumed)
    assert "units are done" in resumed.stderr
    builds.assert_same(download("killed/set/v1", tmp_path / "v1"), local("files"))


def test_rejects_are_replayed_on_s3(s3: str, raw: str, numbers: Path, tmp_path: Path) -> None:
    bucket = boto3.resource("s3").Bucket("raw")
    bucket.upload_file(str(numbers / "clip_001.mp4"), "few/good.mp4")
    bucket.put_object(Key="few/mended.mp4", Body=b"not yet")
    output = "s3://sets/replayed/set"
    assert builds.main_here(*builds.build_command("s3://raw/few", output)[3:]) == 0
    before = builds.contents(download("replayed/set/v1", tmp_path / "before"))
    bucket.upload_file(str(numbers / "clip_002.mp4"), "few/mended.mp4")

    assert builds.main_here("data", "replay", output) == 0

    assert builds.contents(download("replayed/set/v1", tmp_path / "after")) == before
    second = download("replayed/set/v2", tmp_path / "v2")
    sources = {Path(line["meta"]["source_path"]).name for line in builds.manifest(second)}
    assert sources == {"good.mp4", "mended.mp4"}
    for line in builds.manifest(second):
        assert len(list((second / line["frames_dir"]).iterdir())) == line["meta"]["num_frames"]


def test_what_others_wrote_into_an_exported_bucket(s3: str, raw: str, tmp_path: Path) -> None:
    """Export reads from S3 and writes to S3, and won't write among files that are there."""
    source = "s3://raw/videos/deep"
    assert builds.main_here(*builds.build_command(source, "s3://sets/exported/set")[3:]) == 0
    export = ("data", "export", "s3://sets/exported/set", "--to", "s3://sets/tars")
    assert builds.main_here(*export) == 0
    assert keys("tars") == ["tars/00000.tar", "tars/metadata.json"]
    assert builds.main_here(*export) == 2


# ---- when it can't be reached ------------------------------------------------------------------


def timed(command: list[str], **env: str) -> Any:
    started = time.monotonic()
    done = builds.run(command, env=env, timeout=2 * BOUND_S)
    assert time.monotonic() - started < BOUND_S
    return done


def test_no_endpoint_to_read_from(s3: str, tmp_path: Path) -> None:
    command = builds.build_command("s3://raw/videos", tmp_path / "set")
    done = timed(command, AWS_ENDPOINT_URL=NOBODY_LISTENS)
    said = builds.assert_one_sentence(done, 1)
    assert "s3://raw/videos" in said
    assert "the endpoint can't be reached" in said


def test_no_endpoint_to_write_to(s3: str, numbers: Path) -> None:
    command = builds.build_command(numbers, "s3://sets/nowhere/set")
    done = timed(command, AWS_ENDPOINT_URL=NOBODY_LISTENS)
    said = builds.assert_one_sentence(done, 1)
    assert "s3://sets/nowhere/set" in said
    assert "the endpoint can't be reached" in said


def test_no_such_bucket(s3: str, numbers: Path, tmp_path: Path) -> None:
    reading = timed(builds.build_command("s3://no-such-bucket/videos", tmp_path / "set"))
    assert "s3://no-such-bucket/videos" in builds.assert_one_sentence(reading, 2)

    writing = timed(builds.build_command(numbers, "s3://no-such-bucket/set"))
    assert "s3://no-such-bucket/set" in builds.assert_one_sentence(writing, 1)


@pytest.fixture
def strict(s3: str) -> Iterator[None]:
    """The server checks keys, as it otherwise does not."""
    reset = f"{s3}/moto-api/reset-auth"
    for after in ("0", "inf"):
        with urlopen(
            Request(reset, data=after.encode(), headers={"Content-Type": "text/plain"})
        ) as answer:
            assert answer.status == 200
        if after == "0":
            yield


@pytest.mark.usefixtures("strict")
def test_wrong_keys(numbers: Path, tmp_path: Path) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "AKIAWRONG", "AWS_SECRET_ACCESS_KEY": "wrong"}

    reading = timed(builds.build_command("s3://raw/videos", tmp_path / "set"), **wrong)
    said = builds.assert_one_sentence(reading, 1)
    assert "s3://raw/videos" in said
    assert "credentials" in said

    writing = timed(builds.build_command(numbers, "s3://sets/forbidden/set"), **wrong)
    assert "credentials" in builds.assert_one_sentence(writing, 1)


def test_no_keys_at_all(s3: str, tmp_path: Path) -> None:
    command = builds.build_command("s3://raw/videos", tmp_path / "set")
    nothing = {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "HOME": str(tmp_path)}
    done = timed(command, **nothing)
    assert "set AWS_ACCESS_KEY_ID" in builds.assert_one_sentence(done, 1)
    assert os.environ["AWS_ACCESS_KEY_ID"] == "testing"


def test_a_model_in_a_bucket_is_fetched_once_and_anew_when_it_has_changed(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = boto3.resource("s3").Bucket("sets")
    files = {"config.json": b"{}", "model.safetensors": b"one", "notes.md": b"no part of a model"}
    for name, data in files.items():
        bucket.put_object(Key=f"models/blip/{name}", Body=data)

    def resolve(name: str = "blip") -> Weights:
        return resolve_weights(
            f"s3://sets/models/{name}", setting="caption_model", revision=None, kind=SAFETENSORS,
            instead="train one",
        )  # fmt: skip

    first = resolve()
    assert sorted(path.name for path in first.folder.iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    assert resolve() == first

    bucket.put_object(Key="models/blip/model.safetensors", Body=b"two")
    second = resolve()
    assert [file.read_bytes() for file in second.files] == [b"two"]
    assert first.files[0].read_bytes() == b"one", "a build may still be loading it"

    with pytest.raises(ModelError, match="s3://sets/models/blop holds no file of a model"):
        resolve("blop")

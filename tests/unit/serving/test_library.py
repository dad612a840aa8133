"""Published datasets as the server reads them: by name, and without a word on where they lie."""

import base64
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "datasets"))
from fake_version import make_clip, write_version

from spark_ray.core.errors import ConfigError
from spark_ray.core.schema import ModelInfo, Step
from spark_ray.datasets.browsing import ClipQuery
from spark_ray.serving import library as library_module
from spark_ray.serving.cluster import queue_depths
from spark_ray.serving.dataset_names import DatasetNames, name_of, without_location
from spark_ray.serving.errors import ApiError
from spark_ray.serving.keys import Caller
from spark_ray.serving.library import Library
from spark_ray.serving.messages import DatasetPlace
from spark_ray.serving.search import _Index
from spark_ray.serving.settings import ServeSettings

ME = Caller("key-me", "me", frozenset({"infer"}), 60, 2)


def place_of(folder: Path, reference: str = "") -> DatasetPlace:
    return DatasetPlace(
        name=folder.name, reference=reference or str(folder), owned=False, searchable=True
    )


def write(folder: Path, count: int = 3, name: str = "v1") -> None:
    clips = [make_clip(number, source=f"/films/{number}.mp4") for number in range(count)]
    write_version(folder, clips, name=name)


@pytest.mark.parametrize(
    ("reference", "name"),
    [("/sets/street", "street"), ("/sets/street/", "street"), ("/sets/street@v3", "street"),
     ("s3://sets@home/street", "street"), ("street", "street")],
)  # fmt: skip
def test_a_dataset_is_called_what_its_folder_is(reference: str, name: str) -> None:
    assert name_of(reference) == name


def test_two_datasets_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="'street'"):
        ServeSettings.from_values(datasets=["/a/street", "/b/street@v1"])


def test_names_lead_to_what_is_there_and_nowhere_else(tmp_path: Path) -> None:
    write(tmp_path / "built" / "key-me" / "mine")
    write(tmp_path / "built" / "key-other" / "theirs")
    names = DatasetNames([str(tmp_path / "street")], str(tmp_path / "built"))
    assert [place.name for place in names.all(ME)] == ["street", "mine:mine"]
    assert names.find("mine:mine", ME).reference == str(tmp_path / "built" / "key-me" / "mine")
    for name in ("mine", "mine:theirs", "mine:../key-other/theirs", "theirs", "..", ""):
        with pytest.raises(ApiError, match="known: street, mine:mine"):
            names.find(name, ME)
    assert names.searchable(None).name == "street"
    assert names.searchable(str(tmp_path / "street")).name == "street"
    with pytest.raises(ApiError, match="known: street"):
        names.searchable("mine:mine")


def test_a_pinned_version_is_the_only_one(tmp_path: Path) -> None:
    for name in ("v1", "v2"):
        write(tmp_path / "films", name=name)
    library = Library()
    summary = library.summary(place_of(tmp_path / "films", f"{tmp_path}/films@v1"))
    assert [version.version for version in summary.versions] == ["v1"]
    with pytest.raises(ApiError, match="films@v2"):
        library.version(place_of(tmp_path / "films", f"{tmp_path}/films@v1"), "v2")


def test_a_dataset_that_is_broken_says_so_by_its_name(tmp_path: Path) -> None:
    write(tmp_path / "films")
    (tmp_path / "films" / "v1" / "metadata.json").write_text("{")
    summary = Library().summary(place_of(tmp_path / "films"))
    assert summary.versions == []
    assert summary.problem is not None
    assert "not valid JSON" in summary.problem
    assert str(tmp_path) not in summary.problem
    pinned = place_of(tmp_path / "films", f"{tmp_path}/films@v1")
    assert without_location(pinned, f"{tmp_path}/films@v1: gone") == "films: gone"


def test_another_dataset_in_the_same_place_is_another(tmp_path: Path) -> None:
    library, place = Library(), place_of(tmp_path / "films")
    write(tmp_path / "films", count=2)

    def total() -> int:
        return library.clips(place, "v1", ClipQuery(), (0, 10), 0).total

    assert total() == 2
    metadata = tmp_path / "films" / "v1" / "metadata.json"
    earlier = metadata.read_text()
    shutil.rmtree(tmp_path / "films")
    write(tmp_path / "films", count=3)
    assert total() == 2, "by its hash it is the same"
    metadata.write_text(earlier.replace("0" * 64, "1" * 64))
    assert total() == 3


def test_memory_holds_a_bounded_number_of_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library_module, "_MOST_CLIPS_HELD", 4)
    library = Library()
    for name in ("a", "b", "c"):
        write(tmp_path / name, count=3)
        assert library.index(str(tmp_path / name)).table.num_rows == 3
    assert len(library._indices) == 1
    write(tmp_path / "large", count=9)
    assert library.index(str(tmp_path / "large")).table.num_rows == 9, "however large it is"


def test_an_asset_is_called_by_its_id_and_not_by_where_it_is_kept(tmp_path: Path) -> None:
    asset = f"asset-{'5' * 24}"
    sources = [f"/srv/state/assets/55/{asset}/file", "s3://films/file"]
    clips = [make_clip(number, source=source) for number, source in enumerate(sources)]
    write_version(tmp_path / "films", clips, name="v1")
    library, place = Library(), place_of(tmp_path / "films")
    page = library.clips(place, "v1", ClipQuery(), (0, 2), 0)
    assert {clip.source_path for clip in page.clips} == {asset, "s3://films/file"}
    for summary in page.clips:
        clip = library.clip(place, "v1", summary.id, 0)
        assert clip.record["source_path"] == summary.source_path
        assert "/srv/state" not in clip.model_dump_json()
    vectors = np.eye(2, dtype=np.float32)
    hits = _Index(library.index(str(tmp_path / "films")), vectors).nearest(vectors[0], 2)
    assert {hit.source_path for hit in hits} == {asset, "s3://films/file"}
    assert library.clips(place, "v1", ClipQuery(text=asset), (0, 2), 0).total == 1
    assert library.clips(place, "v1", ClipQuery(text="/srv/state"), (0, 2), 0).total == 0


def test_what_a_clip_was_cut_from_and_made_with_is_told_by_name(tmp_path: Path) -> None:
    clip = make_clip(0, source="/srv/films/a b.mp4")
    model = ModelInfo(name="/srv/models/blip", revision=None, weights_hash=None)
    clip.steps.append(Step(name="caption", duration_s=1.0, model=model))
    write_version(tmp_path / "films", [clip])
    library, place = Library(), place_of(tmp_path / "films")
    (summary,) = library.clips(place, "v1", ClipQuery(), (0, 2), 0).clips
    assert summary.source_path == "a b.mp4"
    shown = library.clip(place, "v1", summary.id, 0)
    assert shown.record["source_path"] == "a b.mp4"
    steps = shown.record["provenance"]["lineage"]["processing_steps"]
    assert steps[-1]["model"]["name"] == "…/blip"
    details = library.version(place, "v1")
    assert list(details.counts["models"]) == ["…/blip"]
    for answer in (shown, details):
        assert "/srv" not in answer.model_dump_json()


def test_frames_are_counted_from_one(tmp_path: Path) -> None:
    write(tmp_path / "films")
    library, place = Library(), place_of(tmp_path / "films")
    page = library.clips(place, "v1", ClipQuery(), (0, 1), 2)
    clip = page.clips[0]
    assert (page.total, clip.frames, len(clip.thumbnails)) == (3, 2, 2)
    whole = library.frame(place, "v1", clip.id, 1)
    assert len(base64.b64decode(clip.thumbnails[0].jpeg)) < len(whole)
    for number in (0, 3):
        with pytest.raises(ApiError, match="no frame"):
            library.frame(place, "v1", clip.id, number)


def test_queues_are_summed_over_those_who_wait_in_them() -> None:
    lines = [
        'ray_serve_deployment_queued_queries{application="a",deployment="model",handle="1"} 2.0',
        'ray_serve_deployment_queued_queries{application="a",deployment="model",handle="2"} 3.0',
        'ray_serve_num_ongoing_requests_at_replicas{application="a",deployment="model"} 4.0',
    ]
    depths = queue_depths(lines + lines)
    key = ("a", "model")
    assert depths["ray_serve_deployment_queued_queries"][key] == 10
    assert depths["ray_serve_num_ongoing_requests_at_replicas"][key] == 8

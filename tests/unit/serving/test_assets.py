"""Assets: parts that add up, owners, limits, and what goes when it should."""

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import update

from spark_ray.core.provenance import content_hash
from spark_ray.serving.assets import AssetStore
from spark_ray.serving.database import Asset, Database
from spark_ray.serving.errors import ApiError
from spark_ray.serving.settings import RequestLimits

FLAC = b"fLaC" + bytes(range(256)) * 8


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/serving.db")


def make_store(tmp_path: Path, database: Database, **limits: float) -> AssetStore:
    return AssetStore(str(tmp_path), database, RequestLimits.model_validate(limits))


def files(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "assets").rglob("*") if path.is_file()]


def test_parts_become_one_file(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me", len(FLAC))
    for start in range(0, len(FLAC), 500):
        asset = store.get(asset.id, "me")
        with store.part(asset, start) as part:
            part.write(FLAC[start : start + 300])
            part.write(FLAC[start + 300 : start + 500])
    done = store.complete(store.get(asset.id, "me"))
    assert (done.kind, done.size_bytes, done.complete) == ("audio", len(FLAC), True)
    location = Path(store.location(done))
    assert location.read_bytes() == FLAC
    with location.open("rb") as file:
        assert done.sha256 == content_hash(file)
    assert files(tmp_path) == ["file"]


@pytest.mark.parametrize(
    "why",
    [ConnectionError("the client has gone"), ApiError(408, "upload_timeout", "it takes too long")],
)
def test_what_came_before_it_was_broken_off_is_kept(
    tmp_path: Path, database: Database, why: Exception
) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me", len(FLAC))

    def break_off() -> None:
        with store.part(asset, 0) as part:
            part.write(FLAC[:100])
            raise why

    with pytest.raises(type(why)):
        break_off()
    asset = store.get(asset.id, "me")
    assert asset.received_bytes == 100
    with store.part(asset, 100) as part:
        part.write(FLAC[100:])
    store.complete(asset)
    assert Path(store.location(store.get(asset.id, "me"))).read_bytes() == FLAC


def test_a_replica_that_is_lost_at_any_point_leaves_an_upload_that_goes_on(
    tmp_path: Path, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me", len(FLAC))

    def lost(*_: object) -> None:
        raise SystemExit

    def written_and_not_remembered() -> None:
        with store.part(store.get(asset.id, "me"), 0) as part:
            part.write(FLAC[:700])

    with monkeypatch.context() as patched:
        patched.setattr(store, "_received", lost)
        with pytest.raises(SystemExit):
            written_and_not_remembered()
    for start in (0, 500):
        with store.part(store.get(asset.id, "me"), start) as part:
            part.write(FLAC[start : 500 if start == 0 else None])
    with monkeypatch.context() as patched:
        patched.setattr("spark_ray.serving.assets.media_type", lost)
        with pytest.raises(SystemExit):
            store.complete(store.get(asset.id, "me"))
    done = store.complete(store.get(asset.id, "me"))
    assert Path(store.location(done)).read_bytes() == FLAC
    assert files(tmp_path) == ["file"]


def test_who_completes_what_is_complete_does_no_harm(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me", len(FLAC))
    with store.part(asset, 0) as part:
        part.write(FLAC)
    early = store.get(asset.id, "me")
    done = store.complete(asset)
    with pytest.raises(ApiError, match="just being completed") as raised:
        store.complete(early)
    assert (raised.value.status, raised.value.retry_after_s) == (503, 1.0)
    assert Path(store.location(store.get(asset.id, "me"))).read_bytes() == FLAC
    assert store.get(asset.id, "me").sha256 == done.sha256


def test_two_writers_at_one_place_do_not_mix(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me", len(FLAC))
    mine, yours = store.get(asset.id, "me"), store.get(asset.id, "me")

    def overtaken() -> None:
        with store.part(mine, 0) as slow:
            slow.write(b"x" * 50)
            with store.part(yours, 0) as fast:
                fast.write(FLAC)

    with pytest.raises(ApiError, match="goes on at byte"):
        overtaken()
    store.complete(store.get(asset.id, "me"))
    assert Path(store.location(store.get(asset.id, "me"))).read_bytes() == FLAC


def test_more_than_was_announced_or_is_allowed_is_refused(
    tmp_path: Path, database: Database
) -> None:
    store = make_store(tmp_path, database, max_upload_bytes=1000)
    with pytest.raises(ApiError, match="1,000 bytes"):
        store.begin("me", 1001)
    announced = store.begin("me", 100)
    with pytest.raises(ApiError) as raised, store.part(announced, 0) as part:
        part.write(bytes(101))
    assert raised.value.status == 413
    unknown = store.begin("me")
    with pytest.raises(ApiError), store.part(unknown, 0) as part:
        part.write(bytes(1001))
    assert files(tmp_path) == []


def test_a_key_fills_no_more_of_the_disk_than_it_may(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database, max_asset_bytes_per_key=2 * len(FLAC) - 1)
    untold = store.begin("me")
    with store.part(untold, 0) as part:
        part.write(FLAC)
    store.begin("me", len(FLAC) - 1)  # of which nothing has come yet
    store.begin("you", len(FLAC))
    with pytest.raises(ApiError, match="delete some") as raised:
        store.begin("me", 1)
    assert (raised.value.status, raised.value.code) == (429, "too_many_assets")
    store.delete(untold)
    store.begin("me", len(FLAC))


def test_what_is_no_media_is_not_kept(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database)
    asset = store.begin("me")
    with store.part(asset, 0) as part:
        part.write(b"#!/bin/sh\n")
    with pytest.raises(ApiError) as raised:
        store.complete(asset)
    assert raised.value.code == "unsupported_media"
    assert files(tmp_path) == []
    with pytest.raises(ApiError):
        store.get(asset.id, "me")


@pytest.mark.parametrize("name", ["../../etc/passwd", "asset-", "asset-" + "g" * 24, "", "\0"])
def test_odd_ids_are_no_assets(name: str, tmp_path: Path, database: Database) -> None:
    with pytest.raises(ApiError) as raised:
        make_store(tmp_path, database).get(name, "me")
    assert raised.value.code == "asset_not_found"


def test_an_asset_is_its_owners_and_ends(tmp_path: Path, database: Database) -> None:
    store = make_store(tmp_path, database, max_assets_per_key=2)
    asset = store.begin("me")
    store.begin("me")
    with pytest.raises(ApiError, match="delete some"):
        store.begin("me")
    with pytest.raises(ApiError):
        store.get(asset.id, "you")
    with store.part(asset, 0) as part:
        part.write(FLAC)
    store.complete(asset)
    with database.session() as session:
        session.execute(update(Asset).where(Asset.id == asset.id).values(expires=1.0))
    with pytest.raises(ApiError):
        store.get(asset.id, "me")
    store.begin("me")  # what is out of date counts no more, also before it is removed
    assert store.remove_expired() == 1
    assert files(tmp_path) == []


def test_what_a_killed_process_was_writing_goes_and_what_is_being_written_stays(
    tmp_path: Path, database: Database
) -> None:
    store = make_store(tmp_path, database, upload_timeout_s=60)
    asset = store.begin("me", len(FLAC))
    with store.part(asset, 0) as part:
        part.write(FLAC)
        left = tmp_path / "assets" / "writing" / ".000000000000000-0.00.tmp"
        for age_s, stays in ((100, True), (150, False)):
            left.write_bytes(FLAC)
            os.utime(left, (time.time() - age_s,) * 2)
            store.remove_expired()
            assert left.exists() == stays
    assert store.complete(store.get(asset.id, "me")).complete

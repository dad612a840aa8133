"""Keys, what they may ask for, and requests that come twice."""

import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy.orm import Session

from spark_ray.core.errors import ConfigError, StorageError
from spark_ray.serving import keys as keys_module
from spark_ray.serving import throttle as throttle_module
from spark_ray.serving.commands import create_key, list_keys, revoke_key, show_audit
from spark_ray.serving.database import Database
from spark_ray.serving.errors import ApiError
from spark_ray.serving.idempotency import once
from spark_ray.serving.keys import PREFIX, Caller, KeyStore
from spark_ray.serving.throttle import Throttle


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(f"sqlite:///{tmp_path}/serving.db")


def make(keys: KeyStore, *scopes: str, lifetime_s: float | None = None) -> tuple[str, str]:
    key, secret = keys.create(
        "me", list(scopes), requests_per_minute=60, max_concurrent=2, lifetime_s=lifetime_s
    )
    return key.id, secret


def test_a_secret_is_stored_nowhere(database: Database, tmp_path: Path) -> None:
    key, secret = make(KeyStore(database), "infer")
    assert secret.startswith(PREFIX)
    stored = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert key.encode() in stored
    assert secret.encode() not in stored
    assert secret.removeprefix(PREFIX).encode() not in stored


def test_a_key_is_known_until_it_is_revoked_or_out_of_date(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyStore(database)
    key, secret = make(keys, "infer")
    caller = keys.caller(secret)
    assert caller is not None
    assert caller.may("infer")
    assert not caller.may("jobs")
    assert keys.caller(secret + "x") is None
    keys.revoke(key)
    assert keys.caller(secret) is None

    _, short = make(keys, "admin", lifetime_s=60)
    admin = keys.caller(short)
    assert admin is not None
    assert admin.may("jobs")
    later = keys_module.time.time() + 61
    monkeypatch.setattr(keys_module.time, "time", lambda: later)
    assert keys.caller(short) is None


def test_a_lookup_is_remembered_for_seconds(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = KeyStore(database)
    key, secret = make(keys, "infer")
    assert keys.remembered(secret) is None
    caller = keys.caller(secret)
    assert keys.remembered(secret) == (caller,)
    keys.revoke(key)
    later = keys_module.time.time() + 5.1
    monkeypatch.setattr(keys_module.time, "time", lambda: later)
    assert keys.remembered(secret) is None


def test_mistakes_list_the_choices(database: Database) -> None:
    keys = KeyStore(database)
    with pytest.raises(ConfigError, match="admin, infer, jobs"):
        make(keys, "everything")
    with pytest.raises(ConfigError, match="at least one"):
        make(keys)
    key, _ = make(keys, "infer")
    with pytest.raises(ConfigError, match=key):
        keys.revoke("key-unknown")


def caller(**limits: int) -> Caller:
    return Caller("key-1", "me", frozenset(("infer",)), **limits)


def test_requests_at_a_time_are_bounded() -> None:
    throttle = Throttle(1)
    mine = caller(requests_per_minute=6000, max_concurrent=2)
    with throttle.admit(mine), throttle.admit(mine):
        with pytest.raises(ApiError) as raised, throttle.admit(mine):
            pass
        assert (raised.value.status, raised.value.code) == (429, "too_many_concurrent_requests")
    with pytest.raises(RuntimeError), throttle.admit(mine):
        raise RuntimeError("a request that fails gives its place back as well")
    with throttle.admit(mine), throttle.admit(mine):
        pass


def test_requests_a_minute_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(throttle_module.time, "monotonic", lambda: now)
    throttle = Throttle(2)  # two replicas: half of it each
    mine = caller(requests_per_minute=120, max_concurrent=10)
    for _ in range(10):  # ten seconds' worth at once
        with throttle.admit(mine):
            pass
    with pytest.raises(ApiError) as raised, throttle.admit(mine):
        pass
    assert raised.value.code == "rate_limit_exceeded"
    assert raised.value.retry_after_s == pytest.approx(1.0)
    now += 3.0
    for _ in range(3):
        with throttle.admit(mine):
            pass
    with pytest.raises(ApiError), throttle.admit(mine):
        pass


def test_a_request_that_comes_twice_is_carried_out_once(database: Database) -> None:
    made: list[str] = []

    def create(session: Session) -> str:
        made.append(f"job-{len(made)}")
        return made[-1]

    assert once(database, "me", "k", "request", create) == "job-0"
    assert once(database, "me", "k", "request", create) == "job-0"
    assert once(database, "you", "k", "request", create) == "job-1"
    assert once(database, "me", None, "request", create) == "job-2"
    with pytest.raises(ApiError, match="another request"):
        once(database, "me", "k", "other", create)


def test_a_request_that_failed_may_come_again(database: Database) -> None:
    def fail(session: Session) -> str:
        raise ApiError(404, "asset_not_found", "no")

    with pytest.raises(ApiError, match="no"):
        once(database, "me", "k", "request", fail)
    assert once(database, "me", "k", "request", lambda session: "job-1") == "job-1"


def test_a_second_request_waits_for_the_first(database: Database) -> None:
    begun, made = threading.Event(), []

    def create(session: Session) -> str:
        made.append("job-1")
        begun.set()
        time.sleep(0.5)
        return "job-1"

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(once, database, "me", "k", "request", create)
        assert begun.wait(10)
        second = threads.submit(once, database, "me", "k", "request", create)
        assert (first.result(), second.result()) == ("job-1", "job-1")
    assert made == ["job-1"]


DYING = """
import os, sys
from spark_ray.serving.database import Database
from spark_ray.serving.idempotency import once

once(Database(sys.argv[1]), "me", "k", "request", lambda session: os._exit(9))
"""


def test_a_gateway_that_dies_at_a_request_leaves_its_key_free(
    database: Database, tmp_path: Path
) -> None:
    address = f"sqlite:///{tmp_path}/serving.db"
    died = subprocess.run([sys.executable, "-c", DYING, address], timeout=120)
    assert died.returncode == 9
    assert once(database, "me", "k", "request", lambda session: "job-1") == "job-1"


def test_a_database_that_is_no_database_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    with pytest.raises(StorageError, match=r"folder\.db: the database can't be used"):
        Database(f"sqlite:///{tmp_path}/folder.db")


def test_keys_are_listed_with_their_whole_ids_and_found_in_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    create_key(["--name", "somebody with a long name", "--scopes", "infer", "jobs", "admin"])
    assert f"{tmp_path}/serving/serving.db" in capsys.readouterr().err.replace("\n", "")
    (key,) = KeyStore(Database(f"sqlite:///{tmp_path}/serving/serving.db")).list()
    list_keys([])
    assert key.id in capsys.readouterr().out
    create_key(["--name", "another"])
    revoke_key(["--key", key.id])
    capsys.readouterr()
    show_audit(["--key", key.id])
    entries = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [entry["action"] for entry in entries] == ["key.create", "key.revoke"]
    assert {entry["subject"] for entry in entries} == {key.id}
    show_audit(["--last", "1"])
    assert json.loads(capsys.readouterr().out)["action"] == "key.revoke"

    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    asked = (list_keys, []), (show_audit, []), (revoke_key, ["--key", key.id])
    for command, arguments in asked:
        with pytest.raises(
            ConfigError, match=r"state: .*elsewhere/serving/serving.db is no server"
        ):
            command(arguments)
    assert list(elsewhere.iterdir()) == []

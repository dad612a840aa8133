"""What answers say of places: ids and names, and no path of the server's."""

import re

import pytest

from spark_ray.core.errors import ModelError, RegistryUnavailable, SparkRayError, StorageError
from spark_ray.serving.errors import as_api_error
from spark_ray.serving.shown import (
    shown_source,
    values_without_paths,
    without_paths,
    without_trace,
)

ASSET = f"asset-{'5' * 24}"


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (f"/srv/my state/assets/55/{ASSET}/file", ASSET),
        (f"/srv/state/assets/55/{ASSET}/file", ASSET),
        (f"s3://home/state/assets/55/{ASSET}/file", ASSET),
        ("s3://films/a b.mp4", "s3://films/a b.mp4"),
        ("/srv/films/a b.mp4", "a b.mp4"),
        ("file:///srv/films/a.mp4", "a.mp4"),
        ("films/a.mp4", "a.mp4"),
        ("a.mp4", "a.mp4"),
    ],
)
def test_a_source_is_an_asset_an_address_or_a_file_by_its_name(source: str, shown: str) -> None:
    assert shown_source(source) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("error: /srv/films/a.mp4: is no video", "error: …/a.mp4: is no video"),
        ('File "/usr/lib/python3/ray/x.py", line 3', 'File "…/x.py", line 3'),
        ("one of ['/srv/a', '/srv/b']", "one of ['…/a', '…/b']"),
        ("input: /films", "input: …/films"),
        ("<details><b>/srv/a</b></details> </srv/a>", "<details><b>…/a</b></details> <…/a>"),
        ("kept at sqlite:////srv/mlflow.db", "kept at …/mlflow.db"),
        ("kept at file:///srv/mlruns/1", "kept at …/1"),
        ("~/.cache and ./here, 3/4 of a/b, 2 / 3", "~/.cache and ./here, 3/4 of a/b, 2 / 3"),
        ("https://example.org/a/b, s3://films/a/b.mp4", "https://example.org/a/b, s3://films/a/b.mp4"),
        (f"it reads /srv/state/assets/55/{ASSET}/file", f"it reads {ASSET}"),
        ("/my sets/new and s3://own/sets/new/v1", "mine:new and mine:new/v1"),
    ],
)  # fmt: skip
def test_a_text_tells_of_files_their_names_alone(text: str, shown: str) -> None:
    names = {"/my sets": "…", "/my sets/new": "mine:new", "s3://own/sets/new": "mine:new"}
    assert without_paths(text, names) == shown


@pytest.mark.parametrize("word", ["a", "/a", "a+", "/", "a:/", ":///", "/asset-"])
def test_a_text_of_one_long_word_takes_no_longer(word: str) -> None:
    """With a regular expression that goes back, these would take hours."""
    without_paths(word * 200_000)


def test_records_tell_of_files_their_names_alone() -> None:
    record = {"config": {"input": ["/srv/films"], "fps": 2.0}, "/srv/models/blip": [None, True]}
    assert values_without_paths(record) == {
        "config": {"input": ["…/films"], "fps": 2.0},
        "…/blip": [None, True],
    }


def test_what_serve_says_of_a_deployment_has_no_trace_path_or_password() -> None:
    said = (
        "The deployment failed to start 3 times in a row. Error:\n"
        "ray::ServeReplica:app:Gateway.initialize() (pid=7)\n"
        '  File "/srv/spark_ray/serving/gateway.py", line 3, in __init__\n'
        "StorageError: postgresql://me:secret@db/x: /srv/state/serving.db can't be used\n\n"
    )
    assert without_trace(said) == (
        "The deployment failed to start 3 times in a row. Error: "
        "StorageError: postgresql://db/x: …/serving.db can't be used"
    )
    assert without_trace("") == ""
    assert without_trace("It runs.") == "It runs."


def test_errors_from_deep_in_the_house_tell_no_path() -> None:
    for error in (ModelError("model: /srv/m holds none"), StorageError("/srv/x/y: no such file")):
        assert "/srv" not in str(as_api_error(error))


@pytest.mark.parametrize("kind", [StorageError, RegistryUnavailable])
def test_an_outage_tells_no_address_inside(kind: type[SparkRayError]) -> None:
    """Whoever asks hears of it, also with a key that nobody can look up then."""
    said = 'postgresql://sparkray@postgres/x: connection to server at "10.0.0.5", port 5432 failed'
    told = as_api_error(kind(said))
    assert (told.status, told.retry_after_s) == (503, 1.0)
    assert not {"postgres", "10.0.0.5", "5432"} & set(re.split(r"[^\w.]+", str(told)))

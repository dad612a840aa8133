"""What a build holds on its driver while its units run."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from weakref import ref

import pytest
from planned import config, record

from spark_ray.datasets import build
from spark_ray.datasets.ingest import InputFile
from spark_ray.datasets.plan import SourceRecord


def test_the_listing_is_let_go_when_it_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed: list[ref[InputFile]] = []
    held: list[InputFile | None] = []

    def list_inputs(inputs: Iterable[str]) -> list[InputFile]:
        files = [InputFile(f"/films/{number}.mp4") for number in range(3)]
        listed.extend(map(ref, files))
        return files

    def make_plan(
        files: list[InputFile], settings: object, advance: Callable[[int], None]
    ) -> Iterator[SourceRecord]:
        yield from (record(file.location) for file in files)

    def run_units(*_: object) -> None:
        held.extend(file() for file in listed)

    for replaced in (list_inputs, make_plan, run_units):
        monkeypatch.setattr(build, replaced.__name__, replaced)
    monkeypatch.setattr(build, "ray_session", lambda _: nullcontext())
    monkeypatch.setattr(build, "finish", lambda *_: SimpleNamespace())
    build.build_dataset(config(output=str(tmp_path / "set")))

    assert held == [None, None, None]

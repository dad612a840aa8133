"""What a build remembers across crashes, and what it concludes from it."""

from pathlib import Path

import pytest

from spark_ray.core.errors import DatasetError
from spark_ray.core.schema import Clip, ModelInfo
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import RECIPE
from spark_ray.datasets.ledger import (
    CrashGuard,
    Outcome,
    Progress,
    Recipe,
    check_model,
    check_recipe,
    commit_part,
    dump_json,
    part_names,
    read_parts,
)


@pytest.fixture
def version(tmp_path: Path) -> Folder:
    return Folder(str(tmp_path / "set" / "v1"))


def outcome(identity: str, unit: str = "u", size: int | None = None, **line: object) -> Outcome:
    return Outcome(id=identity, status="ok", unit_id=unit, unit_size=size, line=line)


def unit(name: str) -> Clip:
    return Clip(clip_id=name, video_id=None, unit_id=name, source_path="x")


def config(**settings: object) -> BuildConfig:
    return BuildConfig.from_values(**{"input": ["in"], "output": "out", **settings})


def begin(version: Folder, settings: BuildConfig) -> None:
    recipe = Recipe(
        fingerprint=settings.fingerprint(),
        settings=settings.content_settings(),
        code_version="1",
        started="now",
    )
    version.write(RECIPE, dump_json(recipe.model_dump()))


def test_the_same_work_done_twice_leaves_one_part(version: Folder) -> None:
    commit_part(version, [outcome("a"), outcome("b")])
    commit_part(version, [outcome("b"), outcome("a")])
    commit_part(version, [outcome("c")])
    assert len(part_names(version)) == 2
    assert sorted(o.id for o in read_parts(version)) == ["a", "b", "c"]


def test_a_unit_is_done_when_all_its_rows_are_there() -> None:
    first = [outcome("a"), outcome("b")]
    assert not Progress(first).is_done("u")
    assert not Progress([outcome("c", size=3)]).is_done("u")
    assert Progress([*first, outcome("c", size=3)]).is_done("u")
    assert Progress([outcome("c", size=3), *first]).is_done("u")
    assert not Progress([]).is_done("u")


def test_a_row_that_was_committed_twice_counts_once() -> None:
    progress = Progress([outcome("a"), outcome("a"), outcome("b", size=3)])
    assert not progress.is_done("u")
    assert progress.statuses["ok"] == 2
    assert progress.committed_rows() == {"u": {"a", "b"}}


def test_rows_of_units_that_are_done_are_not_asked_for_again() -> None:
    progress = Progress([outcome("a", "one", 1), outcome("b", "two")])
    assert progress.committed_rows() == {"two": {"b"}}


def test_a_version_without_a_recipe_has_not_begun(version: Folder) -> None:
    assert check_recipe(version, config()) is None


def test_a_build_goes_on_under_its_own_recipe_on_any_cluster(version: Folder) -> None:
    begin(version, config(fps=2))
    assert check_recipe(version, config(fps=2, decode_workers=7)) is not None


def test_another_recipe_is_refused_with_the_settings_that_differ(version: Folder) -> None:
    begin(version, config(fps=2))
    assert check_recipe(version, config(fps=3)) is None  # nothing is done that could be mixed
    commit_part(version, [outcome("a")])
    with pytest.raises(DatasetError) as caught:
        check_recipe(version, config(fps=3, split="scenes"))
    assert check_recipe(version, config(fps=3, supersede=True)) is None
    assert check_recipe(version, config(fps=2, supersede=True)) is not None
    message = str(caught.value)
    assert "fps (was 2.0, now 3.0)" in message
    assert "split (was 'fixed', now 'scenes')" in message
    assert "jpeg_quality" not in message


def attempt(version: Folder, units: list[Clip], killer: str | None) -> list[str]:
    """One worker's life on a block: the units that it gave up; `killer` ends it midway."""
    guard = CrashGuard(version, "run")
    careful = guard.begin_block(units)
    given_up = []
    for each in units:
        if careful and not guard.begin_unit(each):
            given_up.append(each.unit_id)
            continue
        if each.unit_id == killer:
            return given_up
        if careful:
            guard.end_unit(each)
    return given_up


def test_the_unit_that_kills_its_workers_is_given_up_and_no_other(version: Folder) -> None:
    block = [unit("a"), unit("killer"), unit("c")]
    lives = [attempt(version, block, "killer") for _ in range(4)]
    # Once unsuspecting, twice with a mark each; the fourth worker leaves it out.
    assert lives == [[], [], [], ["killer"]]


def test_units_are_not_blamed_for_workers_that_died_between_them(version: Folder) -> None:
    block = [unit("a"), unit("b")]
    for _ in range(6):
        assert attempt(version, block, None) == []


def test_a_new_run_tries_again(version: Folder) -> None:
    block = [unit("killer")]
    for _ in range(4):
        attempt(version, block, "killer")
    assert not CrashGuard(version, "another run").begin_block(block)


def test_a_model_that_kills_its_actor_is_not_loaded_for_ever(version: Folder) -> None:
    guard = CrashGuard(version, "run/caption")
    assert [guard.begin_loading("one") for _ in range(3)] == [True, True, False]
    assert guard.begin_loading("two"), "another actor may be on a node with more memory"
    guard.end_loading("two")
    assert guard.begin_loading("two")


def test_a_build_asks_the_same_weights_to_its_end(version: Folder) -> None:
    first = ModelInfo(name="models:/apotheon@champion", revision="3", weights_hash="ab" * 32)
    check_model(version, "caption", first)
    check_model(version, "caption", first)
    with pytest.raises(DatasetError, match="other weights of the caption model") as caught:
        check_model(version, "caption", first.model_copy(update={"revision": "4"}))
    assert "revision 3" in str(caught.value)
    assert "now revision 4" in str(caught.value)

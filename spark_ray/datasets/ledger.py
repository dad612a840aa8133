"""What a build has already done, kept beside the data so that it survives anything.

A *part* is a file of outcomes, one line each, committed whole by one rename or PUT. Its name comes
from the ids in it, so the same work done twice leaves one file. A unit of work is done when all of
its rows are in parts; which unit that is, and how many rows it has, the lines say themselves.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from spark_ray.core.errors import DatasetError
from spark_ray.core.logging import get_logger
from spark_ray.core.provenance import code_version, text_hash
from spark_ray.core.schema import Clip, ModelInfo, Record
from spark_ray.core.storage import Folder
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.layout import PARTS, RECIPE

log = get_logger(__name__)

_COMMITTED = f"{PARTS}/committed"
_ATTEMPTS = f"{PARTS}/attempts"
_MODELS = f"{PARTS}/models"
MAX_CRASHES = 2


class Outcome(Record):
    """A line of a part: what became of one row, and the line that will be published of it."""

    id: str
    status: str
    unit_id: str
    unit_size: int | None
    line: dict[str, Any]


class Recipe(Record):
    """What a version is made of. A build is resumed only under the recipe that it began with."""

    fingerprint: str
    settings: dict[str, Any]
    code_version: str
    started: str
    parent: dict[str, Any] | None = None


def check_recipe(version: Folder, config: BuildConfig) -> Recipe | None:
    """The recipe of an unfinished build, or None if there is none yet, or none to go on with.

    Raises:
        DatasetError: it was begun with other settings; the first that differ are named.
    """
    if not version.exists(RECIPE):
        return None
    recipe = read_recipe(version)
    if recipe.fingerprint == config.fingerprint():
        if recipe.code_version != code_version():
            log.warning(
                "this build was begun by other code, and its clips may differ: "
                "pass --version for a new one if that matters",
                begun_by=recipe.code_version,
                now=code_version(),
            )
        return recipe
    if config.supersede or not part_names(version):
        return None  # Of what has been done under the old settings nothing is taken over.
    now = config.content_settings()
    different = [
        f"{name} (was {recipe.settings.get(name)!r}, now {now.get(name)!r})"
        for name in sorted({*now, *recipe.settings})
        if now.get(name) != recipe.settings.get(name)
    ]
    raise DatasetError(
        f"{version.location}: this unfinished build was begun with other settings: "
        f"{', '.join(different[:5])}; give the old settings to resume it, --supersede to discard "
        "it, or another --version to begin a new one"
    )


def read_recipe(version: Folder) -> Recipe:
    return Recipe.model_validate_json(version.read(RECIPE))


def commit_part(version: Folder, outcomes: list[Outcome]) -> None:
    """Make these outcomes permanent, all or none."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.id)
    name = text_hash("\n".join(outcome.id for outcome in ordered))[:24]
    data = "".join(outcome.model_dump_json() + "\n" for outcome in ordered)
    version.write(f"{_COMMITTED}/{name}.jsonl", data.encode())


def part_names(version: Folder) -> list[str]:
    return [name for name in version.names(_COMMITTED) if name.endswith(".jsonl")]


def read_parts(version: Folder) -> Iterator[Outcome]:
    """Every committed outcome. One that was committed twice, by a retried task, comes twice."""
    for name in part_names(version):
        for line in version.lines(name):
            yield Outcome.model_validate_json(line)


class Progress:
    """What the parts say is done."""

    def __init__(self, outcomes: Iterable[Outcome]) -> None:
        self.statuses: Counter[str] = Counter()
        self._done: set[str] = set()
        self._sizes: dict[str, int] = {}  # of units that are not done, as their rows are
        self._rows: defaultdict[str, set[str]] = defaultdict(set)
        for outcome in outcomes:
            if outcome.unit_id not in self._done:
                self._add(outcome)

    def _add(self, outcome: Outcome) -> None:
        unit, rows = outcome.unit_id, self._rows[outcome.unit_id]
        if outcome.id not in rows:
            rows.add(outcome.id)
            self.statuses[outcome.status] += 1
        if outcome.unit_size is not None:
            self._sizes[unit] = outcome.unit_size
        if unit in self._sizes and len(rows) >= self._sizes[unit]:
            self._done.add(unit)
            del self._rows[unit], self._sizes[unit]

    def is_done(self, unit_id: str) -> bool:
        return unit_id in self._done

    def committed_rows(self) -> dict[str, set[str]]:
        """Ids that are committed of units that are not done; those need not be done again."""
        return dict(self._rows)


class CrashGuard:
    """Finds the unit that kills its worker, so that it is not tried for ever.

    A native crash leaves no exception to catch, and Ray starts the block again on a new worker. So
    a block that is seen a second time in one run is taken one unit at a time, each leaving a mark
    while it is being decoded; a unit that finds two marks of its own is given up.
    """

    def __init__(self, version: Folder, run_and_stage: str) -> None:
        self._marks = version.sub(f"{_ATTEMPTS}/{run_and_stage}")

    def begin_block(self, units: list[Clip]) -> bool:
        """Whether this block was begun before in this run, that is, whether a worker died on it."""
        mark = "block-" + text_hash("\n".join(unit.clip_id for unit in units))[:24]
        if self._marks.exists(mark):
            return True
        self._marks.write(mark, b"")
        return False

    def begin_unit(self, unit: Clip) -> bool:
        """Mark a unit as being decoded; False if it has killed `MAX_CRASHES` workers already."""
        return self._begin(_unit_mark(unit))

    def end_unit(self, unit: Clip) -> None:
        self._end(_unit_mark(unit))

    def begin_loading(self, actor: str) -> bool:
        """Mark a model as being loaded; False if that has killed the actor `MAX_CRASHES` times."""
        return self._begin(f"loading-{actor}")

    def end_loading(self, actor: str) -> None:
        self._end(f"loading-{actor}")

    def _begin(self, mark: str) -> bool:
        for attempt in range(MAX_CRASHES):
            if not self._marks.exists(f"{mark}-{attempt}"):
                self._marks.write(f"{mark}-{attempt}", b"")
                return True
        return False

    def _end(self, mark: str) -> None:
        for attempt in range(MAX_CRASHES):
            self._marks.remove(f"{mark}-{attempt}")


def _unit_mark(unit: Clip) -> str:
    return f"unit-{text_hash(unit.clip_id)[:24]}"


def check_model(version: Folder, stage: str, model: ModelInfo) -> None:
    """Remember which weights a stage of this build asks; those that it began with must stay.

    Raises:
        DatasetError: other weights go by the same name now, e.g. since a model was promoted.
    """
    name = f"{_MODELS}/{stage}.json"
    if not version.exists(name):
        version.write(name, model.model_dump_json().encode())
        return
    began_with = ModelInfo.model_validate_json(version.read(name))
    if began_with != model:
        raise DatasetError(
            f"{version.location}: this build, or that of its parent, was begun with other weights "
            f"of the {stage} model {began_with.name} ({_identity(began_with)}, now "
            f"{_identity(model)}); name those by their own folder or version to go on with it, or "
            "build another --version"
        )


def read_models(version: Folder) -> Iterator[tuple[str, ModelInfo]]:
    """The stages of a build that asked a model, each with the weights that it began with."""
    for name in version.names(_MODELS):
        stage = name.rpartition("/")[2].removesuffix(".json")
        yield stage, ModelInfo.model_validate_json(version.read(name))


def _identity(model: ModelInfo) -> str:
    hash_ = (model.weights_hash or "unknown")[:12]
    return f"revision {model.revision}, weights {hash_}" if model.revision else f"weights {hash_}"


def dump_json(value: Mapping[str, Any]) -> bytes:
    """JSON for people: indented, in the order given, not escaped."""
    return (json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n").encode()

"""The dataset job: plan, decode, caption, transcribe, commit, publish. Killed, it goes on later."""

import json
import math
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy
from ray.util.annotations import RayDeprecationWarning

from spark_ray.core.claim import alone, ended_meanwhile
from spark_ray.core.errors import (
    ConfigError,
    DatasetError,
    ModelError,
    SparkRayError,
)
from spark_ray.core.logging import get_logger
from spark_ray.core.progress import ProgressReport
from spark_ray.core.provenance import code_version, now_iso
from spark_ray.core.storage import Folder
from spark_ray.core.wording import counted
from spark_ray.datasets.advice import captions_advice, sampling_advice
from spark_ray.datasets.capacity import have_gpus, have_room
from spark_ray.datasets.config import BuildConfig
from spark_ray.datasets.ingest import InputFile, list_inputs
from spark_ray.datasets.layout import (
    METADATA,
    PARTS,
    RECIPE,
    create_output,
    dataset_name,
    is_published,
    is_unfinished,
    next_version,
    numbered_versions,
    writable,
)
from spark_ray.datasets.ledger import (
    CrashGuard,
    Progress,
    Recipe,
    check_recipe,
    dump_json,
    read_parts,
    read_recipe,
)
from spark_ray.datasets.model_stages import ModelStage, model_stages
from spark_ray.datasets.plan import (
    SourceRecord,
    StoredPlan,
    make_plan,
    store_plan,
)
from spark_ray.datasets.publish import (
    Publication,
    clear_scaffold,
    discard,
    publication_of,
    publish,
)
from spark_ray.datasets.session import ray_session
from spark_ray.datasets.stages import (
    CommitStage,
    DecodeStage,
    Stage,
    StagePool,
)
from spark_ray.datasets.units import UnitReader, group_units, place_tables, planned_units
from spark_ray.models.caption_files import captioned_videos
from spark_ray.monitoring.metrics import UNITS_WAITING

log = get_logger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """What a build came to. `publication` is None when no clip survived."""

    version: Folder
    publication: Publication | None
    rejects: int


def build_dataset(config: BuildConfig) -> BuildResult:
    """Build or resume one dataset version.

    Raises:
        ConfigError: the inputs don't exist, the output can't be a folder to write to, or a
            backend's settings are wrong.
        ModelError: a model that a backend needs can't be had.
        DatasetError: the version is published already, was begun with other settings, or is being
            built by somebody else.
        StorageError: the output can't be written; everything committed so far is kept.
    """
    config = config.located()
    published = sweep_published(config)
    if published is not None:
        return published
    version = writable(choose_version(config))
    recipe = check_recipe(version, config)
    stages = model_stages(config)
    advice = list(sampling_advice(config))
    captioned = captioned_videos(config.captions_file) if config.captions_file else set()
    files = list_inputs(config.input) if recipe is None else []
    if recipe is None:
        advice += captions_advice(captioned, files)
    create_output(version, "output")
    with alone(version, "build", "--version"):
        if is_published(version):
            raise _published_meanwhile(version)
        recipe, before = check_recipe(version, config), recipe
        if before is not None and recipe is None:
            raise ended_meanwhile(version.location, "build")
        announce(config, version, advice, resumed=recipe is not None)
        with ray_session(config):
            if recipe is None:
                discard(version)
                begin(version, config, plan_inputs(files, config))
                log.info("planned", version=version.location, files=len(files))
            del files  # as long as the dataset, and stored as the plan by now
            run_units(config, version, stages)
            return finish(config, version)


def sweep_published(config: BuildConfig) -> BuildResult | None:
    """Clean up after a run that was killed when it had published, but not yet removed its scaffold.

    If that was a run of this very command, its result is the answer: there is nothing left to do.
    """
    dataset = Folder(config.output.rstrip("/"))
    names = [config.version] if config.version else numbered_versions(dataset)[::-1]
    newest = next((name for name in names if is_published(dataset.sub(name))), None)
    if newest is None or not dataset.sub(newest).exists(PARTS):
        return None
    version = dataset.sub(newest)
    metadata = json.loads(version.read(METADATA))
    clear_scaffold(version, metadata)
    if metadata["fingerprint"] != config.fingerprint():
        return None
    publication = publication_of(metadata)
    return BuildResult(version, publication, publication.rejects)


def choose_version(config: BuildConfig) -> Folder:
    """The folder to build in: the one that was asked for, the unfinished one, or the next vN."""
    dataset = Folder(config.output.rstrip("/"))
    dataset_name(config.output)
    if config.version is not None:
        version = dataset.sub(config.version)
        if is_published(version):
            raise DatasetError(
                f"{version.location} is published already and never changes; "
                "leave --version out to build the next one"
            )
        return version
    for name in reversed(numbered_versions(dataset)):
        if is_unfinished(dataset.sub(name)) and not read_recipe(dataset.sub(name)).parent:
            return dataset.sub(name)
        if is_published(dataset.sub(name)):
            break
    return dataset.sub(next_version(dataset))


def build_progress(config: BuildConfig) -> tuple[int, int] | None:
    """Units that are done, and units in all, of the version that a build works on.

    None before its plan is made, and once it is published.
    """
    config = config.located()
    version = choose_version(config)
    if not is_unfinished(version):
        return None
    done = Progress(read_parts(version))
    are_done = Counter(done.is_done(unit.unit_id) for unit in planned_units(version, config))
    return are_done[True], are_done.total()


def announce(config: BuildConfig, version: Folder, advice: Iterable[str], *, resumed: bool) -> None:
    """Say what is going to happen, with what, and what may not come out as it is meant."""
    kept = "smart sampling on" if config.smart_sampling else "every sampled frame kept"
    scenes = f"scenes at {config.scene_threshold:g}" if config.scene_detection else "no scenes"
    width, height = config.resolution
    print(
        f"{'Resuming' if resumed else 'Building'} {version.location}\n"
        f"  from         {', '.join(config.input[:3])}{' …' if len(config.input) > 3 else ''}\n"
        f"  frames       {config.fps:g}/s at {width}×{height}, {kept}, {scenes}\n"
        f"  captions     {config.caption_backend}\n"
        f"  transcripts  {config.transcription_backend}",
        file=sys.stderr,
    )
    for sentence in advice:
        print(f"  careful      {sentence}", file=sys.stderr)


def begin(
    version: Folder,
    config: BuildConfig,
    records: Iterable[SourceRecord],
    parent: dict[str, Any] | None = None,
) -> None:
    """Write down what is to be done; with the recipe, written last, the build has begun."""
    recipe = Recipe(
        fingerprint=config.fingerprint(),
        settings=config.content_settings(),
        code_version=code_version(),
        started=now_iso(),
        parent=parent,
    )
    store_plan(version, records)
    version.write(RECIPE, dump_json(recipe.model_dump()))


def plan_inputs(files: list[InputFile], config: BuildConfig) -> Iterator[SourceRecord]:
    with ProgressReport("Looking at files", len(files), "files") as progress:
        yield from make_plan(files, config, progress.advance)


def run_units(config: BuildConfig, version: Folder, models: Sequence[ModelStage]) -> None:
    """Run every unit of the plan that the parts don't show as done.

    Raises:
        SparkRayError: a stage could not go on, e.g. the disk is full or a model can't be loaded.
    """
    done = Progress(read_parts(version))
    are_done = Counter(done.is_done(unit.unit_id) for unit in planned_units(version, config))
    if are_done[True]:
        print(f"  resumed      {are_done[True]} of {are_done.total()} units are done",
              file=sys.stderr)  # fmt: skip
    if not are_done[False]:
        return
    holders = [model for model in models if model.holds_weights]
    have_gpus(sum(_actors(config, model.name) for model in holders), config.model_gpus)
    have_room([{"CPU": 1.0}])
    decoders = config.decode_workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    missing = (u for u in planned_units(version, config) if not done.is_done(u.unit_id))
    blocks = place_tables(group_units(missing, decoders, are_done[False]))
    dataset = _pipeline(config, version, blocks, models, done.committed_rows())
    if holders:
        names = " and ".join(model.name for model in holders)
        print(f"  loading      the models that {names}; clips come after that", file=sys.stderr)
    with ProgressReport("Building", are_done[False], "units") as progress:
        _consume(dataset, progress, dataset_name(config.output), are_done[False])


def _pipeline(
    config: BuildConfig,
    version: Folder,
    blocks: list[pa.Table],
    models: Sequence[ModelStage],
    committed: Mapping[str, Set[str]],
) -> Dataset:
    run_id = uuid4().hex[:12]
    for model in models:
        if model.holds_weights:
            model.guard = CrashGuard(version, f"{run_id}/{model.name}")
        model.version = version
    decode = DecodeStage(config, version, run_id, committed)
    stages: list[Stage] = [decode, *models, CommitStage(config, version)]
    pools = _pools(stages)
    pools[0].read = UnitReader(version, config)
    placement = _placement(config, pools, ray.cluster_resources())
    dataset: Dataset = ray.data.from_blocks(blocks)
    for pool, options in zip(pools, placement, strict=True):
        where: dict[str, Any] = {"fn": pool.run}
        if pool.holds_weights:
            where = {"fn": StagePool, "fn_constructor_args": (pool.stages, pool.read)}
            # Where both ask for the same resources, Ray Data would decode in the model's own
            # process, one after the other. It leaves alone what has a function like this.
            where["ray_remote_args_fn"] = dict
        with warnings.catch_warnings():
            # It goes in Ray 2.64, where we look for another way; users can do nothing about it.
            warnings.filterwarnings(
                "ignore", "`ray_remote_args_fn` is deprecated", RayDeprecationWarning
            )
            # `map_batches` gives whole blocks to CPUs alone.
            dataset = dataset.map_batches_internal(
                **where, **options, batch_size=None, batch_format="pyarrow", zero_copy_batch=True
            )
    return dataset


def _pools(stages: Sequence[Stage]) -> list[StagePool]:
    """Stages that hold weights get actors of their own; the others share with their neighbours."""
    pools: list[StagePool] = []
    for stage in stages:
        if pools and not stage.holds_weights and not pools[-1].holds_weights:
            pools[-1].stages.append(stage)
        else:
            pools.append(StagePool([stage]))
    return pools


def _placement(
    config: BuildConfig, pools: Sequence[StagePool], cluster: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Where each pool runs, so that all fit at once; else Ray Data waits for ever.

    Model actors take GPUs where the cluster has them, and CPUs where not. The rest are tasks, as
    many as there are CPUs, also when the cluster grows meanwhile. Committing behind a model mostly
    waits for storage, and takes a tenth of a CPU.
    """
    cpus, gpus = cluster.get("CPU", 1.0), cluster.get("GPU", 0.0)
    on_gpu = bool(gpus) and config.model_gpus > 0
    actors = sum(_actors(config, pool.stages[0].name) for pool in pools if pool.holds_weights)
    on_cpu = 0 if on_gpu else actors
    # A GPU each if there are enough, or else a part of one; whole ones can't be divided.
    part = gpus / actors if actors else 0.0
    gpu_share = min(config.model_gpus, part if part < 1 else math.floor(part))
    # A CPU each, unless the models leave less than one for decoding.
    share = min(1.0, (cpus - 0.2) / (1 + on_cpu)) if actors else 1.0
    placement: list[dict[str, Any]] = []
    for pool in pools:
        name = pool.stages[0].name
        if pool.holds_weights:
            actors_of = ActorPoolStrategy(
                size=_actors(config, name), max_tasks_in_flight_per_actor=2
            )
            gpu = {"num_gpus": gpu_share, "num_cpus": 0} if on_gpu else {"num_cpus": share}
            placement.append({"compute": actors_of, **gpu})
        elif name == "decode":
            tasks = TaskPoolStrategy(size=config.decode_workers)
            placement.append({"compute": tasks, "num_cpus": share})
        else:
            placement.append({"compute": TaskPoolStrategy(), "num_cpus": 0.1})
    return placement


def _actors(config: BuildConfig, model: str) -> int:
    """How many actors hold a model, of a stage of this name."""
    return {"caption": config.caption_workers, "transcribe": config.transcription_workers}[model]


def _consume(dataset: Dataset, progress: ProgressReport, name: str, waiting: int) -> None:
    statuses: Counter[str] = Counter()
    UNITS_WAITING.set(waiting, dataset=name)
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow"):
        table = cast(pa.Table, batch)
        statuses.update(table["status"].to_pylist())
        if statuses["aborted"]:
            raise _reason(table)
        units = sum(size is not None for size in table["unit_size"].to_pylist())
        progress.advance(units, _note(statuses))
        waiting -= units
        UNITS_WAITING.set(waiting, dataset=name)


def _reason(table: pa.Table) -> SparkRayError:
    """The error that an actor sent instead of raising it."""
    reject = next(r["reject"] for r in table.to_pylist() if r["status"] == "aborted")
    kinds = (ConfigError, DatasetError, ModelError)  # others fail in the course of the work
    named = {kind.__name__: kind for kind in kinds}
    return named.get(reject["error"], SparkRayError)(reject["message"])


def _note(statuses: Counter[str]) -> str:
    parts = [counted(statuses["ok"], "clip")]
    parts += [f"{statuses[name]} {name}" for name in ("rejected", "filtered") if statuses[name]]
    return ", ".join(parts)


def finish(config: BuildConfig, version: Folder) -> BuildResult:
    """Publish what the parts hold, if it is complete and not nothing."""
    done = Progress(read_parts(version))
    units = (unit.unit_id for unit in planned_units(version, config))
    unfinished = [unit_id for unit_id in units if not done.is_done(unit_id)]
    if unfinished:
        raise SparkRayError(
            f"{version.location}: {counted(len(unfinished), 'unit')} did not come back "
            f"(e.g. {unfinished[0]}); run the same command again to do them"
        )
    recipe = check_recipe(version, config)
    assert recipe is not None
    if is_published(version):
        raise _published_meanwhile(version)
    publication = publish(config, version, recipe, StoredPlan(version))
    log.info("published", version=version.location, **done.statuses)
    return BuildResult(version, publication, done.statuses["rejected"])


def _published_meanwhile(version: Folder) -> DatasetError:
    return DatasetError(f"{version.location} was published meanwhile, by another build of it")

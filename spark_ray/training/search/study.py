"""A study: check, place its trials, train them side by side, say which was best."""

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import ray
from ray import tune
from ray.tune import TuneError

from spark_ray.core.claim import alone, ended_meanwhile
from spark_ray.core.errors import ConfigError, SparkRayError
from spark_ray.core.progress import Seen, progress_elsewhere
from spark_ray.core.provenance import code_version, now_iso
from spark_ray.core.storage import Folder
from spark_ray.core.wording import counted
from spark_ray.datasets.capacity import living_nodes
from spark_ray.datasets.samples import load_index
from spark_ray.datasets.session import ray_session
from spark_ray.training.checks import prepare
from spark_ray.training.cluster import await_nodes, ray_storage
from spark_ray.training.config import TrainConfig
from spark_ray.training.plan import RunPlan
from spark_ray.training.search.algorithms import param_space, scheduler, searcher
from spark_ray.training.search.cleaning import free_leaked_placement_groups
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.packing import Packing, pack, unlike
from spark_ray.training.search.recorder import Recorder
from spark_ray.training.search.records import (
    STUDY,
    TUNE,
    Study,
    StudyRecord,
    read_trials,
    write_trial,
)
from spark_ray.training.search.report import check_packages, write_report
from spark_ray.training.search.space import INHERITABLE, corners, grid_size
from spark_ray.training.search.trial import (
    FAILURES,
    MetricNeverReported,
    TrialSetup,
    run_trial,
)
from spark_ray.training.start import one_version
from spark_ray.training.tracking import RunStatus, Tracker

_TUNE_SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # tables that would run over ours
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # files that nobody reads
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C would look like the end of the study
    "TUNE_GLOBAL_CHECKPOINT_S": "1",  # what a kill may take back
}
_SHOW_EVERY_S = 2.0


class StudyFailed(SparkRayError):
    """No trial of a study came to anything."""


def tune_training(config: StudyConfig) -> Study:
    """Search, or go on searching, as the configuration says.

    Raises:
        FolderInUse: another tuning of the same study is running.
        SparkRayError: a point of the space, the dataset or the cluster can't do it, or every trial
            failed; each trial's record says why.
    """
    config = config.located()
    before = _stored(config)
    study = _open(config)
    if study.record.state == "finished" and not config.retry_failed:
        print("  is done      nothing is left to do", file=sys.stderr)
        return study
    check_packages()
    pinned = _pinned(config, study.record)
    runs, steps = _check(pinned)
    _print_plan(study, steps)
    os.environ.update(_TUNE_SETTINGS)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    # Its advice is for trials that could take over another one's memory; training runs can't.
    warnings.filterwarnings("ignore", "Consider boosting PBT", UserWarning)
    study.folder.create()
    with alone(study.folder, "tuning", "--study-dir"), ray_session(config):
        if _stored(config) != before:
            raise ended_meanwhile(config.study_dir, "tuning")
        for run in unlike(runs):
            whole = run.model_copy(update={"num_workers": run.num_workers[-1:]})
            await_nodes(whole, config.max_concurrent or 1)
        packing = pack(runs, living_nodes(), config.max_concurrent)
        print(
            f"  at a time    {counted(packing.trials, 'trial')} of "
            f"{packing.resources['CPU']:.3g} CPUs and {packing.resources['GPU']:.3g} GPUs",
            file=sys.stderr,
        )
        with (
            _tracked(study) as tracker,
            progress_elsewhere(
                "Tuning", study.record.planned, "trials", partial(_look, study), _SHOW_EVERY_S
            ),
        ):
            study.record.state = "running"  # also where failed trials of a finished one are retried
            study.save_record()
            setup = TrialSetup(pinned, packing.resources, study.record.tracking_run)
            try:
                _search(pinned, setup, packing, steps)
            except TuneError:
                _raise_reason(study)
                raise
            finally:
                free_leaked_placement_groups()
            return _conclude(study, tracker)


def _open(config: StudyConfig) -> Study:
    """The study in the folder, or a new one.

    Raises:
        ConfigError: the folder holds another study, or something else.
    """
    folder = Folder(config.study_dir)
    if folder.exists(STUDY):
        study = Study.load(config.study_dir)
        recorded = study.record.config
        _check_same(config.study_dir, config.content_settings(), recorded.content_settings())
        if recorded.study_dir != config.study_dir:
            raise ConfigError(
                f"study_dir: {config.study_dir} was begun as {recorded.study_dir}, and its trials "
                "look for each other there; move it back to go on"
            )
        print(f"  resumes      the study in {config.study_dir}", file=sys.stderr)
        return study
    if folder.names():
        raise ConfigError(
            f"study_dir: {config.study_dir} holds something else than a study; give a new or empty "
            "folder"
        )
    record = StudyRecord(
        created=now_iso(),
        config=config,
        code_version=code_version(),
        dataset=_dataset_now(config),
        init_from=one_version(config.train.get("init_from")),
        planned=grid_size(config.space) if config.search == "grid" else config.num_samples,
    )
    return Study(folder, record, [])


def _stored(config: StudyConfig) -> bytes | None:
    folder = Folder(config.study_dir)
    return folder.read(STUDY) if folder.exists(STUDY) else None


def _check_same(
    study_dir: str, given: Mapping[str, Any], recorded: Mapping[str, Any], inside: str = ""
) -> None:
    """
    Raises:
        ConfigError: the study was begun with other settings; names the first.
    """
    for name in sorted({*given, *recorded}):
        now, then = given.get(name), recorded.get(name)
        if isinstance(now, Mapping) and isinstance(then, Mapping):
            _check_same(study_dir, now, then, f"{inside}{name}: ")
        elif now != then:
            raise ConfigError(
                f"{inside}{name}: {study_dir} holds a study with {then!r}, and now it is {now!r}; "
                "give the former to resume, or another study_dir"
            )


def _dataset_now(config: StudyConfig) -> str:
    """The very version that all trials learn from: a newer one may come while they do."""
    first = config.trial_config(next(iter(corners(config.space))), config.study_dir)
    if first.manifest_path:
        return first.reference
    return load_index(first.reference).version.location


def _pinned(config: StudyConfig, record: StudyRecord) -> StudyConfig:
    """With the versions that all trials share, whatever aliases and names stand for by then."""
    versions = {"dataset": record.dataset, "init_from": record.init_from}
    shared = {name: version for name, version in versions.items() if name in config.train}
    return config.model_copy(update={"train": {**config.train, **shared}})


def _check(config: StudyConfig) -> tuple[list[TrainConfig], int]:
    """Runs at the corners of the space, and the steps of the longest.

    Raises:
        SparkRayError: one of them can't be trained on this dataset.
    """
    runs = [config.trial_config(params, config.study_dir) for params in corners(config.space)]
    indices = {reference: load_index(reference) for reference in {run.reference for run in runs}}
    plans = [
        prepare(run, indices[run.reference])[0]
        for run in {_decisive(run): run for run in runs}.values()
    ]
    for metric in config.metric:
        if metric.startswith("validation_"):
            for plan in plans:
                _check_validates(plan, metric)
    return runs, max(plan.steps for plan in plans)


def _decisive(run: TrainConfig) -> str:
    """What a run can be trained by, and in how many steps; most corners of a space share it."""
    stages = [
        stage.model_dump(mode="json", exclude={"learning_rate_scale"}) for stage in run.stages
    ]
    others = run.model_dump(mode="json", exclude={*INHERITABLE, "seed", "curriculum"})
    return json.dumps((stages, others))


def _check_validates(plan: RunPlan, metric: str) -> None:
    """
    Raises:
        ConfigError: a trial would end without a validation.
    """
    first = next((segment for segment in plan.segments if segment.validation), None)
    if first is None:
        raise ConfigError(
            f"metric: {plan.train.location} has no validation split, so no trial would report "
            f"{metric}; choose another metric, such as loss, or a larger dataset"
        )
    needed = plan.steps_of(first.epoch + 1)
    if needed > plan.steps:
        raise ConfigError(
            f"metric: {metric} comes after {needed} steps, and a trial may have {plan.steps}; "
            "raise max_steps, or choose another metric, such as loss"
        )


def _search(config: StudyConfig, setup: TrialSetup, packing: Packing, steps: int) -> None:
    """Ray Tune, from the start or where it was.

    Its `Tuner` would go on with the searcher's limit of the first time; `tune.run` takes ours.

    Raises:
        TuneError: what a callback raised, as a traceback.
    """
    path, storage = ray_storage(config.study_dir)
    began = any("experiment_state" in name for name in Folder(config.study_dir).names(TUNE))
    again = tune.ResumeConfig.ResumeType
    errored = again.RESUME if config.retry_failed else again.SKIP
    tune.run(
        tune.with_resources(
            tune.with_parameters(run_trial, setup=setup),
            tune.PlacementGroupFactory([_slot(packing)]),
        ),
        config=param_space(config),
        search_alg=searcher(config, packing.trials),
        scheduler=scheduler(config, steps),
        num_samples=1 if config.search == "grid" else config.num_samples,
        trial_dirname_creator=_trial_id,
        name=TUNE,
        storage_path=path,
        storage_filesystem=storage,
        resume_config=tune.ResumeConfig(errored=cast(str, errored)) if began else None,
        callbacks=[Recorder(config)],
        raise_on_failed_trial=False,
        verbose=0,
    )


def _trial_id(trial: Any) -> str:
    return str(trial.trial_id)


def _slot(packing: Packing) -> dict[str, float]:
    """What a trial itself takes: a part of the driver's node that no worker wants.

    As many trials as there are slots can begin, whatever the searcher or the scheduler proposes,
    also where two studies share the node. A CPU would do too, and be lost to the workers.
    """
    here = ray.get_runtime_context().get_node_id()
    node = next(node for node in ray.nodes() if node["NodeID"] == here)
    name = f"node:{node['NodeManagerAddress']}"
    return {name: (10_000 // packing.trials) / 10_000}


@contextmanager
def _tracked(study: Study) -> Iterator[Tracker]:
    """The study's own run in MLflow, which those of its trials are nested in."""
    config = study.record.config
    assert config.tracking_uri is not None
    tracker = Tracker.start(
        config.tracking_uri, config.experiment, study.name, study.record.tracking_run
    )
    tracker.log_settings(config.model_dump(mode="json"), {"study": config.study_dir})
    study.record.tracking_run = tracker.run_id
    status: RunStatus = "FAILED"
    try:
        yield tracker
        status = "FINISHED"
    finally:
        tracker.finish(status)


def _look(study: Study) -> Seen:
    """Trials that have ended by now, and how they and the others do."""
    study.trials = read_trials(study.folder)
    return Seen(sum(trial.state != "running" for trial in study.trials), _note(study))


def _note(study: Study) -> str:
    running = sum(trial.state == "running" for trial in study.trials)
    failed = sum(trial.state == "failed" for trial in study.trials)
    parts = [f"{running} running"]
    if failed:
        parts.append(f"{failed} failed")
    objective = study.objectives[0]
    best = study.best_value(objective)
    if best is not None:
        parts.append(f"best {objective.metric} {best:.4g}, of trial {study.ranked()[0].number}")
    return ", ".join(parts)


def _raise_reason(study: Study) -> None:
    """
    Raises:
        MetricNeverReported: that is what ended the study; Ray Tune has made a traceback of it.
    """
    for name in study.folder.names(FAILURES):
        failure = json.loads(study.folder.read(name))
        if failure["kind"] == MetricNeverReported.__name__:
            study.record.state = "failed"
            study.save_record()
            raise MetricNeverReported(failure["reason"]) from None


def _conclude(study: Study, tracker: Tracker) -> Study:
    """
    Raises:
        StudyFailed: every trial failed.
    """
    study.trials = read_trials(study.folder)
    for trial in study.trials:
        if trial.state == "running":
            trial.state, trial.reason = "failed", "it was lost when the study was killed"
            write_trial(study.folder, trial)
    worked = [trial for trial in study.trials if trial.state != "failed"]
    study.record.state = "finished" if worked else "failed"
    study.save_record()
    if not worked:
        raise StudyFailed(
            f"{study.folder.location}: all {len(study.trials)} trials failed; the first: "
            f"{study.trials[0].reason if study.trials else 'none was begun'}"
        )
    best = study.ranked()[0]
    tracker.log_step(
        len(study.trials),
        {f"best_{o.metric}": v for o in study.objectives if (v := best.value(o)) is not None},
    )
    write_report([study])
    return study


def _print_plan(study: Study, steps: int) -> None:
    config = study.record.config
    objectives = ", ".join(f"{o.metric} ({o.mode})" for o in study.objectives)
    lines = [
        f"Tuning {config.study_dir}",
        f"  dataset      {study.record.dataset}",
        f"  trials       {study.record.planned} of up to {counted(steps, 'step')}, {config.search}"
        + (f" with {config.scheduler}" if config.scheduler != "none" else ""),
        f"  objective    {objectives}",
        *(f"  varies       {path}: {p.shown()}" for path, p in config.space.items()),
    ]
    print("\n".join(lines), file=sys.stderr)

"""What stands behind `spark-ray tune …`."""

import argparse
import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from spark_ray.core.config import ArgumentParser
from spark_ray.core.wording import counted
from spark_ray.training.search.config import StudyConfig
from spark_ray.training.search.records import REPORT, Study, find_studies

if TYPE_CHECKING:
    from spark_ray.training.search.records import Objective, TrialRecord

_STUDY = "a study's folder or s3:// address"


def tune(arguments: Sequence[str]) -> int:
    """`spark-ray tune STUDY.yaml`: see `StudyConfig`."""
    started = time.monotonic()
    given = list(arguments)
    if given and not given[0].startswith("-"):
        given.insert(0, "--config")
    config = StudyConfig.from_command_line(given, "spark-ray tune [STUDY.yaml]")
    # Imported here: Ray Tune and the model take seconds, too long for a `--help`.
    from spark_ray.training.search.study import tune_training

    study = tune_training(config)
    where = study.folder.location
    Console().print(_trial_table(study, study.ranked()[:5]))
    counts = Counter(trial.state for trial in study.trials)
    print(f"  report       {where}/{REPORT}")
    print(f"  look inside  spark-ray tune show {where}")
    print(f"  take home    spark-ray tune promote {where}")
    print(
        f"tuned {where}: {counted(len(study.trials), 'trial')} ({counts['finished']} finished, "
        f"{counts['stopped']} stopped early, {counts['failed']} failed) in "
        f"{time.monotonic() - started:.0f} s"
    )
    return 0


def list_studies(arguments: Sequence[str]) -> int:
    """`spark-ray tune list`."""
    parser = _parser("list", "List the studies in a folder, and what each found.")
    parser.add_argument("folder", metavar="FOLDER", help="folder or s3:// that studies lie in")
    folder = parser.parse_args(arguments).folder
    studies = find_studies(folder)
    if not studies:
        print(f"{folder} holds no studies")
        return 0
    table = _table("study", "state", "trials", "objective", "best", "created")
    for study in studies:
        objective = study.objectives[0]
        table.add_row(
            study.name,
            study.record.state,
            f"{len(study.trials)} of {study.record.planned}",
            f"{objective.metric} ({objective.mode})",
            _number(study.best_value(objective)),
            study.record.created[:19],
        )
    Console().print(table)
    return 0


def show(arguments: Sequence[str]) -> int:
    """`spark-ray tune show`."""
    parser = _parser("show", "Show a study's trials, the best first, and why some ended.")
    parser.add_argument("study", metavar="STUDY", help=_STUDY)
    study = Study.load(parser.parse_args(arguments).study)
    Console().print(_trial_table(study, study.listed()))
    for trial in study.trials:
        if trial.state == "failed":
            print(f"  trial {trial.number} failed: {trial.reason}")
    if study.record.state == "running":
        print("  it is running, or was interrupted: its command, given again, goes on with it")
    if len(study.objectives) > 1:
        front = ", ".join(str(trial.number) for trial in study.pareto_front())
        print(f"  Pareto front: trials {front or 'none'}")
    return 0


def report(arguments: Sequence[str]) -> int:
    """`spark-ray tune report`."""
    parser = _parser("report", "Write one HTML file about a study, or several beside each other.")
    parser.add_argument("studies", metavar="STUDY", nargs="+", help=_STUDY)
    parser.add_argument("--to", metavar="FILE", help=f"unset: the first study's {REPORT}")
    options = parser.parse_args(arguments)
    from spark_ray.training.search.report import write_report

    studies = [Study.load(location) for location in options.studies]
    print(f"wrote {write_report(studies, options.to)}")
    return 0


def promote(arguments: Sequence[str]) -> int:
    """`spark-ray tune promote`."""
    parser = _parser("promote", "Register the model of a study's best trial, as the champion.")
    parser.add_argument("study", metavar="STUDY", help=_STUDY)
    parser.add_argument("--trial", type=int, metavar="N", help="another trial than the best")
    parser.add_argument("--name", default="apotheon", help="of the model (default: apotheon)")
    parser.add_argument("--alias", default="champion", help="it gets (default: champion)")
    options = parser.parse_args(arguments)
    from spark_ray.training.search.promotion import promote_trial

    study = Study.load(options.study)
    trial, model, before = promote_trial(study, options.trial, options.name, options.alias)
    best = study.ranked()[0]
    if options.trial is None and best is not trial:
        print(
            f"  trial {best.number} was better and has no model: it was {best.state}",
            file=sys.stderr,
        )
    if study.record.state == "running":
        print("  the study is not at its end: a later trial may be better", file=sys.stderr)
    replaced = f", in place of version {before}" if before is not None else ""
    print(
        f"promoted trial {trial.number}: {model.uri} is models:/{model.name}@{options.alias}"
        + replaced
    )
    return 0


def _parser(command: str, description: str) -> argparse.ArgumentParser:
    return ArgumentParser(
        prog=f"spark-ray tune {command}", description=description, allow_abbrev=False
    )


def _table(*columns: str) -> Table:
    return Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def _trial_table(study: Study, trials: "Sequence[TrialRecord]") -> Table:
    objectives: list[Objective] = study.objectives
    paths = list(study.record.config.space)
    table = _table("trial", "state", *(o.metric for o in objectives), "steps", "seconds", *paths)
    for trial in trials:
        params = trial.params_at_best(objectives[0])
        table.add_row(
            str(trial.number),
            trial.state,
            *(_number(trial.value(objective)) for objective in objectives),
            str(trial.steps),
            f"{trial.seconds:.0f}",
            *(_number(params[path]) for path in paths),
        )
    return table


def _number(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else str(value)

"""What stands behind `spark-ray data …`: read arguments, call one function, say what came out.

Each command imports what it needs itself: Ray alone takes two seconds, too long for a `--help`.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spark_ray.core.config import ArgumentParser, add_flag
from spark_ray.core.wording import counted
from spark_ray.datasets.config import OPERATIONAL, BuildConfig
from spark_ray.datasets.layout import EXPORT_FORMATS, REJECTS, REPORT

if TYPE_CHECKING:
    from spark_ray.datasets.build import BuildResult
    from spark_ray.datasets.publish import Publication

_DATASET = "a dataset's folder or s3:// address; add @vN for a version other than the newest"
_DATASET_OR_MANIFEST = f"{_DATASET}; or a manifest.jsonl"


def build(arguments: Sequence[str]) -> int:
    """`spark-ray data build`: see `BuildConfig`."""
    started = time.monotonic()
    config = BuildConfig.from_command_line(arguments, "spark-ray data build")
    from spark_ray.datasets.build import build_dataset

    return _say_result(build_dataset(config), time.monotonic() - started)


def replay(arguments: Sequence[str]) -> int:
    """`spark-ray data replay`."""
    parser = _parser("replay", "Try only the rejects again; publish the result as a new version.")
    parser.argument_default = argparse.SUPPRESS  # what is not given stays as it was
    for name in sorted(OPERATIONAL - {"output", "version"}):
        add_flag(parser, name, BuildConfig.model_fields[name])
    options = vars(parser.parse_args(arguments))
    dataset = options.pop("dataset")
    from spark_ray.datasets.replay import replay_rejects

    started = time.monotonic()
    done = replay_rejects(dataset, **options)
    if not done.rejects:
        print(f"nothing to replay: {dataset} has no rejects")
        return 0
    if done.result is None:
        print(f"nothing changed: no reject of {dataset} became a clip")
        return 0
    return _say_result(done.result, time.monotonic() - started)


def inspect(arguments: Sequence[str]) -> int:
    """`spark-ray data inspect`."""
    parser = _parser("inspect", "Show a dataset: versions, funnel, settings and first clips.")
    parser.add_argument("--clip", metavar="ID", help="show one clip in full")
    options = parser.parse_args(arguments)
    from spark_ray.datasets.views import inspect_dataset

    print(inspect_dataset(options.dataset, options.clip))
    return 0


def stats(arguments: Sequence[str]) -> int:
    """`spark-ray data stats`."""
    parser = _parser(
        "stats",
        "Count a manifest anew; empty and broken lines are counted too.",
        _DATASET_OR_MANIFEST,
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    from spark_ray.datasets.views import dataset_stats

    print(dataset_stats(options.dataset, as_json=options.json))
    return 0


def export(arguments: Sequence[str]) -> int:
    """`spark-ray data export`."""
    parser = _parser("export", "Write a dataset in a form that other tools read.")
    parser.add_argument("--to", required=True, metavar="FOLDER", help="folder or s3:// to write to")
    parser.add_argument(
        "--format",
        default="webdataset",
        metavar="{" + ",".join(EXPORT_FORMATS) + "}",
        help="webdataset: tar shards, for the webdataset package (clips differ in their number of "
        "frames, which Hugging Face's loader of tar files does not allow; give that parquet); "
        "parquet: shards with bytes inline; csv: one row a clip, no media (default: webdataset)",
    )
    options = parser.parse_args(arguments)
    from spark_ray.datasets.export import export_dataset

    count = export_dataset(options.dataset, options.to, options.format)
    print(f"exported {counted(count, 'clip')} as {options.format} to {options.to}")
    return 0


def _parser(command: str, description: str, dataset: str = _DATASET) -> argparse.ArgumentParser:
    parser = ArgumentParser(
        prog=f"spark-ray data {command}", description=description, allow_abbrev=False
    )
    parser.add_argument("dataset", metavar="DATASET", help=dataset)
    return parser


def _say_result(result: "BuildResult", elapsed_s: float) -> int:
    where = result.version.location
    if result.publication is None:
        reason = "no file among the inputs holds a video, or all were filtered out"
        if result.rejects:
            reason = (
                f"every video was rejected; {where}/{REJECTS} says why, and the same command tries "
                "them again"
            )
        print(f"nothing published: {reason} ({counted(result.rejects, 'reject')})", file=sys.stderr)
        return 1
    done = result.publication
    print(f"  report       {where}/{REPORT}")
    print(f"  look inside  spark-ray data inspect {where}")
    if result.rejects:
        print(f"  try rejects  spark-ray data replay {where}")
    print(
        f"published {where}: {counted(done.clips, 'clip')}{_texts(done)}, "
        f"{counted(done.frames, 'frame')}, {done.hours * 60:.1f} min of video in "
        f"{elapsed_s:.0f} s, {_left_out(done)}{counted(result.rejects, 'reject')}"
    )
    return 0


def _texts(done: "Publication") -> str:
    """How many clips have a text, where one was asked for and some have none."""
    texts = ((done.captioned, "a caption"), (done.transcribed, "a transcript"))
    told = [f"{n} with {text}" for n, text in texts if n is not None and n < done.clips]
    return f" ({', '.join(told)})" if told else ""


def _left_out(done: "Publication") -> str:
    copies = f"{counted(done.copies, 'copy', 'copies')} left out"
    filtered = f"{done.filtered} filtered"
    parts = ((done.copies, copies), (done.filtered, filtered))
    return "".join(f"{text}, " for count, text in parts if count)

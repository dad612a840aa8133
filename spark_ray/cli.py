"""The command line: `spark-ray data build`, `spark-ray demo`, and what else the house can do."""

import io
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import NamedTuple

from spark_ray import __version__
from spark_ray.core.config import exit_with
from spark_ray.core.errors import (
    ConfigError,
    DatasetError,
    MissingDependency,
    ModelError,
    SparkRayError,
)
from spark_ray.core.logging import configure_logging
from spark_ray.monitoring.logs import job_ids

FAILED, WRONG_USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143


class Command(NamedTuple):
    """A command, and where its function is; imported only when it is called, for a quick --help."""

    words: tuple[str, ...]
    function: str
    help: str


COMMANDS = (
    Command(
        ("data", "build"),
        "spark_ray.datasets.commands:build",
        "turn video into a published, versioned dataset; run again to resume",
    ),
    Command(
        ("data", "inspect"),
        "spark_ray.datasets.commands:inspect",
        "show a dataset, its versions and single clips",
    ),
    Command(
        ("data", "stats"),
        "spark_ray.datasets.commands:stats",
        "count a manifest anew, whatever state it is in",
    ),
    Command(
        ("data", "replay"),
        "spark_ray.datasets.commands:replay",
        "try only the rejects again and publish the result as the next version",
    ),
    Command(
        ("data", "export"),
        "spark_ray.datasets.commands:export",
        "write a dataset as Parquet, WebDataset or CSV for other tools",
    ),
    Command(
        ("train", "apotheon"),
        "spark_ray.training.commands:train_apotheon",
        "train Apotheon on a published dataset; run again to resume",
    ),
    Command(
        ("tune", "list"),
        "spark_ray.training.search.commands:list_studies",
        "list studies, and what each found",
    ),
    Command(
        ("tune", "show"),
        "spark_ray.training.search.commands:show",
        "show a study's trials, the best first",
    ),
    Command(
        ("tune", "report"),
        "spark_ray.training.search.commands:report",
        "write a study, or several, as one HTML file",
    ),
    Command(
        ("tune", "promote"),
        "spark_ray.training.search.commands:promote",
        "register the best trial's model",
    ),
    Command(
        ("tune",),
        "spark_ray.training.search.commands:tune",
        "search for the best settings of a training; run again to resume",
    ),
    Command(
        ("evaluate",),
        "spark_ray.evaluation.commands:evaluate",
        "measure a trained model on clips that it has not seen",
    ),
    Command(
        ("submit",),
        "spark_ray.cluster.commands:submit",
        "send a job to a cluster and follow it; Ctrl-C leaves it running",
    ),
    Command(
        ("jobs", "list"),
        "spark_ray.cluster.commands:list_jobs",
        "list the jobs of a cluster",
    ),
    Command(
        ("jobs", "logs"),
        "spark_ray.cluster.commands:job_logs",
        "print what a job wrote; --follow waits for its end",
    ),
    Command(
        ("jobs", "stop"),
        "spark_ray.cluster.commands:stop_job",
        "stop a job",
    ),
    Command(
        ("cluster", "render"),
        "spark_ray.cluster.commands:render",
        "write the files of a cluster: AWS, GCP, on-premise or KubeRay",
    ),
    Command(
        ("doctor",),
        "spark_ray.doctor.command:main",
        "look at machine, cluster, storage, models and GPUs, and say what is wrong",
    ),
    Command(
        ("keys", "create"),
        "spark_ray.serving.commands:create_key",
        "make an API key of the server",
    ),
    Command(
        ("keys", "list"),
        "spark_ray.serving.commands:list_keys",
        "list the API keys of the server",
    ),
    Command(
        ("keys", "revoke"),
        "spark_ray.serving.commands:revoke_key",
        "revoke an API key of the server",
    ),
    Command(
        ("keys", "audit"),
        "spark_ray.serving.commands:show_audit",
        "print who did what at the server",
    ),
    Command(
        ("monitoring", "render"),
        "spark_ray.monitoring.commands:render",
        "write scrape rules, alerts and dashboards for Prometheus and Grafana",
    ),
    Command(
        ("demo",),
        "spark_ray.demo.command:main",
        "the whole loop on clips that the demo draws itself",
    ),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; see the README for what each status means."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words in (["--version"], ["version"]):
        print(f"spark-ray {__version__}")
        return 0
    command = next((c for c in COMMANDS if tuple(words[: len(c.words)]) == c.words), None)
    if command is None:
        return _no_command(words)
    return run(command.function, words[len(command.words) :])


def run(function: str, arguments: Sequence[str]) -> int:
    """Call `module:function` and turn its errors into one sentence and an exit status."""
    configure_logging(ids=job_ids)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # of terminals that lack a character
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))  # as Ray does later
    module, _, name = function.partition(":")
    try:
        call: Callable[[Sequence[str]], int] = getattr(import_module(module), name)
        return call(arguments)
    except (ConfigError, DatasetError, ModelError, MissingDependency) as error:
        return exit_with(error, WRONG_USAGE)
    except SparkRayError as error:
        return exit_with(error, FAILED)
    except KeyboardInterrupt:
        return _interrupted(INTERRUPTED)
    except SystemExit as stop:
        if stop.code != signal.SIGTERM:
            raise
        return _interrupted(TERMINATED)
    except BrokenPipeError:
        return 0  # the reader, e.g. `head`, has seen enough


def _interrupted(status: int) -> int:
    print("interrupted; run the same command again to go on", file=sys.stderr)
    return status


def _no_command(words: Sequence[str]) -> int:
    asked_for_help = not words or words[-1] in ("-h", "--help")
    group = [word for word in words if not word.startswith("-")][:1]
    known = {command.words[0] for command in COMMANDS}
    chosen = [c for c in COMMANDS if not group or group[0] not in known or c.words[0] == group[0]]
    lines = [f"  spark-ray {' '.join(c.words):<17} {c.help}" for c in chosen]
    text = "\n".join(
        [
            "usage: spark-ray COMMAND [settings]",
            "",
            *lines,
            "",
            "Each command has its own --help; spark-ray --version prints the version.",
        ]
    )
    if asked_for_help:
        print(text)
        return 0
    given = " ".join(words[:2])
    wrong = f"{given!r} needs a command" if given in known else f"unknown command {given!r}"
    print(f"error: {wrong}\n{text}", file=sys.stderr)
    return WRONG_USAGE


if __name__ == "__main__":
    raise SystemExit(main())

"""What stands behind `spark-ray cluster …`, `spark-ray submit` and `spark-ray jobs …`."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from spark_ray.cluster.config import ClusterPlace, SubmitConfig
from spark_ray.cluster.values import ClusterValues
from spark_ray.core.config import ArgumentParser
from spark_ray.core.wording import counted

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

    from spark_ray.cluster.submit import Package

_INTERRUPTED = 130


def render(arguments: Sequence[str]) -> int:
    """`spark-ray cluster render`: see `ClusterValues`."""
    values = ClusterValues.from_command_line(arguments, "spark-ray cluster render")
    from spark_ray.cluster.render import left_over, write

    files = write(values)
    for file in files:
        print(f"  {file}")
    for file in left_over(values, files):
        print(f"  of before    {file}: remove it, unless it is still wanted")
    left_out = [name for name in ("workload", "serve_config") if getattr(values, name) is not None]
    if left_out and values.provider != "kuberay":
        print(f"  left out     {' and '.join(left_out)}: only kuberay has files for that")
    print(
        f"rendered {counted(len(files), 'file')} for {values.provider}; "
        "the head of each says what to type next"
    )
    return 0


def submit(arguments: Sequence[str]) -> int:
    """`spark-ray submit JOB.yaml [flags] [-- flags of the job]`: see `SubmitConfig`."""
    ours, flags = _split(arguments)
    config = SubmitConfig.from_command_line(ours, "spark-ray submit [JOB.yaml]")
    from spark_ray.cluster.jobs_api import connect
    from spark_ray.cluster.submit import packed, send

    with packed(config, _folder_of_file(ours), flags) as package:
        _announce(package, config.resolved())
        client = connect(config)
        job_id = send(client, package)
    print(f"  job          {job_id}", file=sys.stderr)
    if not config.wait:
        print(
            f"sent {job_id}; follow it with: spark-ray jobs logs {job_id} --follow{_where(config)}"
        )
        return 0
    return _follow(client, job_id, _where(config))


def list_jobs(arguments: Sequence[str]) -> int:
    """`spark-ray jobs list`."""
    options = _parser("list", "List the jobs of a cluster.").parse_args(arguments)
    from spark_ray.cluster.jobs_api import cluster_errors
    from spark_ray.cluster.submit import JOB_LABEL

    client = _connect(options)
    with cluster_errors(client.get_address()):
        jobs = [job for job in client.list_jobs() if job.submission_id]
    Console().print(_job_table(jobs, JOB_LABEL))
    return 0


def _job_table(jobs: "Sequence[JobDetails]", label: str) -> Table:
    """A line each. Ids stay whole, to be copied; of what others run, as much as there is room."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("id", "state", "begun", "minutes"):
        table.add_column(name, no_wrap=True)
    table.add_column("job")  # the one that rich may narrow; its cells are cut, not wrapped
    for job in sorted(jobs, key=lambda job: job.start_time or 0):
        what = (job.metadata or {}).get(label, job.entrypoint)
        cut = Text(what, no_wrap=True, overflow="ellipsis")
        table.add_row(job.submission_id, job.status.value.lower(), *_times(job), cut)
    return table


def job_logs(arguments: Sequence[str]) -> int:
    """`spark-ray jobs logs`."""
    parser = _parser("logs", "Print what a job wrote.")
    _add_job(parser)
    parser.add_argument("--follow", action="store_true", help="wait for more until the job ends")
    options = parser.parse_args(arguments)
    from spark_ray.cluster.jobs_api import cluster_errors, find_job

    client = _connect(options)
    find_job(client, options.job)
    if options.follow:
        return _follow(client, options.job, _where(options))
    with cluster_errors(client.get_address()):
        sys.stdout.write(client.get_job_logs(options.job))
    return 0


def stop_job(arguments: Sequence[str]) -> int:
    """`spark-ray jobs stop`."""
    parser = _parser("stop", "Stop a job. What it has committed stays, and it can be sent again.")
    _add_job(parser)
    options = parser.parse_args(arguments)
    from spark_ray.cluster.jobs_api import cluster_errors, find_job

    client = _connect(options)
    job = find_job(client, options.job)
    with cluster_errors(client.get_address()):
        stopped = not job.status.is_terminal() and client.stop_job(options.job)
    print(f"stopping {options.job}" if stopped else f"{options.job} has ended already")
    return 0


def _follow(client: "JobSubmissionClient", job_id: str, where: str) -> int:
    from spark_ray.cluster.follow import Follower, exit_status

    try:
        job = Follower(client, job_id).follow()
    except KeyboardInterrupt:
        print(
            f"\n{job_id} goes on without you\n"
            f"  follow it    spark-ray jobs logs {job_id} --follow{where}\n"
            f"  stop it      spark-ray jobs stop {job_id}{where}",
            file=sys.stderr,
        )
        return _INTERRUPTED
    status = exit_status(job)
    if status:
        print(f"error: {job_id} {job.status.value.lower()}: {_why(job)}", file=sys.stderr)
    return status


def _where(given: ClusterPlace | argparse.Namespace) -> str:
    """The flags that name the cluster, for a command to be typed next."""
    flags = {"--address": given.address, "--ca-file": given.ca_file}
    return "".join(f" {flag} {shlex.quote(value)}" for flag, value in flags.items() if value)


def _why(job: "JobDetails") -> str:
    if job.driver_exit_code is not None:
        return f"its exit status is {job.driver_exit_code}, and its last lines are above"
    return " ".join((job.message or "the cluster does not say why").split())


def _announce(package: "Package", address: str) -> None:
    lines = [f"Sending {package.job} to {address}"]
    files = sorted(path.name for path in package.folder.iterdir())
    lines.append(f"  takes along  {', '.join(files)}")
    if package.environment:
        lines.append(f"  environment  {', '.join(sorted(package.environment))}")
    if package.needs_tracking():
        lines.append("  must be set there: MLFLOW_TRACKING_URI, or the job's tracking_uri here")
    if paths := package.cluster_paths():
        lines.append(f"  must be there, on all nodes: {', '.join(paths)}")
    print("\n".join(lines), file=sys.stderr)


def _split(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own flags and those of the job, with the file as the flag that it stands for."""
    words = list(arguments)
    at = words.index("--") if "--" in words else len(words)
    ours, flags = words[:at], words[at + 1 :]
    if ours and not ours[0].startswith("-"):
        ours = ["--config", *ours]
    return ours, flags


def _folder_of_file(ours: Sequence[str]) -> Path:
    """Where the job's YAML file is, and so what `files` are relative to."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=".")
    file = Path(parser.parse_known_args(ours)[0].config)
    return (file if file.is_dir() else file.parent).absolute()


def _parser(command: str, description: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=f"spark-ray jobs {command}", description=description, allow_abbrev=False
    )
    for name, described in ClusterPlace.model_fields.items():
        parser.add_argument("--" + name.replace("_", "-"), help=described.description)
    return parser


def _add_job(parser: ArgumentParser) -> None:
    parser.add_argument("job", metavar="JOB", help="id of the job, as `jobs list` shows it")


def _connect(options: argparse.Namespace) -> "JobSubmissionClient":
    from spark_ray.cluster.jobs_api import connect

    return connect(ClusterPlace(address=options.address, ca_file=options.ca_file))


def _times(job: "JobDetails") -> tuple[str, str]:
    """When it began, and how many minutes it took so far."""
    if not job.start_time:
        return "", ""
    began = job.start_time / 1000
    ended = job.end_time / 1000 if job.end_time else datetime.now(UTC).timestamp()
    begun = datetime.fromtimestamp(began, UTC).strftime("%Y-%m-%d %H:%M")
    return begun, f"{(ended - began) / 60:.1f}"

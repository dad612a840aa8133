"""`spark-ray doctor`: one line for each thing, and an exit status for scripts."""

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from spark_ray.doctor.config import DoctorConfig
from spark_ray.doctor.findings import Finding, State

_STYLES: dict[State, str] = {"ok": "green", "note": "yellow", "wrong": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """`spark-ray doctor`: see `DoctorConfig`."""
    config = DoctorConfig.from_command_line(arguments, "spark-ray doctor")
    console = Console()
    states: Counter[State] = Counter()
    for finding in findings(config):
        states[finding.state] += 1
        line = Text.assemble(
            (f"{finding.state:<6}", _STYLES[finding.state]), f" {finding.area:<9} {finding.text}"
        )
        console.print(line, soft_wrap=True)
    if states["wrong"]:
        console.print(f"{states['wrong']} of {states.total()} things are wrong")
        return 1
    notes = f", {states['note']} worth a note" if states["note"] else ""
    console.print(f"nothing is wrong: {states.total()} things looked at{notes}")
    return 0


def findings(config: DoctorConfig) -> Iterator[Finding]:
    """Everything, from the machine outwards; each as soon as it is known."""
    # Imported here: together these take seconds, and the first lines need none of them.
    from spark_ray.doctor.machine import check_machine
    from spark_ray.doctor.packages import check_packages

    yield from check_machine(config)
    yield from check_packages(config)
    from spark_ray.doctor.codecs import check_codecs
    from spark_ray.doctor.storage import check_storage

    yield from check_codecs(config)
    yield from check_storage(config)
    from spark_ray.doctor.gpus import check_gpus
    from spark_ray.doctor.models import check_models

    yield from check_models(config)
    yield from check_gpus(config)
    from spark_ray.doctor.cluster import check_cluster

    yield from check_cluster(config)

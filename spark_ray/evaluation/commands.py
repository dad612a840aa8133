"""What stands behind `spark-ray evaluate`: read arguments, call one function, say what came out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from spark_ray.evaluation.config import EvaluateConfig

if TYPE_CHECKING:
    from spark_ray.evaluation.evaluate import Evaluation
    from spark_ray.evaluation.results import Scores


def evaluate(arguments: Sequence[str]) -> int:
    """`spark-ray evaluate`: see `EvaluateConfig`."""
    config = EvaluateConfig.from_command_line(arguments, "spark-ray evaluate")
    # Imported here: Ray alone takes two seconds, too long for a `--help`.
    from spark_ray.evaluation.evaluate import evaluate as run

    say_result(run(config), with_pdf=config.pdf)
    return 0


def say_result(done: "Evaluation", *, with_pdf: bool) -> None:
    """Print what an evaluation found, and where it is."""
    from spark_ray.evaluation.results import PDF, PREDICTIONS, REPORT, RESULTS

    results, where = done.results, done.output.location
    console = Console()
    for table in _tables(results.overall):
        console.print(table)
    print(f"  results      {where}/{RESULTS}")
    print(f"  predictions  {where}/{PREDICTIONS}")
    if with_pdf:
        print(f"  PDF          {where}/{PDF}")
    print(f"  report       {where}/{REPORT}")
    if done.card_updated:
        print(f"  model card   {done.results.settings['model']} says so too")
    counts = results.clips
    notes = [
        f"{counts.failed} could not be read" if counts.failed else "",
        f"{counts.without_reference} without a reference" if counts.without_reference else "",
    ]
    print(
        f"evaluated {counts.evaluated} of {counts.asked} clips in {results.seconds:.0f} s"
        + "".join(f", {note}" for note in notes if note)
    )


def _tables(scores: "Scores") -> list[Table]:
    """Captions, transcripts, and retrieval both ways in one; what has no reference is left out."""
    from spark_ray.evaluation.metrics import GROUP_TITLES, Group, metrics_of

    tables = []
    together: list[list[Group]] = [["captions"], ["transcripts"], ["text_to_clip", "clip_to_text"]]
    for groups in together:
        present = [group for group in groups if getattr(scores, group) is not None]
        if not present:
            continue
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        table.add_column("", min_width=11)
        table.add_column("n", justify="right")
        for metric in metrics_of(present[0]):
            table.add_column(metric.title, justify="right")
        for group in present:
            values = [metric.text(metric.of(scores)) for metric in metrics_of(group)]
            table.add_row(GROUP_TITLES[group], str(getattr(scores, group).clips), *values)
        tables.append(table)
    return tables

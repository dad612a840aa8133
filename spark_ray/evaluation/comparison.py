"""Several runs side by side: this one, and earlier ones of `compare`."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from spark_ray.evaluation.metrics import METRICS, Difference, Metric, headline
from spark_ray.evaluation.results import Results, Scores


@dataclass(frozen=True)
class Run:
    """A run under a name that no other of the comparison has."""

    name: str
    results: Results


@dataclass(frozen=True)
class MetricRow:
    """One metric of every run, in the order of the runs. `best` are the indices of the best."""

    metric: Metric
    values: tuple[float | None, ...]
    best: frozenset[int]


@dataclass(frozen=True)
class SliceRow:
    """How this run differs from an earlier one in a slice, by the headline metrics."""

    name: str
    clips: int
    differences: tuple[Difference | None, ...]


@dataclass(frozen=True)
class SliceTable:
    """All slices of one kind that both runs have, against one earlier run."""

    earlier: str
    kind: str
    rows: tuple[SliceRow, ...]


@dataclass(frozen=True)
class Comparison:
    """`runs` begins with the present one. `others` are the runs that judged other clips."""

    runs: tuple[Run, ...]
    rows: tuple[MetricRow, ...]
    headline: tuple[Metric, ...]
    slices: tuple[SliceTable, ...]
    others: tuple[str, ...]


def compare(present: Results, earlier: Sequence[Results]) -> Comparison | None:
    """None where there is nothing to compare with."""
    if not earlier:
        return None
    runs = _named([present, *earlier])
    scores = [run.results.overall for run in runs]
    metrics = tuple(headline(scores))
    return Comparison(
        runs=runs,
        rows=tuple(_row(metric, scores) for metric in METRICS if _row(metric, scores).best),
        headline=metrics,
        slices=tuple(
            table
            for run in runs[1:]
            for table in _slice_tables(present, run, metrics)
            if table.rows
        ),
        others=tuple(run.name for run in runs[1:] if run.results.clips_hash != present.clips_hash),
    )


def _named(results: Sequence[Results]) -> tuple[Run, ...]:
    """Of runs with the same name, all but the first get a number."""
    seen: Counter[str] = Counter()
    runs = []
    for result in results:
        seen[result.name] += 1
        number = seen[result.name]
        runs.append(Run(result.name if number == 1 else f"{result.name} ({number})", result))
    return tuple(runs)


def _row(metric: Metric, scores: Sequence[Scores]) -> MetricRow:
    values = tuple(metric.of(of_run) for of_run in scores)
    known = [value for value in values if value is not None]
    best = (max if metric.higher_is_better else min)(known, default=None)
    return MetricRow(
        metric,
        values,
        frozenset(i for i, value in enumerate(values) if value is not None and value == best),
    )


def _slice_tables(present: Results, run: Run, metrics: Sequence[Metric]) -> list[SliceTable]:
    tables = []
    for kind, groups in present.slices.items():
        theirs = run.results.slices.get(kind, {})
        rows = [
            SliceRow(
                name,
                scores.clips,
                tuple(m.difference(m.of(scores), m.of(theirs[name])) for m in metrics),
            )
            for name, scores in groups.items()
            if name in theirs
        ]
        tables.append(SliceTable(run.name, kind, tuple(rows)))
    return tables

"""The metrics as people read them: their names, their order, and which way is better."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from spark_ray.evaluation.results import Scores
from spark_ray.models.training_record import Skill

Group = Literal["captions", "transcripts", "text_to_clip", "clip_to_text"]

GROUP_TITLES: dict[Group, str] = {
    "captions": "Captions",
    "transcripts": "Transcripts",
    "text_to_clip": "Text → clip",
    "clip_to_text": "Clip → text",
}

_SKILLS: dict[Group, Skill] = {"captions": "caption", "transcripts": "transcript"}


@dataclass(frozen=True)
class Metric:
    """A field of one group of `Scores`. `unit`: a share is shown in percent."""

    group: Group
    field: str
    title: str
    unit: Literal["share", "number"] = "share"
    higher_is_better: bool = True

    def of(self, scores: Scores) -> float | None:
        """Its value; None where no clip has the reference that it takes."""
        group = getattr(scores, self.group)
        return None if group is None else float(getattr(group, self.field))

    def text(self, value: float | None) -> str:
        """`12.3 %`, or `0.71`; a dash for no value."""
        if value is None:
            return "–"
        return f"{100 * value:.1f} %" if self.unit == "share" else _number(value)

    def difference(self, value: float | None, baseline: float | None) -> "Difference | None":
        """How `value` differs from `baseline`; None where either is missing."""
        if value is None or baseline is None:
            return None
        change = value - baseline
        digits = 1 if abs(change) >= 10 else 2
        shown = f"{100 * change:+.1f} pp" if self.unit == "share" else f"{change:+.{digits}f}"
        if not any(digit in shown for digit in "123456789"):
            return Difference(shown.replace("-", "+").replace("+", "±"), "same")
        is_better = (change > 0) == self.higher_is_better
        return Difference(shown.replace("-", "−"), "better" if is_better else "worse")


@dataclass(frozen=True)
class Difference:
    """A difference that is large enough to be seen in its `text`, or `same`."""

    text: str
    kind: Literal["better", "worse", "same"]


def _number(value: float) -> str:
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _retrieval(group: Group) -> tuple[Metric, ...]:
    return (
        Metric(group, "recall_at_1", "R@1"),
        Metric(group, "recall_at_5", "R@5"),
        Metric(group, "recall_at_10", "R@10"),
        Metric(group, "median_rank", "median rank", "number", higher_is_better=False),
    )


METRICS: tuple[Metric, ...] = (
    Metric("captions", "exact", "exact"),
    Metric("captions", "bleu", "BLEU", "number"),
    Metric("captions", "rouge_l", "ROUGE-L"),
    Metric("captions", "meteor", "METEOR"),
    Metric("captions", "cider", "CIDEr", "number"),
    Metric("transcripts", "wer", "WER", higher_is_better=False),
    Metric("transcripts", "cer", "CER", higher_is_better=False),
    *_retrieval("text_to_clip"),
    *_retrieval("clip_to_text"),
)


def metrics_of(group: Group) -> list[Metric]:
    return [metric for metric in METRICS if metric.group == group]


def by_skill(scores: Scores) -> dict[Skill, dict[str, float | None]]:
    """Every metric by what the model can do, as its record holds them; directions in the names."""
    found: dict[Skill, dict[str, float | None]] = {}
    for metric in METRICS:
        skill = _SKILLS.get(metric.group, "retrieval")
        name = metric.field if metric.group in _SKILLS else f"{metric.group}_{metric.field}"
        if (value := metric.of(scores)) is not None:
            found.setdefault(skill, {})[name] = value
    return found


def headline(scores: Sequence[Scores]) -> list[Metric]:
    """Those to look at first: recall at 1 stands for retrieval; none that no run has a value of."""
    return [
        metric
        for metric in METRICS
        if metric.field not in ("recall_at_5", "recall_at_10", "median_rank")
        and any(metric.of(of_run) is not None for of_run in scores)
    ]


def long_title(metric: Metric) -> str:
    """The title, with the direction where retrieval has two."""
    if metric.group in ("text_to_clip", "clip_to_text"):
        return f"{metric.title} {GROUP_TITLES[metric.group].lower()}"
    return metric.title

"""What wakes an operator: Prometheus rules over the declared metrics."""

from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from spark_ray.monitoring import metrics


class Annotations(BaseModel):
    """A line for the pager, and what to do about it."""

    summary: str
    description: str


class Rule(BaseModel):
    """An alert that fires once `expr` has yielded a series for so long."""

    model_config = ConfigDict(populate_by_name=True)

    alert: str = Field(pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    expr: str
    lasting: str = Field(alias="for", pattern=r"^[0-9]+[smh]$")
    labels: dict[str, str]
    annotations: Annotations


class Group(BaseModel):
    """Rules that are evaluated one after the other."""

    name: str
    rules: list[Rule]


class RuleFile(BaseModel):
    """A file of `rule_files`."""

    groups: list[Group]

    def as_yaml(self) -> str:
        values = self.model_dump(by_alias=True)
        return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=100)


def _rule(
    name: str,
    severity: Literal["page", "ticket"],
    lasting: str,
    expr: str,
    summary: str,
    description: str,
) -> Rule:
    return Rule(
        alert=f"SparkRay{name}",
        expr=expr,
        lasting=lasting,
        labels={"severity": severity},
        annotations=Annotations(summary=summary, description=description),
    )


def rules() -> RuleFile:
    """All alerts, by room."""
    return RuleFile(
        groups=[
            Group(name="spark_ray_cluster", rules=_cluster()),
            Group(name="spark_ray_datasets", rules=_datasets()),
            Group(name="spark_ray_training", rules=_training()),
            Group(name="spark_ray_serving", rules=_serving()),
        ]
    )


def _cluster() -> list[Rule]:
    return [
        _rule(
            "NodeNotScraped", "page", "5m",
            'up{job="ray"} == 0',
            "{{ $labels.instance }} can't be scraped",
            "Ray has it among its living nodes, and its metrics port does not answer: its agent "
            "hangs, or a firewall is between. Nodes that are gone leave the list of targets.",
        ),
    ]  # fmt: skip


def _datasets() -> list[Rule]:
    clips, waiting = metrics.CLIPS.exported, metrics.UNITS_WAITING.exported
    return [
        _rule(
            "BuildStalled", "ticket", "5m",
            f"(max by (dataset) ({waiting}) > 0)"
            f" unless on () (sum(increase({clips}[15m])) > 0)",
            "the build of {{ $labels.dataset }} has committed nothing for 15 minutes",
            "Look for a model that hangs or storage that does not answer; the same command resumes "
            "a build that was stopped.",
        ),
        _rule(
            "ManyRejects", "ticket", "10m",
            f'sum(rate({clips}{{status="rejected"}}[15m]))'
            f" / sum(rate({clips}[15m])) > 0.1",
            "{{ $value | humanizePercentage }} of the clips are rejected",
            "rejects.jsonl of the dataset says why; `spark-ray data replay` tries them again.",
        ),
    ]  # fmt: skip


def _training() -> list[Rule]:
    steps, wait = metrics.TRAIN_STEPS.exported, metrics.TRAIN_DATA_WAIT.exported
    return [
        _rule(
            "TrainingStalled", "page", "5m",
            f"max by (run) ({wait})"
            f" unless on (run) (sum by (run) (increase({steps}[15m])) > 0)",
            "run {{ $labels.run }} has made no step for 15 minutes",
            "A rank hangs or waits for data: `ray stack` on its node shows where.",
        ),
        _rule(
            "TrainingStarved", "ticket", "15m",
            f"max by (run) (avg_over_time({wait}[10m])) > 0.3",
            "run {{ $labels.run }} waits for data in {{ $value | humanizePercentage }} of its time",
            "Give it more --data-workers, --data-cpus or --data-cache-bytes.",
        ),
        _rule(
            "StepsSkipped", "ticket", "1m",
            f"sum by (run) (increase({metrics.TRAIN_SKIPPED.exported}[15m])) > 3",
            "run {{ $labels.run }} skips steps: losses or gradients are no numbers",
            "Its log names the clips; look at these, or lower --learning-rate.",
        ),
    ]  # fmt: skip


def _serving() -> list[Rule]:
    requests, seconds = metrics.HTTP_REQUESTS.exported, metrics.HTTP_REQUEST_SECONDS.exported
    return [
        _rule(
            "ServerErrors", "page", "5m",
            f'sum(rate({requests}{{status=~"5.."}}[5m])) / sum(rate({requests}[5m])) > 0.05',
            "{{ $value | humanizePercentage }} of the requests fail",
            "503 means too few replicas or a lost one, 500 a defect: the gateway's log has the "
            "request_id and the traceback.",
        ),
        _rule(
            "ServerSlow", "ticket", "10m",
            "histogram_quantile(0.95, sum by (le) "
            f'(rate({seconds}_bucket{{route!~".*(assets|events|logs).*"}}[5m]))) > 10',
            "one request in twenty takes more than {{ $value | humanizeDuration }}",
            "The panel 'Where the time goes' tells queue, decoding and model apart.",
        ),
        _rule(
            "ModelQueueLong", "ticket", "10m",
            "histogram_quantile(0.95, sum by (model, le) "
            f'(rate({metrics.PHASE_SECONDS.exported}_bucket{{phase="queue"}}[5m]))) > 2',
            "requests wait {{ $value | humanizeDuration }} for model {{ $labels.model }}",
            "Raise max_replicas or max_batch_size of the model in the Serve configuration.",
        ),
        _rule(
            "JobsWaiting", "ticket", "30m",
            f'max({metrics.JOBS.exported}{{state="queued"}}) > 10',
            "{{ $value }} dataset jobs wait",
            "The cluster builds one after the other: look at the running one, or add nodes.",
        ),
    ]  # fmt: skip

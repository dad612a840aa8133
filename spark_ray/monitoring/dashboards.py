"""Grafana dashboards over the declared metrics, and a few of Ray's own where Ray has them."""

from collections.abc import Sequence
from typing import NamedTuple

from grafana_foundation_sdk.builders import common, dashboard, prometheus, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import GraphDrawStyle, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DataSourceRef

from spark_ray.monitoring import metrics
from spark_ray.monitoring.metrics import Histogram, Metric

_WINDOW = "$__rate_interval"
_QUANTILES = (0.5, 0.95, 0.99)
_WIDTH, _HEIGHT = 12, 8  # of a panel; a dashboard is 24 wide


class Query(NamedTuple):
    """PromQL, and how its series are called."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """A graph. `unit` is one of Grafana's."""

    title: str
    unit: str
    queries: list[Query]
    about: str


class Board(NamedTuple):
    """A dashboard; `name` is that of its file and a part of its address."""

    name: str
    title: str
    panels: list[Panel]


def boards() -> list[Board]:
    return [
        Board("sparkray-datasets", "SparkRay: datasets", _datasets()),
        Board("sparkray-training", "SparkRay: training", _training()),
        Board("sparkray-serving", "SparkRay: serving", _serving()),
    ]


def _legend(labels: Sequence[str]) -> str:
    return " ".join(f"{{{{{label}}}}}" for label in labels)


def _rate(metric: Metric, *by: str, also: str = "") -> Query:
    return Query(
        f"sum by ({', '.join(by)}) (rate({metric.exported}[{_WINDOW}]))",
        f"{_legend(by)}{also}" or "all",
    )


def _quantiles(metric: Histogram, *by: str) -> list[Query]:
    rates = _rate(metric, *by, "le")
    buckets = rates.expr.replace(metric.exported, f"{metric.exported}_bucket")
    return [
        Query(
            f"histogram_quantile({quantile}, {buckets})",
            f"p{quantile * 100:g} {_legend(by)}".strip(),
        )
        for quantile in _QUANTILES
    ]


def _gauge(metric: Metric, *by: str) -> Query:
    return Query(f"max by ({', '.join(by)}) ({metric.exported})", _legend(by))


def _datasets() -> list[Panel]:
    return [
        Panel("Clips", "ops", [_rate(metrics.CLIPS, "status")],
              "Clips committed a second, by what became of them."),
        Panel("Video", "none", [Query(_rate(metrics.VIDEO_SECONDS).expr, "× real time")],
              "Seconds of video that become clips in a second; 3600 is an hour of video a second."),
        Panel("Frames", "ops", [_rate(metrics.FRAMES, "decision")],
              "Frames sampled a second: kept, or dropped as motionless or duplicate."),
        Panel("Units that wait", "short", [_gauge(metrics.UNITS_WAITING, "dataset")],
              "What a running build has still to decode. It should fall steadily."),
        Panel("A stage's time for one clip", "s", _quantiles(metrics.STAGE_SECONDS, "stage"),
              "Quantiles over clips."),
        Panel("Where the work goes", "none", [_rate(metrics.STAGE_BUSY, "stage")],
              "Processes that each stage keeps busy."),
        Panel("Rejects", "ops", [_rate(metrics.REJECTS, "stage", "reason")],
              "By stage and reason; the dataset's rejects.jsonl names the clips."),
        Panel("Calls of models", "s", _quantiles(metrics.MODEL_SECONDS, "model", "batch_size"),
              "Seconds of a call, by batch size (rounded up to a power of two)."),
    ]  # fmt: skip


def _training() -> list[Panel]:
    return [
        Panel("Loss", "none", [_gauge(metrics.TRAIN_LOSS, "run", "head")], "Of the last step."),
        Panel("Clips", "ops", [_rate(metrics.TRAIN_SAMPLES, "run")], "Learned from, a second."),
        Panel("Tokens", "ops", [_rate(metrics.TRAIN_TOKENS, "run")],
              "Of media and texts, without padding, a second."),
        Panel("Steps", "ops", [_rate(metrics.TRAIN_STEPS, "run"),
                               _rate(metrics.TRAIN_SKIPPED, "run", also=" skipped")],
              "Optimizer steps a second; skipped where a loss or gradient was no number."),
        Panel("A step's time", "s", _quantiles(metrics.TRAIN_STEP_SECONDS, "run"), "Quantiles."),
        Panel("Waiting for data", "percentunit", [_gauge(metrics.TRAIN_DATA_WAIT, "run", "rank")],
              "Part of each rank's last step. One high rank is a straggler, all high is too little "
              "preparation: --data-workers, --data-cpus."),
        Panel("Model FLOPs utilisation", "percentunit", [_gauge(metrics.TRAIN_MFU, "run", "rank")],
              "Of the device's dense bf16 peak, or of --peak-tflops."),
        Panel("Memory of ranks", "bytes",
              [_gauge(metrics.TRAIN_MEMORY, "run", "rank", "device")],
              "The most that each held so far."),
        Panel("GPU memory of nodes", "decmbytes",
              [Query("sum by (instance, GpuIndex) (ray_node_gram_used)",
                     "{{instance}} GPU {{GpuIndex}}")],
              "As Ray sees it, whatever uses it."),
        Panel("Checkpoints", "s", _quantiles(metrics.CHECKPOINT_SECONDS, "run"),
              "How long training stood still for one, and for the upload of the one before."),
    ]  # fmt: skip


def _serving() -> list[Panel]:
    return [
        Panel("Requests", "reqps", [_rate(metrics.HTTP_REQUESTS, "route", "status")],
              "By route and status. 429: a key's limit. 503: no room, try again."),
        Panel("A request's time", "s", _quantiles(metrics.HTTP_REQUEST_SECONDS, "route"),
              "Until the last byte."),
        Panel("Where the time goes", "s", _quantiles(metrics.PHASE_SECONDS, "model", "phase"),
              "Queue, decoding (preprocess), model and what comes after."),
        Panel("Calls of models", "s",
              _quantiles(metrics.MODEL_SECONDS, "model", "task", "batch_size"),
              "Forward passes, by batch size (rounded up to a power of two)."),
        Panel("Clips answered", "ops", [_rate(metrics.MODEL_CLIPS, "model", "task")],
              "By model and task."),
        Panel("Queues of deployments", "short",
              [Query("sum by (deployment) (ray_serve_deployment_queued_queries)",
                     "{{deployment}} waiting"),
               Query("sum by (deployment) (ray_serve_replica_processing_queries)",
                     "{{deployment}} in work")],
              "As Ray Serve counts them."),
        Panel("Dataset jobs", "short", [_gauge(metrics.JOBS, "state")],
              "Asked for over HTTP and not ended."),
    ]  # fmt: skip


def as_json(board: Board) -> str:
    """The dashboard as Grafana reads it, through its own typed library."""
    source = DataSourceRef(type_val="prometheus", uid="${datasource}")
    made = (
        dashboard.Dashboard(board.title)
        .uid(board.name)
        .tags(["sparkray"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .with_variable(
            dashboard.DatasourceVariable("datasource").type("prometheus").label("Prometheus")
        )
    )
    for panel in board.panels:
        made = made.with_panel(_graph(panel, source))
    return JSONEncoder(sort_keys=True, indent=2).encode(made.build()) + "\n"


def _graph(panel: Panel, source: DataSourceRef) -> timeseries.Panel:
    graph = (
        timeseries.Panel()
        .title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .min(0)
        .height(_HEIGHT)
        .span(_WIDTH)
        .datasource(source)
        .draw_style(GraphDrawStyle.LINE)
        .fill_opacity(8)
        .legend(
            common.VizLegendOptions()
            .show_legend(True)
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
        )
    )
    for number, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expr).legend_format(query.legend)
        graph = graph.with_target(target.ref_id(chr(ord("A") + number)))
    return graph

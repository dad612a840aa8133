"""What Prometheus and Grafana read is made from the declared metrics, and they understand it."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard

from spark_ray.cli import main
from spark_ray.monitoring.alerts import RuleFile, rules
from spark_ray.monitoring.dashboards import boards
from spark_ray.monitoring.metrics import declared, series

ROOT = Path(__file__).parents[3] / "monitoring"
KNOWN = {name: metric for metric in declared() for name in series(metric)}
# Of Prometheus itself, and of those of Ray's metrics that the dashboards use.
OTHERS = {"le", "job", "instance", "deployment", "GpuIndex"}
PROMTOOL = shutil.which("promtool")


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("monitoring")
    assert main(["monitoring", "render", "--to", str(folder)]) == 0
    return folder


def files(folder: Path) -> dict[str, str]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_text() for path in found}


def expressions() -> list[str]:
    shown = [query.expr for board in boards() for panel in board.panels for query in panel.queries]
    alerting = [rule.expr for group in rules().groups for rule in group.rules]
    return [expr.replace("$__rate_interval", "5m") for expr in shown + alerting]


def test_the_files_in_the_repository_are_those_that_the_command_writes(rendered: Path) -> None:
    """Where this fails: spark-ray monitoring render"""
    assert files(rendered) == files(ROOT)


@pytest.mark.parametrize("expr", expressions())
def test_an_expression_is_promql_over_declared_metrics_and_labels(expr: str) -> None:
    promql_parser.parse(expr)
    names = set(re.findall(r"\bray_spark_ray_\w+", expr))
    assert names <= set(KNOWN)
    labels = {label for name in names for label in KNOWN[name].labels} | OTHERS
    groups = re.findall(r"(?:by|on) \(([^)]*)\)", expr)
    used = {label.strip() for group in groups for label in group.split(",")} - {""}
    used |= set(re.findall(r"[{,]\s*(\w+)\s*[=!]", expr))
    assert used <= labels


def test_a_metric_that_nobody_looks_at_would_be_no_use() -> None:
    shown = " ".join(expressions())
    assert [
        m.name for m in declared() if not re.search(rf"\b{m.exported}(_bucket)?\b", shown)
    ] == []


def test_dashboards_are_what_grafanas_own_library_reads(rendered: Path) -> None:
    paths = sorted((rendered / "grafana" / "dashboards").glob("*.json"))
    assert len(paths) == 3
    for path in paths:
        values = json.loads(path.read_text())
        again = JSONEncoder(sort_keys=True).encode(Dashboard.from_json(values))
        assert json.loads(again) == values
        assert values["uid"] == path.stem
        assert all(panel["description"] and panel["targets"] for panel in values["panels"])


def test_alerts_say_what_to_do(rendered: Path) -> None:
    values = yaml.safe_load((rendered / "prometheus" / "alerts.yml").read_text())
    assert RuleFile.model_validate(values) == rules()
    names = [rule.alert for group in rules().groups for rule in group.rules]
    assert len(names) == len(set(names))
    for group in rules().groups:
        for rule in group.rules:
            assert rule.annotations.description.endswith(".")
            assert not rule.annotations.summary.endswith(".")


# ---- by Prometheus itself, where it is installed -----------------------------------------------

PHASES = "ray_spark_ray_request_phase_seconds_bucket"
# Alert, the series that make it fire after an hour, and those that keep it silent.
SCENES: dict[str, tuple[dict[str, str], dict[str, str]]] = {
    "SparkRayNodeNotScraped": (
        {'up{job="ray",instance="a"}': "0x240"}, {'up{job="ray",instance="a"}': "1x240"},
    ),
    "SparkRayBuildStalled": (
        {'ray_spark_ray_build_units_waiting{dataset="a"}': "7x240",
         'ray_spark_ray_clips_total{status="ok"}': "9x240"},
        {'ray_spark_ray_build_units_waiting{dataset="a"}': "7x240",
         'ray_spark_ray_clips_total{status="ok"}': "0+1x240"},
    ),
    "SparkRayManyRejects": (
        {'ray_spark_ray_clips_total{status="ok"}': "0+4x240",
         'ray_spark_ray_clips_total{status="rejected"}': "0+1x240"},
        {'ray_spark_ray_clips_total{status="ok"}': "0+99x240",
         'ray_spark_ray_clips_total{status="rejected"}': "0+1x240"},
    ),
    "SparkRayTrainingStalled": (
        {'ray_spark_ray_train_data_wait_ratio{run="a",rank="0"}': "0x240",
         'ray_spark_ray_train_steps_total{run="a"}': "5x240"},
        {'ray_spark_ray_train_data_wait_ratio{run="a",rank="0"}': "0x240",
         'ray_spark_ray_train_steps_total{run="a"}': "0+1x240"},
    ),
    "SparkRayTrainingStarved": (
        {'ray_spark_ray_train_data_wait_ratio{run="a",rank="0"}': "0.5x240"},
        {'ray_spark_ray_train_data_wait_ratio{run="a",rank="0"}': "0.1x240"},
    ),
    "SparkRayStepsSkipped": (
        {'ray_spark_ray_train_skipped_steps_total{run="a"}': "0+1x240"},
        {'ray_spark_ray_train_skipped_steps_total{run="a"}': "2x240"},
    ),
    "SparkRayServerErrors": (
        {'ray_spark_ray_http_requests_total{status="200"}': "0+9x240",
         'ray_spark_ray_http_requests_total{status="503"}': "0+1x240"},
        {'ray_spark_ray_http_requests_total{status="200"}': "0+99x240",
         'ray_spark_ray_http_requests_total{status="503"}': "0+1x240"},
    ),
    "SparkRayServerSlow": (
        {'ray_spark_ray_http_request_seconds_bucket{route="/v1/captions",le="10.0"}': "0+1x240",
         'ray_spark_ray_http_request_seconds_bucket{route="/v1/captions",le="30.0"}': "0+9x240",
         'ray_spark_ray_http_request_seconds_bucket{route="/v1/captions",le="+Inf"}': "0+9x240"},
        {'ray_spark_ray_http_request_seconds_bucket{route="/v1/assets",le="10.0"}': "0+1x240",
         'ray_spark_ray_http_request_seconds_bucket{route="/v1/assets",le="+Inf"}': "0+9x240"},
    ),
    "SparkRayModelQueueLong": (
        {f'{PHASES}{{phase="queue",model="a",le="1.0"}}': "0+1x240",
         f'{PHASES}{{phase="queue",model="a",le="10.0"}}': "0+9x240",
         f'{PHASES}{{phase="queue",model="a",le="+Inf"}}': "0+9x240"},
        {f'{PHASES}{{phase="model",model="a",le="1.0"}}': "0+1x240",
         f'{PHASES}{{phase="model",model="a",le="+Inf"}}': "0+9x240"},
    ),
    "SparkRayJobsWaiting": (
        {'ray_spark_ray_jobs{state="queued"}': "11x240"},
        {'ray_spark_ray_jobs{state="running"}': "11x240"},
    ),
}  # fmt: skip


def test_every_alert_has_a_scene() -> None:
    assert set(SCENES) == {rule.alert for group in rules().groups for rule in group.rules}


@pytest.mark.skipif(PROMTOOL is None, reason="promtool (Debian: prometheus) is not installed")
def test_promtool_accepts_the_configuration_and_alerts_fire_when_they_should(
    rendered: Path, tmp_path: Path
) -> None:
    def promtool(*arguments: object) -> None:
        command = [str(PROMTOOL), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    promtool("check", "config", rendered / "prometheus" / "prometheus.yml")
    tests = [
        scene(alert, series_, fires=fires)
        for alert, both in SCENES.items()
        for series_, fires in zip(both, (True, False), strict=True)
    ]
    file = tmp_path / "scenes.yml"
    rule_files = [str(rendered / "prometheus" / "alerts.yml")]
    file.write_text(yaml.safe_dump({"rule_files": rule_files, "tests": tests}))
    promtool("test", "rules", file)


def scene(alert: str, values: dict[str, str], *, fires: bool) -> dict[str, Any]:
    """An hour of series, and how many alerts of this name fire at its end."""
    return {
        "interval": "15s",
        "input_series": [{"series": name, "values": many} for name, many in values.items()],
        "promql_expr_test": [
            {
                "expr": f'count(ALERTS{{alertname="{alert}",alertstate="firing"}}) or vector(0)',
                "eval_time": "59m",
                "exp_samples": [{"labels": "{}", "value": int(fires)}],
            }
        ],
    }

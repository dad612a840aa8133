"""The files that Prometheus and Grafana read, all made from the declared metrics."""

from typing import Any

import yaml

from spark_ray.core.errors import MissingDependency
from spark_ray.monitoring.alerts import rules

_HEADER = "# Made by `spark-ray monitoring render`; change spark_ray/monitoring instead.\n"
DASHBOARDS = "grafana/dashboards"


def monitoring_files(targets_file: str, prometheus_url: str) -> dict[str, str]:
    """Text of each file by its relative path.

    Raises:
        MissingDependency: Grafana's library is not installed.
    """
    try:
        from spark_ray.monitoring.dashboards import as_json, boards
    except ImportError as error:
        raise MissingDependency(
            "grafana-foundation-sdk", "monitoring", "making dashboards"
        ) from error
    files = {
        "prometheus/prometheus.yml": _HEADER + _yaml(_prometheus(targets_file)),
        "prometheus/alerts.yml": _HEADER + rules().as_yaml(),
        "grafana/provisioning/datasources/prometheus.yml": _HEADER + _yaml(_source(prometheus_url)),
        "grafana/provisioning/dashboards/sparkray.yml": _HEADER + _yaml(_PROVIDER),
    }
    return files | {f"{DASHBOARDS}/{board.name}.json": as_json(board) for board in boards()}


def _yaml(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def _prometheus(targets_file: str) -> dict[str, Any]:
    return {
        "global": {"scrape_interval": "10s", "evaluation_interval": "15s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {
                "job_name": "ray",
                # The head node keeps the addresses of all nodes in it.
                "file_sd_configs": [{"files": [targets_file], "refresh_interval": "30s"}],
            }
        ],
    }


def _source(url: str) -> dict[str, Any]:
    return {
        "apiVersion": 1,
        "datasources": [
            {
                "name": "Prometheus",
                "type": "prometheus",
                "uid": "prometheus",
                "access": "proxy",
                "url": url,
                "isDefault": True,
            }
        ],
    }


_PROVIDER = {
    "apiVersion": 1,
    "providers": [
        {
            "name": "SparkRay",
            "folder": "SparkRay",
            "type": "file",
            "options": {"path": "/etc/grafana/dashboards"},
        }
    ],
}

"""What Prometheus would scrape from the shared cluster."""

import urllib.request

import ray
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


def metrics_address() -> str:
    (node,) = [node for node in ray.nodes() if node["Alive"]]
    return f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}"


def scrape() -> list[Sample]:
    """Every sample of ours that the node's agent shows now, among megabytes of Ray's own."""
    with urllib.request.urlopen(f"http://{metrics_address()}/metrics", timeout=120) as page:
        text = "".join(
            line for line in page.read().decode().splitlines(True) if "spark_ray" in line
        )
    return [s for family in text_string_to_metric_families(text) for s in family.samples]


def total(samples: list[Sample], name: str, **labels: str) -> float:
    """The sum of a metric over all processes, as `sum(name{labels})` of Prometheus."""
    return sum(
        sample.value
        for sample in samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )

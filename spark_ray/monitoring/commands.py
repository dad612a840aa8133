"""What stands behind `spark-ray monitoring …`."""

from collections.abc import Sequence

from pydantic import Field

from spark_ray.core.config import JobConfig
from spark_ray.core.storage import Folder
from spark_ray.monitoring.files import monitoring_files


class RenderConfig(JobConfig):
    """Write the files that Prometheus and Grafana read: scraping, alerts, dashboards."""

    to: str = Field("monitoring", min_length=1, description="folder to write them to")
    targets_file: str = Field(
        "/tmp/ray/prom_metrics_service_discovery.json",  # noqa: S108 - where Ray keeps it
        description="file in which Ray's head node lists the addresses to scrape",
    )
    prometheus_url: str = Field(
        "http://localhost:9090", description="where Grafana finds Prometheus"
    )


def render(arguments: Sequence[str]) -> int:
    """`spark-ray monitoring render`: see `RenderConfig`."""
    config = RenderConfig.from_command_line(arguments, "spark-ray monitoring render")
    folder = Folder(config.to)
    for name, text in monitoring_files(config.targets_file, config.prometheus_url).items():
        folder.write(name, text.encode())
        print(folder / name)
    return 0

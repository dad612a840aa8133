"""The front end as an application of Serve, beside the one under `/v1`."""

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from spark_ray.core.errors import MissingDependency
from spark_ray.core.logging import configure_logging
from spark_ray.serving.ui.settings import UiSettings

_REQUESTS = 256


def build(args: dict[str, Any]) -> Application:
    """The front end of these settings, the `args` of its application in `serve_configs/`.

    Raises:
        ConfigError: a setting is unknown or wrong.
    """
    settings = UiSettings.from_values(**args)
    deployment: Any = serve.deployment(FrontEnd)
    application: Application = deployment.options(
        # Gradio keeps what visitors see in memory, so another replica would know nothing of it.
        num_replicas=1,
        max_ongoing_requests=_REQUESTS,
        ray_actor_options={"num_cpus": settings.num_cpus},
    ).bind(settings)
    return application


@serve.ingress()
class FrontEnd:
    """The replica of the front end."""

    def __init__(self, settings: UiSettings) -> None:
        configure_logging()
        self._settings = settings

    def __serve_build_asgi_app__(self) -> ASGIApp:
        try:
            from spark_ray.serving.ui.server import create_ui
        except ModuleNotFoundError as error:
            raise MissingDependency(str(error.name), "ui", "the front end") from error
        return create_ui(self._settings)

"""The application that `serve deploy` brings up: deployments, and how they hold together."""

from typing import Any, cast

import ray
from ray import serve
from ray.serve import Application, Deployment

from spark_ray.models.registered import SCHEME, pinned_reference
from spark_ray.models.vllm import require_vllm
from spark_ray.models.weights import check_reference
from spark_ray.serving.backends import BackendServer
from spark_ray.serving.catalog import DEFAULT_ALIAS
from spark_ray.serving.decoding import Decoder
from spark_ray.serving.gateway import Gateway
from spark_ray.serving.handles import MESSAGES_ENVIRONMENT
from spark_ray.serving.inference import ApotheonServer
from spark_ray.serving.job_keeper import JobKeeper
from spark_ray.serving.search import SearchServer
from spark_ray.serving.settings import APOTHEON, VLLM, ModelSettings, ServeSettings

REPLICA_ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    **MESSAGES_ENVIRONMENT,
}
"""One event loop in a replica, where Serve has three by default and hands each request around.

Ours can do with one: whatever takes long is left to threads.
"""

_DECODER_THREADS = 2
_GATEWAY_REQUESTS = 256
_SEARCH_REQUESTS = 32


def build(args: dict[str, Any]) -> Application:
    """The application of these settings, which are the `args` of a file in `serve_configs/`.

    Raises:
        ConfigError: a setting is unknown or wrong.
        ModelError: a model is nowhere to be found.
    """
    settings = ServeSettings.from_values(**args).located()
    for name, model in settings.models.items():
        _check_model(name, model)
    decoder = _deployed(
        Decoder,
        num_replicas=settings.decoder_replicas,
        max_ongoing_requests=2 * _DECODER_THREADS,
        max_queued_requests=64,
        ray_actor_options={"num_cpus": settings.decoder_cpus},
    ).bind(settings.job_settings, settings.limits, _DECODER_THREADS)
    models = {name: _model(name, model) for name, model in settings.models.items()}
    search = _deployed(
        SearchServer,
        max_ongoing_requests=_SEARCH_REQUESTS,
        max_queued_requests=4 * _SEARCH_REQUESTS,
        ray_actor_options={"num_cpus": 0.1},
    ).bind(settings, models)
    keeper = _deployed(
        JobKeeper, num_replicas=1, ray_actor_options={"num_cpus": 0}, health_check_period_s=10
    ).bind(settings)
    return _deployed(
        Gateway,
        num_replicas=settings.gateway_replicas,
        max_ongoing_requests=_GATEWAY_REQUESTS,
        max_queued_requests=4 * _GATEWAY_REQUESTS,
        ray_actor_options={"num_cpus": settings.gateway_cpus},
    ).bind(settings, decoder, models, search, keeper)


def _check_model(name: str, model: ModelSettings) -> None:
    """Refuse a model that isn't there while what ran before still answers.

    Once the new replicas fail to start Serve has let go of the old ones, and the same file, given
    again when the model is in its place, changes nothing for it.
    """
    if model.reference is None:
        return
    setting = f"models.{name}.reference"
    check_reference(model.reference, setting)
    if model.backend == APOTHEON and model.reference.startswith(SCHEME):
        pinned_reference(f"{model.reference}@{DEFAULT_ALIAS}", setting)


def _model(name: str, model: ModelSettings) -> Application:
    options = _model_options(model)
    if model.backend == VLLM:
        # Without vLLM, `ray.serve.llm` can't be imported; with it, that takes some seconds.
        require_vllm(f"model {name!r} with backend vllm")
        from spark_ray.serving.vllm import vllm_application

        return vllm_application(name, model, options)
    server = ApotheonServer if model.backend == APOTHEON else BackendServer
    return _deployed(
        server,
        name=f"model-{name}",
        **options,
        ray_actor_options={"num_cpus": model.num_cpus, "num_gpus": model.num_gpus},
    ).bind(name, model)


def _model_options(model: ModelSettings) -> dict[str, Any]:
    """How many replicas a model has, and what each takes on."""
    scaling: dict[str, Any] = {"num_replicas": model.min_replicas}
    if model.max_replicas > model.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": model.min_replicas,
                "max_replicas": model.max_replicas,
                "target_ongoing_requests": model.max_batch_size,
            }
        }
    return {
        **scaling,
        # A batch in work and one that fills; what is beyond waits with the callers.
        "max_ongoing_requests": 2 * model.max_batch_size,
        "max_queued_requests": model.max_queued,
        "health_check_period_s": 10,
        "health_check_timeout_s": 60,
    }


def _deployed(server: type, *, ray_actor_options: dict[str, Any], **options: Any) -> Deployment:
    deployment: Any = serve.deployment(server)
    actor = {**ray_actor_options, "runtime_env": _runtime_env()}
    return cast(Deployment, deployment.options(**options, ray_actor_options=actor))


def _runtime_env() -> dict[str, Any]:
    """That of the application, which Serve keeps from a deployment that has one, and our own."""
    given = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**given, "env_vars": {**given.get("env_vars", {}), **REPLICA_ENVIRONMENT}}

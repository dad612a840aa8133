"""KubeRay's objects: a cluster that stays, a cluster for one job, a cluster that serves."""

from typing import Any

import ray
import yaml

from spark_ray.cluster import pods
from spark_ray.cluster.support import redis_address, redis_secret
from spark_ray.cluster.values import ClusterValues, Workers
from spark_ray.cluster.workload import entrypoint

API_VERSION = "ray.io/v1"


def ray_cluster(values: ClusterValues) -> dict[str, Any]:
    """A cluster that jobs are sent to, and that outlives its head."""
    return _object(values, "RayCluster", values.name, _survives_head(values, _cluster(values)))


def ray_job(values: ClusterValues) -> dict[str, Any]:
    """A cluster that comes up for one job and goes when that is done."""
    assert values.workload is not None
    spec = {
        "entrypoint": entrypoint(values.workload.job, f"{pods.JOB_FOLDER}/{pods.JOB_FILE}"),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": values.idle_timeout_s,
        # Our jobs go on where they were: a new cluster finishes what a lost one began.
        "backoffLimit": 3,
        "submissionMode": "K8sJobMode",
        "submitterPodTemplate": pods.submitter_template(values),
        "rayClusterSpec": _cluster(values, job_config=job_config(values)),
    }
    return _object(values, "RayJob", f"{values.name}-job", spec)


def ray_service(values: ClusterValues, serve_config: dict[str, Any]) -> dict[str, Any]:
    """A cluster that serves; a changed one takes over only when it answers.

    The nodes' `env` goes before what the file of Serve says, which was written for some cluster.
    """
    for application in serve_config["applications"]:
        variables = application.get("runtime_env", {}).get("env_vars", {})
        variables.update({name: values.env[name] for name in variables if name in values.env})
    spec = {
        "serveConfigV2": yaml.safe_dump(serve_config, sort_keys=False, allow_unicode=True),
        "rayClusterConfig": _survives_head(values, _cluster(values)),
    }
    return _object(values, "RayService", f"{values.name}-serve", spec)


def job_config(values: ClusterValues) -> str:
    """Name of the ConfigMap that holds the settings of the RayJob."""
    return f"{values.name}-job"


def _object(values: ClusterValues, kind: str, name: str, spec: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "name": name,
        "namespace": values.kubernetes.namespace,
        "labels": pods.labels(values),
    }
    return {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}


def _cluster(values: ClusterValues, *, job_config: str | None = None) -> dict[str, Any]:
    return {
        "rayVersion": ray.__version__,
        "authOptions": {"mode": "token"},  # KubeRay makes the token, in a Secret
        "enableInTreeAutoscaling": True,
        "autoscalerOptions": _autoscaler(values),
        "headGroupSpec": {
            "serviceType": "ClusterIP",
            # No CPU: what a task takes from the head is missing where the cluster is steered.
            "rayStartParams": {"num-cpus": "0", "dashboard-host": "0.0.0.0"},  # noqa: S104
            "template": pods.head_template(values, job_config=job_config),
        },
        "workerGroupSpecs": [
            _worker_group(values, name, workers) for name, workers in values.worker_groups.items()
        ],
    }


def _autoscaler(values: ClusterValues) -> dict[str, Any]:
    small = {"cpu": "500m", "memory": "1Gi"}
    options: dict[str, Any] = {
        "version": "v2",
        "upscalingMode": "Default",
        "idleTimeoutSeconds": values.idle_timeout_s,
        "resources": {"limits": small},
        "securityContext": pods.container_security(),
    }
    if values.kubernetes.tls:
        options |= {"env": pods.tls_environment(), "volumeMounts": pods.tls_mounts()}
    return options


def _worker_group(values: ClusterValues, name: str, workers: Workers) -> dict[str, Any]:
    start = {"num-cpus": str(workers.cpus)}
    if workers.gpus:
        start["num-gpus"] = str(workers.gpus)
    return {
        "groupName": name.replace("_", "-"),
        "replicas": workers.min_nodes,
        "minReplicas": workers.min_nodes,
        "maxReplicas": workers.max_nodes,
        "rayStartParams": start,
        "template": pods.worker_template(values, workers),
    }


def _survives_head(values: ClusterValues, spec: dict[str, Any]) -> dict[str, Any]:
    """GCS fault tolerance: workers, actors and replicas go on while a new head starts."""
    secret = {"name": redis_secret(values), "key": "password"}
    options = {
        "redisAddress": redis_address(values),
        "redisPassword": {"valueFrom": {"secretKeyRef": secret}},
    }
    return {**spec, "gcsFaultToleranceOptions": options}

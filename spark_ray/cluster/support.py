"""What a KubeRay cluster needs beside itself: a place for weights, a network policy, a Redis."""

from typing import Any

import yaml

from spark_ray.cluster import pods
from spark_ray.cluster.values import ClusterValues
from spark_ray.monitoring.alerts import rules

MONITORING = "monitoring.coreos.com/v1"

_REDIS_PORT = 6379
_DASHBOARD, _SERVE, _AGENT = 8265, 8000, 52365


def support_objects(values: ClusterValues) -> list[dict[str, Any]]:
    """Everything that must be there before the cluster, secrets aside."""
    objects = [_namespace(values), _model_cache(values), _network_policy(values)]
    if values.kubernetes.redis_address is None:
        objects += _redis(values)
    return objects


def job_config_map(values: ClusterValues, name: str) -> dict[str, Any]:
    """The settings of a RayJob, as the file that its job reads."""
    assert values.workload is not None
    text = yaml.safe_dump(values.workload.settings, sort_keys=False, allow_unicode=True)
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": _metadata(values, name),
        "data": {pods.JOB_FILE: text},
    }


def monitoring_objects(values: ClusterValues) -> list[dict[str, Any]]:
    """What a Prometheus of the Prometheus operator scrapes, and the alerts over it."""
    port, _ = pods.METRICS_PORT
    ray_nodes = {**pods.labels(values), "ray.io/is-ray-node": "yes"}  # KubeRay's word for them
    endpoint = {
        "port": port,
        "interval": "10s",
        # By which the alerts and dashboards know what is Ray's.
        "relabelings": [{"targetLabel": "job", "replacement": "ray"}],
    }
    specs = {
        "PodMonitor": {"selector": {"matchLabels": ray_nodes}, "podMetricsEndpoints": [endpoint]},
        "PrometheusRule": rules().model_dump(by_alias=True),
    }
    metadata = _metadata(values, values.name)
    metadata["labels"] = {**values.kubernetes.monitor_labels, **metadata["labels"]}
    return [
        {"apiVersion": MONITORING, "kind": kind, "metadata": metadata, "spec": spec}
        for kind, spec in specs.items()
    ]


def redis_address(values: ClusterValues) -> str:
    given = values.kubernetes.redis_address
    namespace = values.kubernetes.namespace
    return given or f"{_redis_name(values)}.{namespace}.svc.cluster.local:{_REDIS_PORT}"


def redis_secret(values: ClusterValues) -> str:
    return f"{values.name}-redis"


def _redis_name(values: ClusterValues) -> str:
    return f"{values.name}-redis"


def _metadata(values: ClusterValues, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "namespace": values.kubernetes.namespace,
        "labels": pods.labels(values),
    }


def _namespace(values: ClusterValues) -> dict[str, Any]:
    # Our own pods are `restricted`; what KubeRay starts beside them may be a little less.
    level = "pod-security.kubernetes.io"
    security = {f"{level}/enforce": "baseline", f"{level}/warn": "restricted"}
    metadata = {"name": values.kubernetes.namespace, "labels": security}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def _model_cache(values: ClusterValues) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": f"{values.kubernetes.model_cache_gib}Gi"}},
    }
    if values.kubernetes.storage_class:
        spec["storageClassName"] = values.kubernetes.storage_class
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": _metadata(values, pods.model_cache(values)),
        "spec": spec,
    }


def _network_policy(values: ClusterValues) -> dict[str, Any]:
    """Nodes among themselves; KubeRay and the clients only where they have business.

    Outgoing traffic is free: buckets, registries and trackers are anywhere.
    """
    there = values.kubernetes
    ingress: list[dict[str, Any]] = [
        {"from": [{"podSelector": {"matchLabels": pods.labels(values)}}]},
        {
            "from": [_namespace_peer(there.operator_namespace)],
            "ports": _ports(_DASHBOARD, _SERVE, _AGENT),
        },
    ]
    if there.client_namespaces:
        ingress.append(
            {
                "from": [_namespace_peer(name) for name in there.client_namespaces],
                "ports": _ports(_DASHBOARD, _SERVE, pods.METRICS_PORT[1]),
            }
        )
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": _metadata(values, values.name),
        "spec": {
            "podSelector": {"matchLabels": pods.labels(values)},
            "policyTypes": ["Ingress"],
            "ingress": ingress,
        },
    }


def _namespace_peer(name: str) -> dict[str, Any]:
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def _ports(*numbers: int) -> list[dict[str, Any]]:
    return [{"protocol": "TCP", "port": number} for number in numbers]


def _redis(values: ClusterValues) -> list[dict[str, Any]]:
    """One Redis that keeps every write on a disk of its own; only the cluster reaches it."""
    name = _redis_name(values)
    # The common label is what the network policy selects; the other tells Redis from Ray's nodes.
    own = {**pods.labels(values), "app.kubernetes.io/name": "redis"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _metadata(values, name),
        "spec": {"selector": own, "ports": [{"name": "redis", "port": _REDIS_PORT}]},
    }
    claim = {
        "metadata": {"name": "data"},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "resources": {"requests": {"storage": "2Gi"}},
        },
    }
    stateful_set = {
        "apiVersion": "apps/v1",
        "kind": "StatefulSet",
        "metadata": _metadata(values, name),
        "spec": {
            "serviceName": name,
            "replicas": 1,
            "selector": {"matchLabels": own},
            "template": {
                "metadata": {"labels": own},
                "spec": {
                    "automountServiceAccountToken": False,
                    "securityContext": pods.pod_security(),
                    "containers": [_redis_container(values)],
                },
            },
            "volumeClaimTemplates": [claim],
        },
    }
    return [service, stateful_set]


def _redis_container(values: ClusterValues) -> dict[str, Any]:
    small = {"cpu": "250m", "memory": "512Mi"}
    password = {"secretKeyRef": {"name": redis_secret(values), "key": "password"}}
    return {
        "name": "redis",
        "image": values.kubernetes.redis_image,
        # The shell puts the password in: an argument would show in every list of processes.
        "command": [
            "/bin/sh",
            "-c",
            "umask 077\n"
            'printf "requirepass %s\\n" "$REDIS_PASSWORD" > /tmp/redis.conf\n'
            "exec redis-server /tmp/redis.conf --appendonly yes --appendfsync always --dir /data\n",
        ],
        "env": [{"name": "REDIS_PASSWORD", "valueFrom": password}],
        "ports": [{"name": "redis", "containerPort": _REDIS_PORT}],
        "resources": {"limits": small},
        "readinessProbe": {"tcpSocket": {"port": _REDIS_PORT}},
        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
        "securityContext": pods.container_security(),
    }

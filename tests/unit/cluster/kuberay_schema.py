"""What the objects of KubeRay and the Prometheus operator may hold, as strict schemas of our own.

No package of the registries that tests install from carries KubeRay's CRDs. This says in our words
which fields of `ray.io/v1` exist (operator 1.5.1 to 1.6) and of which type they are, and those that
we use of the Prometheus operator's; a field that is not here is a mistake. What is Kubernetes' own
inside (pods, containers, environment) is checked against Kubernetes' schemas.
"""

from collections.abc import Iterator
from typing import Any

import jsonschema
import kubernetes_validate

KUBERNETES = "1.34"

_TEXT = {"type": "string", "minLength": 1}
_NUMBER = {"type": "integer", "minimum": 0}
_FLAG = {"type": "boolean"}
_TEXTS = {"type": "object", "additionalProperties": {"type": "string"}}
_ANY = {"type": "object"}  # Kubernetes' own; see `pod_templates`
_ENVIRONMENT = {"type": "array", "items": _ANY}


def _closed(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(required),
        "additionalProperties": False,
    }


_CREDENTIAL = _closed({"value": _TEXT, "valueFrom": _ANY})

_GROUP: dict[str, Any] = {
    "rayStartParams": _TEXTS,
    "template": _ANY,
    "resources": _TEXTS,
    "labels": _TEXTS,
}

_CLUSTER = _closed(
    {
        "rayVersion": {"type": "string", "pattern": r"^\d+\.\d+\.\d+$"},
        "authOptions": _closed({"mode": {"enum": ["token", "disabled"]}}),
        "enableInTreeAutoscaling": _FLAG,
        "autoscalerOptions": _closed(
            {
                "version": {"enum": ["v1", "v2"]},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "idleTimeoutSeconds": _NUMBER,
                "image": _TEXT,
                "imagePullPolicy": {"enum": ["Always", "IfNotPresent", "Never"]},
                "resources": _ANY,
                "securityContext": _ANY,
                "env": _ENVIRONMENT,
                "envFrom": _ENVIRONMENT,
                "volumeMounts": _ENVIRONMENT,
            }
        ),
        "gcsFaultToleranceOptions": _closed(
            {
                "redisAddress": {"type": "string", "pattern": r"^[a-z0-9.-]+:\d+$"},
                "redisUsername": _CREDENTIAL,
                "redisPassword": _CREDENTIAL,
                "externalStorageNamespace": _TEXT,
            },
            "redisAddress",
        ),
        "headServiceAnnotations": _TEXTS,
        "headGroupSpec": _closed(
            {
                **_GROUP,
                "serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]},
                "headService": _ANY,
                "enableIngress": _FLAG,
            },
            "rayStartParams",
            "template",
        ),
        "workerGroupSpecs": {
            "type": "array",
            "items": _closed(
                {
                    **_GROUP,
                    "groupName": {"type": "string", "pattern": "^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"},
                    "replicas": _NUMBER,
                    "minReplicas": _NUMBER,
                    "maxReplicas": _NUMBER,
                    "numOfHosts": {"type": "integer", "minimum": 1},
                    "idleTimeoutSeconds": _NUMBER,
                    "scaleStrategy": _ANY,
                },
                "groupName",
                "minReplicas",
                "maxReplicas",
                "rayStartParams",
                "template",
            ),
        },
        "suspend": _FLAG,
    },
    "headGroupSpec",
)

_JOB = _closed(
    {
        "entrypoint": _TEXT,
        "runtimeEnvYAML": _TEXT,
        "metadata": _TEXTS,
        "jobId": _TEXT,
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode"]},
        "submitterPodTemplate": _ANY,
        "submitterConfig": _closed({"backoffLimit": _NUMBER}),
        "backoffLimit": _NUMBER,
        "activeDeadlineSeconds": {"type": "integer", "minimum": 1},
        "shutdownAfterJobFinishes": _FLAG,
        "ttlSecondsAfterFinished": _NUMBER,
        "clusterSelector": _TEXTS,
        "entrypointNumCpus": {"type": "number"},
        "entrypointNumGpus": {"type": "number"},
        "entrypointResources": _TEXT,
        "rayClusterSpec": _CLUSTER,
        "suspend": _FLAG,
    }
)

_SERVICE = _closed(
    {
        "serveConfigV2": _TEXT,
        "rayClusterConfig": _CLUSTER,
        "serveService": _ANY,
        "upgradeStrategy": _closed({"type": {"enum": ["NewCluster", "None"]}}),
        "excludeHeadPodFromServeSvc": _FLAG,
    },
    "rayClusterConfig",
)

_POD_MONITOR = _closed(
    {
        "selector": _closed({"matchLabels": _TEXTS}),
        "podMetricsEndpoints": {
            "type": "array",
            "minItems": 1,
            "items": _closed(
                {
                    "port": _TEXT,
                    "interval": {"type": "string", "pattern": "^[0-9]+s$"},
                    "relabelings": {
                        "type": "array",
                        "items": _closed({"targetLabel": _TEXT, "replacement": _TEXT}),
                    },
                },
                "port",
            ),
        },
    },
    "selector",
    "podMetricsEndpoints",
)

_RULE = _closed(
    {
        "alert": _TEXT,
        "expr": _TEXT,
        "for": {"type": "string", "pattern": "^[0-9]+[smh]$"},
        "labels": _TEXTS,
        "annotations": _TEXTS,
    },
    "alert",
    "expr",
)
_GROUP_OF_RULES = _closed({"name": _TEXT, "rules": {"type": "array", "items": _RULE}}, "name")

_SPECS = {
    "RayCluster": _CLUSTER,
    "RayJob": _JOB,
    "RayService": _SERVICE,
    "PodMonitor": _POD_MONITOR,
    "PrometheusRule": _closed({"groups": {"type": "array", "items": _GROUP_OF_RULES}}, "groups"),
}


def check(document: dict[str, Any]) -> None:
    """Raises jsonschema's or kubernetes-validate's error where the document is wrong."""
    version = document["apiVersion"]
    if version not in ("ray.io/v1", "monitoring.coreos.com/v1"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
        return
    schema = _closed(
        {
            "apiVersion": {"const": version},
            "kind": {"enum": list(_SPECS)},
            "metadata": _ANY,
            "spec": _SPECS[document["kind"]],
        },
        "apiVersion",
        "kind",
        "metadata",
        "spec",
    )
    jsonschema.validate(document, schema)
    template = {"metadata": document["metadata"], "spec": {"containers": [{"name": "none"}]}}
    pods = pod_templates(document) if version == "ray.io/v1" else ()
    for pod in (template, *pods):
        as_kubernetes = {"apiVersion": "v1", "kind": "PodTemplate", "template": pod}
        kubernetes_validate.validate(as_kubernetes, KUBERNETES, strict=True)


def cluster_spec(document: dict[str, Any]) -> dict[str, Any]:
    """The cluster in a RayCluster, a RayJob or a RayService."""
    spec = document["spec"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pod_templates(document: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every pod that the document describes, the autoscaler's container among them."""
    cluster = cluster_spec(document)
    yield cluster["headGroupSpec"]["template"]
    for group in cluster["workerGroupSpecs"]:
        yield group["template"]
    if "submitterPodTemplate" in document["spec"]:
        yield document["spec"]["submitterPodTemplate"]
    options = cluster["autoscalerOptions"]
    kept = ("resources", "securityContext", "env", "envFrom", "volumeMounts")
    autoscaler = {name: options[name] for name in kept if name in options}
    yield {"spec": {"containers": [{"name": "autoscaler", **autoscaler}]}}

"""The pods of a cluster on Kubernetes: containers, volumes, certificates, where they may run."""

from typing import Any

from spark_ray.cluster.values import MODELS, ClusterValues, Head, Workers

TLS = "/etc/ray/tls"
JOB_FOLDER = "/etc/spark-ray"
JOB_FILE = "job.yaml"

_CA = "/etc/ray/ca"
METRICS_PORT = ("metrics", 8080)  # KubeRay has Ray's agents listen there

_USER = 1000
_GPU = "nvidia.com/gpu"
_CERTIFICATE_DAYS = 365

# A certificate for this pod alone, signed by the cluster's authority, whose key the Ray container
# never sees. Workers call the head by the name of its service, everything else by address. KubeRay
# cuts that name to its last 50 letters, and puts an r where it then begins with none.
MAKE_CERTIFICATE = f"""\
set -eu
umask 077
service=$(printf %s "$CLUSTER-head-svc" | tail -c 50 | sed 's/^[^a-z]/r/')
names="DNS:localhost,DNS:$service,DNS:$service.$NAMESPACE.svc"
names="$names,DNS:$service.$NAMESPACE.svc.cluster.local,IP:127.0.0.1,IP:$POD_IP"
cd "$TLS_FOLDER"
openssl req -new -newkey rsa:2048 -nodes -keyout tls.key -out tls.csr -subj "/CN=ray-node"
printf 'subjectAltName=%s\\n' "$names" > names.cnf
openssl x509 -req -in tls.csr -CA "$CA_FOLDER/tls.crt" -CAkey "$CA_FOLDER/tls.key" \\
    -set_serial "0x$(openssl rand -hex 16)" -days {_CERTIFICATE_DAYS} -sha256 \\
    -extfile names.cnf -out tls.crt
cp "$CA_FOLDER/tls.crt" ca.crt
rm tls.csr names.cnf
"""


def labels(values: ClusterValues) -> dict[str, str]:
    """What all that belongs to the cluster bears, and its network policy selects."""
    return {"app.kubernetes.io/part-of": values.name}


def head_template(values: ClusterValues, *, job_config: str | None = None) -> dict[str, Any]:
    """The head's pod. `job_config` names a ConfigMap with the settings of a RayJob."""
    container = _ray_container(values, "ray-head", values.images.cpu, values.head)
    container["ports"] = [
        {"name": name, "containerPort": port}
        for name, port in (
            ("gcs", 6379),
            ("dashboard", 8265),
            ("client", 10001),
            ("serve", 8000),
            METRICS_PORT,
        )
    ]
    spec = _pod_spec(values, container)
    if values.kubernetes.spot_label:
        key, _, value = values.kubernetes.spot_label.partition("=")
        not_spot = {"key": key, "operator": "NotIn", "values": [value]}
        spec["affinity"] = {
            "nodeAffinity": {
                "requiredDuringSchedulingIgnoredDuringExecution": {
                    "nodeSelectorTerms": [{"matchExpressions": [not_spot]}]
                }
            }
        }
    if job_config:
        container["volumeMounts"].append({"name": "job", "mountPath": JOB_FOLDER, "readOnly": True})
        spec["volumes"].append({"name": "job", "configMap": {"name": job_config}})
    return {"metadata": {"labels": labels(values)}, "spec": spec}


def worker_template(values: ClusterValues, workers: Workers) -> dict[str, Any]:
    container = _ray_container(values, "ray-worker", values.image_for(workers), workers)
    name, port = METRICS_PORT
    container["ports"] = [{"name": name, "containerPort": port}]
    # What runs is told to end before the node goes, so that Ray moves it at once.
    container["lifecycle"] = {"preStop": {"exec": {"command": ["ray", "stop"]}}}
    spec = _pod_spec(values, container)
    spec["automountServiceAccountToken"] = False
    tolerations = []
    if workers.gpus:
        tolerations.append({"key": _GPU, "operator": "Exists", "effect": "NoSchedule"})
    if workers.spot and values.kubernetes.spot_label:
        key, _, value = values.kubernetes.spot_label.partition("=")
        spec["nodeSelector"] = {key: value}
        tolerations.append(
            {"key": key, "operator": "Equal", "value": value, "effect": "NoSchedule"}
        )
    if tolerations:
        spec["tolerations"] = tolerations
    return {"metadata": {"labels": labels(values)}, "spec": spec}


def submitter_template(values: ClusterValues) -> dict[str, Any]:
    """The pod that hands a RayJob over and waits for it."""
    small = {"cpu": "500m", "memory": "1Gi"}
    container = {
        "name": "ray-job-submitter",
        "image": values.images.cpu,
        "resources": {"limits": small},
        "securityContext": container_security(),
    }
    return {
        "metadata": {"labels": labels(values)},
        "spec": {
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "securityContext": pod_security(),
            "containers": [container],
        },
    }


def tls_environment() -> list[dict[str, str]]:
    return [
        {"name": "RAY_USE_TLS", "value": "1"},
        {"name": "RAY_TLS_SERVER_CERT", "value": f"{TLS}/tls.crt"},
        {"name": "RAY_TLS_SERVER_KEY", "value": f"{TLS}/tls.key"},
        {"name": "RAY_TLS_CA_CERT", "value": f"{TLS}/ca.crt"},
    ]


def tls_mounts() -> list[dict[str, Any]]:
    return [{"name": "tls", "mountPath": TLS, "readOnly": True}]


def ca_secret(values: ClusterValues) -> str:
    return f"{values.name}-ca"


def model_cache(values: ClusterValues) -> str:
    return f"{values.name}-models"


def _ray_container(
    values: ClusterValues, name: str, image: str, size: Head | Workers
) -> dict[str, Any]:
    resources = {"cpu": str(size.cpus), "memory": f"{size.memory_gib}Gi"}
    if isinstance(size, Workers) and size.gpus:
        resources[_GPU] = str(size.gpus)
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **values.environment}
    container: dict[str, Any] = {
        "name": name,
        "image": image,
        # Requests are equal to limits by default, so Kubernetes evicts these pods last.
        "resources": {"limits": resources},
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "volumeMounts": [
            {"name": "models", "mountPath": MODELS},
            {"name": "shared-memory", "mountPath": "/dev/shm"},  # noqa: S108 - Ray's object store
        ],
        "securityContext": container_security(),
    }
    if values.kubernetes.secret:
        container["envFrom"] = [{"secretRef": {"name": values.kubernetes.secret}}]
    if values.kubernetes.tls:
        container["env"] += tls_environment()
        container["volumeMounts"] += tls_mounts()
    return container


def _pod_spec(values: ClusterValues, container: dict[str, Any]) -> dict[str, Any]:
    memory_gib = int(container["resources"]["limits"]["memory"].removesuffix("Gi"))
    claim = {"claimName": model_cache(values)}
    # A third of the memory is what Ray gives its object store.
    shared = {"medium": "Memory", "sizeLimit": f"{max(1, memory_gib // 3)}Gi"}
    spec: dict[str, Any] = {
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": [
            {"name": "models", "persistentVolumeClaim": claim},
            {"name": "shared-memory", "emptyDir": shared},
        ],
    }
    if values.kubernetes.tls:
        spec["initContainers"] = [_certificate_container(container["image"])]
        spec["volumes"] += [
            {"name": "ca", "secret": {"secretName": ca_secret(values), "defaultMode": 0o440}},
            {"name": "tls", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ]
    return spec


def _certificate_container(image: str) -> dict[str, Any]:
    small = {"cpu": "100m", "memory": "128Mi"}
    fields = {
        "POD_IP": "status.podIP",
        "NAMESPACE": "metadata.namespace",
        "CLUSTER": "metadata.labels['ray.io/cluster']",
    }
    return {
        "name": "make-certificate",
        "image": image,
        "command": ["/bin/sh", "-c", MAKE_CERTIFICATE],
        "resources": {"limits": small},
        "env": [
            {"name": "CA_FOLDER", "value": _CA},
            {"name": "TLS_FOLDER", "value": TLS},
            *(
                {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}
                for name, path in fields.items()
            ),
        ],
        "volumeMounts": [
            {"name": "ca", "mountPath": _CA, "readOnly": True},
            {"name": "tls", "mountPath": TLS},
        ],
        "securityContext": container_security(),
    }


def pod_security() -> dict[str, Any]:
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "runAsGroup": _USER,
        "fsGroup": _USER,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}

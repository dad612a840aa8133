"""From values to files: what is rendered for which provider, and how it reads as YAML."""

from typing import Any

import yaml

from spark_ray.cluster.kuberay import job_config, ray_cluster, ray_job, ray_service
from spark_ray.cluster.launcher import launcher_config
from spark_ray.cluster.pods import ca_secret
from spark_ray.cluster.support import (
    job_config_map,
    monitoring_objects,
    redis_secret,
    support_objects,
)
from spark_ray.cluster.values import ClusterValues
from spark_ray.core.errors import ConfigError, MissingDependency, StorageError
from spark_ray.core.storage import Folder, read_bytes
from spark_ray.core.yaml_text import read_yaml

_MAX_FILE_BYTES = 1 << 20
_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_RENDERED = "Rendered by `spark-ray cluster render`; change the values and render again."

_MONITORING_STEPS = [
    "For a Prometheus of the Prometheus operator, whose namespace belongs into client_namespaces",
    "and whose labels into monitor_labels; without that operator, leave it out.",
    "    kubectl apply -f monitoring.yaml",
]


def render(values: ClusterValues) -> dict[str, str]:
    """The files of a cluster: name to content.

    Raises:
        ConfigError: the file of `serve_config` can't be read, or is none of Serve's.
    """
    if values.provider != "kuberay":
        lines = _launcher_steps(values)
        return {f"{values.provider}.yaml": _file(lines, launcher_config(values))}
    files = {
        "support.yaml": _file(_secret_steps(values), *support_objects(values)),
        "raycluster.yaml": _file(_cluster_steps(values), ray_cluster(values)),
        "monitoring.yaml": _file(_MONITORING_STEPS, *monitoring_objects(values)),
    }
    if values.workload is not None:
        files["rayjob.yaml"] = _file(
            _job_steps(values, values.workload.job),
            job_config_map(values, job_config(values)),
            ray_job(values),
        )
    if values.serve_config is not None:
        files["rayservice.yaml"] = _file(
            _service_steps(values, values.serve_config),
            ray_service(values, _read_serve_config(values.serve_config)),
        )
    return files


def write(values: ClusterValues) -> list[str]:
    """Render into the folder `values.output`; the locations of the files.

    Raises:
        ConfigError: as `render`, or a file is in the way that was not rendered.
        StorageError: the folder can't be written.
    """
    files = render(values)
    folder = Folder(values.output)
    folder.create()
    for name in files:
        if folder.exists(name) and not folder.read(name).startswith(f"# {_RENDERED}".encode()):
            raise ConfigError(
                f"output: {folder / name} was not rendered from values, and is left as it is; move "
                "it, or give another folder"
            )
    for name, text in files.items():
        folder.write(name, text.encode())
    return [folder / name for name in files]


def left_over(values: ClusterValues, written: list[str]) -> list[str]:
    """Files for that provider in the folder that were rendered before, and not now."""
    folder = Folder(values.output)
    optional = ("rayjob.yaml", "rayservice.yaml") if values.provider == "kuberay" else ()
    found = (folder / name for name in optional if folder.exists(name))
    return [file for file in found if file not in written]


class _Dumper(yaml.SafeDumper):
    """Texts of several lines as blocks, and no anchors: people read and change these files."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _block)


def _file(lines: list[str], *documents: dict[str, Any]) -> str:
    heading = [_RENDERED, *lines]
    text = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
    return "".join(f"# {line}".rstrip() + "\n" for line in heading) + text


def _launcher_steps(values: ClusterValues) -> list[str]:
    file = f"{values.provider}.yaml"
    return [
        f"    ray get-auth-token --generate && ray up {file}",
        f"    ray dashboard {file}     # then, elsewhere:",
        "    RAY_AUTH_MODE=token spark-ray submit JOB.yaml --address http://127.0.0.1:8265",
    ]


def _secret_steps(values: ClusterValues) -> list[str]:
    namespace, where = values.kubernetes.namespace, f"-n {values.kubernetes.namespace}"
    steps = [f"    kubectl create namespace {namespace}   # then the secrets, which no file holds:"]
    if values.kubernetes.tls:
        steps += [
            "    openssl req -x509 -newkey rsa:3072 -nodes -days 3650 -subj /CN=spark-ray "
            "-keyout ca.key -out ca.crt",
            f"    kubectl {where} create secret tls {ca_secret(values)} --cert ca.crt --key ca.key",
        ]
    steps.append(
        f"    kubectl {where} create secret generic {redis_secret(values)} "
        "--from-literal password=$(openssl rand -hex 32)"
    )
    if values.kubernetes.secret:
        steps.append(
            f"    kubectl {where} create secret generic {values.kubernetes.secret} "
            "--from-env-file FILE   # AWS_ACCESS_KEY_ID=…"
        )
    return [*steps, "    kubectl apply -f support.yaml"]


def _cluster_steps(values: ClusterValues) -> list[str]:
    where = f"-n {values.kubernetes.namespace}"
    return [
        "    kubectl apply -f raycluster.yaml",
        f"    kubectl {where} port-forward service/{values.name}-head-svc 8265",
        f"    export RAY_AUTH_MODE=token RAY_AUTH_TOKEN=$(kubectl {where} get secret {values.name} "
        "-o jsonpath={.data.auth_token} | base64 -d)",
        "    spark-ray submit JOB.yaml --address http://127.0.0.1:8265",
    ]


def _job_steps(values: ClusterValues, job: str) -> list[str]:
    where = f"-n {values.kubernetes.namespace}"
    return [
        f"A cluster for one job, `spark-ray {job}`, that goes when it is done.",
        f"    kubectl apply -f rayjob.yaml && kubectl {where} get rayjob {values.name}-job --watch",
    ]


def _service_steps(values: ClusterValues, served: str) -> list[str]:
    where = f"-n {values.kubernetes.namespace}"
    return [
        f"A cluster that serves {served}.",
        "    kubectl apply -f rayservice.yaml",
        f"    kubectl {where} port-forward service/{values.name}-serve-serve-svc 8000",
    ]


def _read_serve_config(file: str) -> dict[str, Any]:
    try:
        from ray.serve.schema import ServeDeploySchema
    except ImportError as error:
        raise MissingDependency("ray[serve]", "serve", "serve_config") from error
    try:
        data = read_bytes(file, _MAX_FILE_BYTES)
    except StorageError as error:
        raise ConfigError(f"serve_config: {error}") from error
    config = read_yaml(data, f"serve_config: {file}")
    try:
        ServeDeploySchema.model_validate(config)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"serve_config: {file} is no file of `serve deploy`: {reason}") from error
    assert isinstance(config, dict)
    host = (config.get("http_options") or {}).get("host")
    if host in _LOOPBACK:
        raise ConfigError(
            f"serve_config: {file} listens on {host}, where no other pod reaches it; set "
            "http_options.host to 0.0.0.0, as serve_configs/gpu.yaml does"
        )
    return config

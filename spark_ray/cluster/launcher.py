"""The file of `ray up`: virtual machines on AWS or GCP, or machines that are there already."""

import shlex
from collections.abc import Callable
from typing import Any

from spark_ray.cluster.values import MODELS, ClusterValues, Head, Workers

HEAD_TYPE = "head"
MODELS_ON_HOST = "/mnt/models"

_TOKEN = "~/.ray/auth_token"  # noqa: S105 - where it is, not what it is
_CONTAINER_USER = 1000
_FILES = 65536

# The token lies on the host with the owner that SSH gives it, and only its owner may read it.
_CHECK_USER = (
    f'test "$(id -u)" = {_CONTAINER_USER} || {{ echo "error: ssh_user: $(id -un) has the id '
    f"$(id -u) here, and needs {_CONTAINER_USER}, that of the containers' user, to share Ray's "
    'token with them" >&2; exit 1; }'
)


def launcher_config(values: ClusterValues) -> dict[str, Any]:
    """What `ray up` reads, without what Ray fills in by itself."""
    if values.provider == "on_premise":
        return _on_premise(values)
    provider, node_config = _cloud(values)
    groups = values.worker_groups
    return {
        "cluster_name": values.name,
        "max_workers": sum(workers.max_nodes for workers in groups.values()),
        "idle_timeout_minutes": values.idle_timeout_s / 60,
        "provider": provider,
        "auth": {"ssh_user": values.ssh_user},
        "docker": {
            "image": values.images.cpu,
            "container_name": values.name,
            "pull_before_run": True,
            "run_options": _docker_options(values),
        },
        "head_node_type": HEAD_TYPE,
        "available_node_types": {
            # No CPU: what a task takes from the head is missing where the cluster is steered.
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": node_config(values.head)},
            **{
                name: {
                    "min_workers": workers.min_nodes,
                    "max_workers": workers.max_nodes,
                    "resources": _resources(workers),
                    "node_config": node_config(workers),
                    "docker": {"worker_image": values.image_for(workers)},
                }
                for name, workers in groups.items()
            },
        },
        **_commands(values, head_cpus=0),
    }


def _on_premise(values: ClusterValues) -> dict[str, Any]:
    there = values.on_premise
    assert there is not None
    on_gpus = values.gpu_workers is not None
    return {
        "cluster_name": values.name,
        "provider": {
            "type": "local",
            "head_ip": there.head_host,
            "worker_ips": list(there.worker_hosts),
        },
        "auth": {"ssh_user": values.ssh_user, "ssh_private_key": there.ssh_private_key},
        "docker": {
            # Ray knows one kind of machine here: all take the image that runs on all of them.
            "image": values.images.gpu if on_gpus else values.images.cpu,
            "container_name": values.name,
            "pull_before_run": True,
            "run_options": _docker_options(values),
        },
        **_commands(values, head_cpus=0),
    }


def _cloud(
    values: ClusterValues,
) -> tuple[dict[str, Any], Callable[[Head | Workers], dict[str, Any]]]:
    if values.provider == "aws":
        # Stopped nodes keep their disks: with images and weights on them, they are back at once.
        provider = {"type": "aws", "region": values.aws.region, "cache_stopped_nodes": True}
        return provider, lambda nodes: _aws_node(values, nodes)
    gcp = values.gcp
    assert gcp is not None
    provider = {
        "type": "gcp",
        "region": gcp.region,
        "availability_zone": gcp.zone,
        "project_id": gcp.project,
    }
    return provider, lambda nodes: _gcp_node(values, nodes)


def _aws_node(values: ClusterValues, nodes: Head | Workers) -> dict[str, Any]:
    disk = {"VolumeSize": values.disk_gib, "VolumeType": "gp3", "Encrypted": True}
    node: dict[str, Any] = {
        "InstanceType": nodes.aws_machine,
        "ImageId": values.aws.machine_image,
        "BlockDeviceMappings": [{"DeviceName": "/dev/sda1", "Ebs": disk}],
        # Two hops: the container asks for the role's credentials through the host.
        "MetadataOptions": {"HttpTokens": "required", "HttpPutResponseHopLimit": 2},
    }
    if values.aws.instance_profile:
        node["IamInstanceProfile"] = {"Name": values.aws.instance_profile}
    if isinstance(nodes, Workers) and nodes.spot:
        node["InstanceMarketOptions"] = {"MarketType": "spot"}
    return node


def _gcp_node(values: ClusterValues, nodes: Head | Workers) -> dict[str, Any]:
    assert values.gcp is not None
    disk = {"diskSizeGb": values.disk_gib, "sourceImage": values.gcp.disk_image}
    node: dict[str, Any] = {
        "machineType": nodes.gcp_machine,
        "disks": [
            {"boot": True, "autoDelete": True, "type": "PERSISTENT", "initializeParams": disk}
        ],
    }
    if not isinstance(nodes, Workers):
        return node
    scheduling: dict[str, Any] = {}
    if nodes.spot:
        scheduling |= {"provisioningModel": "SPOT", "instanceTerminationAction": "DELETE"}
    if nodes.gpus:
        scheduling["onHostMaintenance"] = "TERMINATE"  # a GPU can't move with its machine
        node["metadata"] = {"items": [{"key": "install-nvidia-driver", "value": "True"}]}
        if nodes.gpu_type:
            node["guestAccelerators"] = [
                {"acceleratorType": nodes.gpu_type, "acceleratorCount": nodes.gpus}
            ]
    if scheduling:
        node["scheduling"] = scheduling
    return node


def _resources(workers: Workers) -> dict[str, int]:
    return {"CPU": workers.cpus, **({"GPU": workers.gpus} if workers.gpus else {})}


def _docker_options(values: ClusterValues) -> list[str]:
    return [
        f"--ulimit nofile={_FILES}:{_FILES}",
        f"--volume {MODELS_ON_HOST}:{MODELS}",
        *(f"--env {shlex.quote(f'{name}={value}')}" for name, value in values.environment.items()),
    ]


def _commands(values: ClusterValues, head_cpus: int) -> dict[str, Any]:
    mount = []
    if values.model_cache_nfs:
        source = shlex.quote(values.model_cache_nfs)
        mount = [f"mountpoint -q {MODELS_ON_HOST} || sudo mount -t nfs4 {source} {MODELS_ON_HOST}"]
    start = f"ulimit -n {_FILES}; RAY_AUTH_MODE=token ray start --disable-usage-stats"
    return {
        # The token of the machine that runs `ray up` is that of the cluster.
        "file_mounts": {_TOKEN: _TOKEN},
        "initialization_commands": [
            _CHECK_USER,
            f"sudo install -d -o {_CONTAINER_USER} -g {_CONTAINER_USER} {MODELS_ON_HOST}",
            *mount,
        ],
        "setup_commands": [f"chmod 600 {_TOKEN}"],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{start} --head --port=6379 --num-cpus={head_cpus} --dashboard-host=127.0.0.1 "
            "--autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{start} --address=$RAY_HEAD_IP:6379"],
    }

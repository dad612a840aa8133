"""What an operator says about a cluster; every file for it is rendered from these few values."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from spark_ray.cluster.workload import Workload
from spark_ray.core.config import JobConfig
from spark_ray.core.mistakes import written_as

Provider = Literal["aws", "gcp", "on_premise", "kuberay"]

# Kubernetes and GCP both want names that can be a part of a host name.
Name = Annotated[
    str,
    written_as(
        r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?",
        "1 to 40 small letters, digits or hyphens, with a letter first and no hyphen last",
    ),
]
# What ends up in shell lines of the nodes: nothing that a shell reads as more than a word.
Word = Annotated[
    str,
    written_as(
        r"[A-Za-z0-9][A-Za-z0-9._:/@=-]*",
        "one word of letters, digits and . _ : / @ = -, with a letter or digit first",
    ),
]
RemotePath = Annotated[
    str,
    written_as(
        r"(~|/[A-Za-z0-9._-]+)(/[A-Za-z0-9._-]+)*",
        "a path from / or ~ on, of letters, digits, dots, hyphens and underscores",
    ),
]
_Label = written_as(r"[^=]+=[^=]+", "written as label=value")
_NfsFolder = written_as(r"[^:]+:/.*", "written as host:/folder")
_HostPort = written_as(r"[^:]+:[0-9]+", "written as host:port")
_Ami = written_as(r"ami-[0-9a-f]+", "the id of an AMI, as ami-0123456789abcdef0")
_Variable = written_as(
    r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable: letters, digits and _, no digit first"
)


class _Values(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=(), allow_inf_nan=False)


class Images(_Values):
    """Container images, built from cluster/images/; nodes with GPUs take the second."""

    cpu: Word = "spark-ray:cpu"
    gpu: Word = "spark-ray:gpu"


class Head(_Values):
    """The node of the scheduler, the dashboard and the drivers; tasks don't run on it."""

    cpus: int = Field(4, ge=1)
    memory_gib: int = Field(16, ge=2)
    aws_machine: Word | None = Field(None, description="instance type, on aws")
    gcp_machine: Word | None = Field(None, description="machine type, on gcp")


class Workers(_Values):
    """A group of equal nodes that come and go with the work."""

    cpus: int = Field(ge=1)
    memory_gib: int = Field(ge=1)
    gpus: int = Field(0, ge=0, description="of each node")
    gpu_type: Word | None = Field(
        None, description="GCP's name of the accelerator where the machine type has none built in"
    )
    aws_machine: Word | None = Field(None, description="instance type, on aws")
    gcp_machine: Word | None = Field(None, description="machine type, on gcp")
    min_nodes: int = Field(0, ge=0)
    max_nodes: int = Field(ge=0)
    spot: bool = Field(
        False, description="take cheap nodes that may vanish; every job goes on without them"
    )

    @model_validator(mode="after")
    def _room_between(self) -> "Workers":
        if self.min_nodes > self.max_nodes:
            raise ValueError(
                f"min_nodes={self.min_nodes} is more than max_nodes={self.max_nodes}; "
                "no number of nodes is between them"
            )
        return self


class Aws(_Values):
    """Amazon EC2."""

    region: Word = "eu-central-1"
    machine_image: Annotated[Word, _Ami] | None = Field(
        None,
        description="AMI of that region, Ubuntu with Docker and, for GPUs, NVIDIA's driver: ami-…",
    )
    instance_profile: Word | None = Field(
        None, description="IAM instance profile of all nodes, for the buckets"
    )


class Gcp(_Values):
    """Google Compute Engine."""

    project: Word
    region: Word = "europe-west4"
    zone: Word = "europe-west4-a"
    disk_image: Word = Field(
        description="boot disk with Docker and, for GPUs, NVIDIA's driver: projects/…/images/…"
    )

    @model_validator(mode="after")
    def _zone_is_in_its_region(self) -> "Gcp":
        if not self.zone.startswith(f"{self.region}-"):
            raise ValueError(f"zone={self.zone} is none of region={self.region}; set both")
        return self


class OnPremise(_Values):
    """Machines of one kind that are reached over SSH and have Docker."""

    head_host: Word
    worker_hosts: list[Word] = Field(min_length=1)
    ssh_private_key: RemotePath = Field("~/.ssh/id_ed25519", description="on this machine")

    @model_validator(mode="after")
    def _every_host_once(self) -> "OnPremise":
        hosts = [self.head_host, *self.worker_hosts]
        twice = sorted({host for host in hosts if hosts.count(host) > 1})
        if twice:
            raise ValueError(
                f"worker_hosts: {twice[0]} is named twice; a host runs one node of Ray"
            )
        return self


class Kubernetes(_Values):
    """Kubernetes with the KubeRay operator, version 1.5.1 or later: former ones know no token."""

    namespace: Name = "spark-ray"
    operator_namespace: Name = Field("kuberay-system", description="where KubeRay itself runs")
    client_namespaces: list[Name] = Field(
        default_factory=list, description="whose pods may ask the models, submit jobs and scrape"
    )
    monitor_labels: dict[Word, Word] = Field(
        default_factory=dict,
        description="by which a Prometheus of the Prometheus operator chooses what it scrapes, "
        "e.g. {release: kube-prometheus-stack}",
    )
    secret: Name | None = Field(
        None, description="Secret whose entries become environment variables: AWS_… and the like"
    )
    storage_class: Word | None = Field(
        None, description="of the model cache; it must allow ReadWriteMany"
    )
    model_cache_gib: int = Field(200, ge=1, description="of weights that all nodes share")
    spot_label: Annotated[Word, _Label] | None = Field(
        None,
        description="label=value of spot nodes, e.g. cloud.google.com/gke-spot=true",
    )
    tls: bool = Field(True, description="encrypt and authenticate what the nodes say to each other")
    redis_address: Annotated[Word, _HostPort] | None = Field(
        None,
        description="host:port of the Redis that remembers the cluster's state while its head "
        "restarts; unset: a small one is rendered too",
    )
    redis_image: Word = "redis:7.4-bookworm"


MODELS = "/models"
"""Where containers keep weights that come from a hub."""

KEEPALIVE = {
    "RAY_grpc_client_keepalive_time_ms": "45000",
    "RAY_grpc_client_keepalive_timeout_ms": "40000",
}
"""When Ray gives up a connection on which nothing comes back; the same on all nodes.

A node that loses its power ends no connection. Ray notices after a minute, but whatever was asked
of that node waits for TCP to give up, which takes more than two with Ray's own settings. It is
longer than the half minute for which a cable may be out.
"""


class ClusterValues(JobConfig):
    """Render the files of a Ray cluster from one small set of values.

    Exit status: 0 rendered, 1 the files can't be written, 2 wrong values.
    """

    provider: Provider = Field(description="what the cluster runs on")
    output: str = Field(
        "cluster/rendered", min_length=1, description="folder that the files are written into"
    )
    name: Name = Field("spark-ray", description="of the cluster, and of all that belongs to it")
    images: Images = Field(default_factory=Images, description="container images")
    head: Head = Field(default_factory=Head, description="the head node")
    cpu_workers: Workers = Field(
        default_factory=lambda: Workers(cpus=8, memory_gib=32, max_nodes=4),
        description="nodes that decode",
    )
    gpu_workers: Workers | None = Field(None, description="nodes that caption, train and serve")
    idle_timeout_s: int = Field(300, ge=60, description="then a node without work is given back")
    ssh_user: Word = Field(
        "ubuntu", description="of the nodes, with the id 1000 there; aws, gcp and on_premise"
    )
    disk_gib: int = Field(200, ge=50, description="boot disk of each node; aws and gcp")
    model_cache_nfs: Annotated[Word, _NfsFolder] | None = Field(
        None,
        description="host:/folder over NFS that all nodes keep weights in; aws, gcp, on_premise",
    )
    env: dict[Annotated[str, _Variable], str] = Field(
        default_factory=dict,
        description="environment of all nodes; secrets belong into kubernetes.secret",
    )
    aws: Aws = Field(default_factory=Aws, description="where on Amazon EC2")
    gcp: Gcp | None = Field(None, description="where on Google Compute Engine")
    on_premise: OnPremise | None = Field(None, description="machines that are there already")
    kubernetes: Kubernetes = Field(
        default_factory=Kubernetes,
        description="how the cluster lies in Kubernetes",
    )
    workload: Workload | None = Field(
        None, description="a job (data build …) that a RayJob runs; kuberay"
    )
    serve_config: str | None = Field(
        None,
        description="a file such as serve_configs/gpu.yaml, for a RayService; kuberay. Seen from "
        "the working folder; env goes before the variables that it sets",
    )

    @property
    def environment(self) -> dict[str, str]:
        """Of every node."""
        return {"HF_HOME": f"{MODELS}/huggingface", **KEEPALIVE, **self.env}

    @model_validator(mode="after")
    def _provider_is_described(self) -> "ClusterValues":
        if self.provider in ("gcp", "on_premise") and getattr(self, self.provider) is None:
            raise ValueError(f"{self.provider}: describe it, since provider is {self.provider}")
        if self.provider == "aws" and self.aws.machine_image is None:
            # Ray's own choice has a driver of 2022, too old for the CUDA of our images.
            raise ValueError("aws: provider aws needs a machine_image")
        if self.provider in ("aws", "gcp"):
            for group in ("head", "cpu_workers", "gpu_workers"):
                nodes = getattr(self, group)
                if nodes is not None and getattr(nodes, f"{self.provider}_machine") is None:
                    raise ValueError(
                        f"{group}: provider {self.provider} needs a {self.provider}_machine"
                    )
        if self.provider == "kuberay" and not self.kubernetes.spot_label:
            for group, nodes in self.worker_groups.items():
                if nodes.spot:
                    raise ValueError(
                        f"{group}: spot needs kubernetes.spot_label, by which such nodes are known"
                    )
        return self

    @model_validator(mode="after")
    def _groups_are_what_they_say(self) -> "ClusterValues":
        if self.cpu_workers.gpus:
            raise ValueError("cpu_workers: gpus belong into gpu_workers")
        if self.gpu_workers is not None and not self.gpu_workers.gpus:
            raise ValueError("gpu_workers: gpus must be at least 1; leave the group out otherwise")
        return self

    @property
    def worker_groups(self) -> dict[str, Workers]:
        groups = {"cpu_workers": self.cpu_workers}
        return groups if self.gpu_workers is None else {**groups, "gpu_workers": self.gpu_workers}

    def image_for(self, workers: Workers) -> str:
        return self.images.gpu if workers.gpus else self.images.cpu

"""KubeRay's objects, and what goes with them, are what Kubernetes, Ray and Serve read."""

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kuberay_schema
import pytest
import yaml
from jsonschema import ValidationError
from ray.autoscaler._private.kuberay.autoscaling_config import (
    _derive_autoscaling_config_from_ray_cr,
)
from ray.serve.schema import ServeDeploySchema

import spark_ray.datasets.config
from spark_ray.cluster import pods
from spark_ray.cluster.render import render
from spark_ray.cluster.values import ClusterValues
from spark_ray.core.errors import ConfigError

ROOT = Path(__file__).parents[3]


def rendered(**changes: Any) -> dict[str, dict[str, Any]]:
    """Every document by its kind; there is at most one of each."""
    values = yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text())
    values["serve_config"] = str(ROOT / values["serve_config"])
    files = render(ClusterValues.from_values(**{**values, "provider": "kuberay", **changes}))
    documents = [doc for text in files.values() for doc in yaml.safe_load_all(text)]
    assert len(documents) == len({doc["kind"] for doc in documents})
    return {doc["kind"]: doc for doc in documents}


def kubernetes(**changes: Any) -> dict[str, Any]:
    values = yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text())
    return {**values["kubernetes"], **changes}


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, Any]]:
    return rendered()


RAY_KINDS = ("RayCluster", "RayJob", "RayService")
KINDS = (
    *RAY_KINDS, "Namespace", "PersistentVolumeClaim", "NetworkPolicy", "Service", "StatefulSet",
    "ConfigMap", "PodMonitor", "PrometheusRule",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_object_fits_its_schema(documents: dict[str, dict[str, Any]], kind: str) -> None:
    assert set(documents) == set(KINDS)
    kuberay_schema.check(documents[kind])


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"gpu_workers": None}, None),
        ({"kubernetes": {"redis_address": "redis.example.com:6379"}, "gpu_workers": None,
          "cpu_workers": {"cpus": 4, "memory_gib": 8, "max_nodes": 2}}, "StatefulSet"),
        ({"kubernetes": kubernetes(tls=False, storage_class="nfs")}, None),
        ({"workload": None, "serve_config": None}, "RayJob"),
    ],
    ids=["no GPUs", "bare", "no TLS", "cluster alone"],
)  # fmt: skip
def test_less_is_valid_too(changes: dict[str, Any], missing: str | None) -> None:
    found = rendered(**changes)
    for document in found.values():
        kuberay_schema.check(document)
    assert missing not in found


def test_the_schema_would_notice(documents: dict[str, dict[str, Any]]) -> None:
    wrong = yaml.safe_load(yaml.safe_dump(documents["RayCluster"]))
    wrong["spec"]["workerGroupSpecs"][0]["minReplica"] = 1
    with pytest.raises(ValidationError, match="minReplica"):
        kuberay_schema.check(wrong)
    wrong = yaml.safe_load(yaml.safe_dump(documents["RayCluster"]))
    wrong["spec"]["headGroupSpec"]["template"]["spec"]["container"] = []
    with pytest.raises(Exception, match="container"):
        kuberay_schema.check(wrong)


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_rays_autoscaler_reads_the_groups(documents: dict[str, dict[str, Any]], kind: str) -> None:
    cluster = {
        "metadata": documents[kind]["metadata"],
        "spec": kuberay_schema.cluster_spec(documents[kind]),
    }
    config = _derive_autoscaling_config_from_ray_cr(cluster)

    assert config["idle_timeout_minutes"] == 5
    types = config["available_node_types"]
    assert types["headgroup"]["resources"]["CPU"] == 0
    decode, models = types["cpu-workers"], types["gpu-workers"]
    assert (decode["resources"]["CPU"], decode["min_workers"], decode["max_workers"]) == (16, 0, 8)
    assert "GPU" not in decode["resources"]
    assert (models["resources"]["CPU"], models["resources"]["GPU"]) == (8, 1)
    assert decode["resources"]["memory"] == 32 << 30


def test_spot_nodes_are_for_workers_and_never_for_the_head(
    documents: dict[str, dict[str, Any]],
) -> None:
    cluster = documents["RayCluster"]["spec"]
    head = cluster["headGroupSpec"]["template"]["spec"]["affinity"]["nodeAffinity"]
    (term,) = head["requiredDuringSchedulingIgnoredDuringExecution"]["nodeSelectorTerms"]
    assert term["matchExpressions"] == [
        {"key": "cloud.google.com/gke-spot", "operator": "NotIn", "values": ["true"]}
    ]
    for group in cluster["workerGroupSpecs"]:
        pod = group["template"]["spec"]
        assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
        assert "cloud.google.com/gke-spot" in {taint["key"] for taint in pod["tolerations"]}


@pytest.mark.parametrize("kind", RAY_KINDS)
def test_every_node_has_token_tls_cache_and_secrets(
    documents: dict[str, dict[str, Any]], kind: str
) -> None:
    cluster = kuberay_schema.cluster_spec(documents[kind])
    assert cluster["authOptions"] == {"mode": "token"}
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for group in groups:
        pod = group["template"]["spec"]
        (ray,) = pod["containers"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounts = {mount["name"]: mount["mountPath"] for mount in ray["volumeMounts"]}
        assert volumes["models"]["persistentVolumeClaim"] == {"claimName": "spark-ray-models"}
        assert mounts["models"] == "/models"
        assert ray["envFrom"] == [{"secretRef": {"name": "spark-ray-environment"}}]
        environment = {variable["name"]: variable.get("value") for variable in ray["env"]}
        assert environment["HF_HOME"] == "/models/huggingface"
        for name in ("SERVER_CERT", "SERVER_KEY", "CA_CERT"):
            assert environment[f"RAY_TLS_{name}"].startswith(mounts["tls"])
        assert "ca" not in mounts, "the authority's key is for the init container alone"


def test_pods_may_do_as_little_as_restricted_namespaces_ask(
    documents: dict[str, dict[str, Any]],
) -> None:
    templates = [
        *(pod for kind in RAY_KINDS for pod in kuberay_schema.pod_templates(documents[kind])),
        documents["StatefulSet"]["spec"]["template"],
    ]
    for pod in templates:
        spec = pod["spec"]
        if "securityContext" in spec:  # the autoscaler lies in the head's pod
            assert spec["securityContext"]["runAsNonRoot"] is True
            assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in [*spec["containers"], *spec.get("initContainers", [])]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_network_policy_selects_every_pod_and_lets_in_few(
    documents: dict[str, dict[str, Any]],
) -> None:
    policy = documents["NetworkPolicy"]["spec"]
    selected = policy["podSelector"]["matchLabels"].items()
    pods_ = [
        pod
        for kind in RAY_KINDS
        for pod in kuberay_schema.pod_templates(documents[kind])
        if pod["spec"]["containers"][0]["name"] != "autoscaler"
    ]
    for pod in (*pods_, documents["StatefulSet"]["spec"]["template"]):
        assert selected <= pod["metadata"]["labels"].items()
    own, operator, clients = policy["ingress"]
    assert own == {"from": [{"podSelector": policy["podSelector"]}]}
    assert {port["port"] for port in operator["ports"]} == {8265, 8000, 52365}
    assert {port["port"] for port in clients["ports"]} == {8265, 8000, 8080}
    assert len(clients["from"]) == 2
    nobody_else = rendered(kubernetes=kubernetes(client_namespaces=[]))["NetworkPolicy"]["spec"]
    assert len(nobody_else["ingress"]) == 2


def test_a_prometheus_finds_every_ray_node_and_nothing_else(
    documents: dict[str, dict[str, Any]],
) -> None:
    monitor = rendered(kubernetes=kubernetes(monitor_labels={"release": "watch"}))["PodMonitor"]
    assert monitor["metadata"]["labels"]["release"] == "watch"
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    selected = dict(monitor["spec"]["selector"]["matchLabels"])
    assert selected.pop("ray.io/is-ray-node") == "yes", "the Redis bears our label too"
    for kind in RAY_KINDS:
        cluster = kuberay_schema.cluster_spec(documents[kind])
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            assert selected.items() <= group["template"]["metadata"]["labels"].items()
            (container,) = group["template"]["spec"]["containers"]
            ports = {port["name"]: port["containerPort"] for port in container["ports"]}
            assert ports[endpoint["port"]] == 8080
    jobs = {one["replacement"] for one in endpoint["relabelings"] if one["targetLabel"] == "job"}
    expressions = [
        rule["expr"]
        for group in documents["PrometheusRule"]["spec"]["groups"]
        for rule in group["rules"]
    ]
    assert jobs == set(re.findall(r'job="(\w+)"', " ".join(expressions)))


def test_a_lost_head_finds_its_state_in_redis(documents: dict[str, dict[str, Any]]) -> None:
    options = documents["RayCluster"]["spec"]["gcsFaultToleranceOptions"]
    service, stateful = documents["Service"], documents["StatefulSet"]
    name, namespace = service["metadata"]["name"], service["metadata"]["namespace"]
    assert options["redisAddress"] == f"{name}.{namespace}.svc.cluster.local:6379"
    redis = stateful["spec"]["template"]
    assert service["spec"]["selector"].items() <= redis["metadata"]["labels"].items()
    (container,) = redis["spec"]["containers"]
    assert options["redisPassword"]["valueFrom"] == container["env"][0]["valueFrom"]
    elsewhere = kubernetes(redis_address="redis.example.com:6379")
    cluster = rendered(kubernetes=elsewhere)["RayCluster"]["spec"]
    assert cluster["gcsFaultToleranceOptions"]["redisAddress"] == "redis.example.com:6379"
    assert "gcsFaultToleranceOptions" not in documents["RayJob"]["spec"]["rayClusterSpec"]


def test_a_ray_job_runs_the_file_of_its_config_map(documents: dict[str, dict[str, Any]]) -> None:
    job, config = documents["RayJob"]["spec"], documents["ConfigMap"]
    head = job["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    (mount,) = [m for m in head["containers"][0]["volumeMounts"] if m["name"] == "job"]
    (volume,) = [v for v in head["volumes"] if v["name"] == "job"]
    assert volume["configMap"]["name"] == config["metadata"]["name"]
    (file,) = config["data"]
    assert job["entrypoint"] == (
        f"python -m spark_ray.cli data build --config {mount['mountPath']}/{file}"
    )
    settings = yaml.safe_load(config["data"][file])
    build = spark_ray.datasets.config.BuildConfig.from_values(**settings)
    assert build.output == "s3://sets/street"


def test_a_ray_service_deploys_what_serve_reads(documents: dict[str, dict[str, Any]]) -> None:
    deployed = yaml.safe_load(documents["RayService"]["spec"]["serveConfigV2"])
    expected = yaml.safe_load((ROOT / "serve_configs" / "gpu.yaml").read_text())
    variables = expected["applications"][0]["runtime_env"]["env_vars"]
    env = yaml.safe_load((ROOT / "cluster" / "values.yaml").read_text())["env"]
    assert variables["MLFLOW_TRACKING_URI"] != env["MLFLOW_TRACKING_URI"]
    variables["MLFLOW_TRACKING_URI"] = env["MLFLOW_TRACKING_URI"]
    assert deployed == expected, "one registry for all nodes"
    schema = ServeDeploySchema.model_validate(deployed)
    assert schema.http_options.port == 8000
    assert schema.http_options.host == "0.0.0.0"


def test_a_file_that_is_none_of_serves_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "serve.yaml").write_text("applications: [{name: x}]")
    with pytest.raises(ConfigError, match=r"serve_config: .*import_path"):
        rendered(serve_config=str(tmp_path / "serve.yaml"))
    (tmp_path / "serve.yaml").write_text("applications: []\napplications: [{name: x}]")
    with pytest.raises(ConfigError, match=r"^serve_config: .*'applications' is given twice"):
        rendered(serve_config=str(tmp_path / "serve.yaml"))
    with pytest.raises(ConfigError, match=r"serve_config: .*does not exist"):
        rendered(serve_config=str(tmp_path / "none.yaml"))
    with pytest.raises(ConfigError, match=r"local.yaml listens on 127.0.0.1, where no other pod"):
        rendered(serve_config=str(ROOT / "serve_configs" / "local.yaml"))


def test_ports_of_the_head_are_those_of_ray() -> None:
    """The policy names ports by number; these are what Ray listens on by default."""
    from ray._private import ray_constants

    values = ClusterValues.from_values(provider="kuberay")
    (container,) = pods.head_template(values)["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports["dashboard"] == ray_constants.DEFAULT_DASHBOARD_PORT
    assert ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT == 52365


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
@pytest.mark.parametrize(
    ("cluster", "service"),
    [
        ("spark-ray-x7k2p", "spark-ray-x7k2p-head-svc"),
        (f"{'a' * 40}-serve-x7k2p", f"{'a' * 29}-serve-x7k2p-head-svc"),
        (f"aa-{'b' * 30}-job-x7k2p", f"r{'b' * 30}-job-x7k2p-head-svc"),
    ],
)
def test_the_head_is_certified_by_the_name_that_kuberay_gives_its_service(
    cluster: str, service: str, tmp_path: Path
) -> None:
    authority = "openssl req -x509 -newkey rsa:2048 -nodes -days 1 -subj /CN=x -keyout tls.key"
    subprocess.run(
        [*authority.split(), "-out", "tls.crt"], cwd=tmp_path, check=True, capture_output=True
    )
    (tmp_path / "pod").mkdir()
    pod = {
        "CLUSTER": cluster,
        "NAMESPACE": "here",
        "POD_IP": "10.0.0.7",
        "CA_FOLDER": str(tmp_path),
        "TLS_FOLDER": str(tmp_path / "pod"),
        "PATH": os.environ["PATH"],
    }
    subprocess.run(
        ["/bin/sh", "-c", pods.MAKE_CERTIFICATE], env=pod, check=True, capture_output=True
    )
    shown = ["openssl", "x509", "-in", "pod/tls.crt", "-noout", "-ext", "subjectAltName"]
    names = subprocess.run(shown, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert f"DNS:{service}, DNS:{service}.here.svc, " in names

"""`ray up` reads what is rendered: Ray's own schema, its own defaults, its own start on AWS."""

import copy
import subprocess
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from moto import mock_aws
from ray.autoscaler._private.aws.config import bootstrap_aws
from ray.autoscaler._private.aws.node_provider import AWSNodeProvider
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.autoscaler.tags import TAG_RAY_LAUNCH_CONFIG, TAG_RAY_NODE_KIND, TAG_RAY_USER_NODE_TYPE

from spark_ray.cluster.launcher import _CONTAINER_USER
from spark_ray.cluster.render import render
from spark_ray.cluster.values import ClusterValues

VALUES = Path(__file__).parents[3] / "cluster" / "values.yaml"


def rendered(provider: str, **changes: Any) -> dict[str, Any]:
    values = ClusterValues.from_values(
        **{**yaml.safe_load(VALUES.read_text()), **changes, "provider": provider}
    )
    return yaml.safe_load(render(values)[f"{provider}.yaml"])


def as_ray_reads_it(config: dict[str, Any]) -> dict[str, Any]:
    prepared = prepare_config(copy.deepcopy(config))
    validate_config(prepared)
    return prepared


@pytest.mark.parametrize("provider", ["aws", "gcp", "on_premise"])
def test_rays_validator_takes_it_whole(provider: str) -> None:
    config = rendered(provider, model_cache_nfs="files.example.com:/models")
    prepared = as_ray_reads_it(config)

    for name, value in config.items():
        if name not in ("head_setup_commands", "worker_setup_commands"):
            assert prepared[name] == value or name == "available_node_types"
    for role in ("head", "worker"):
        (_, start) = prepared[f"{role}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token ray start" in start
    assert prepared["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    assert "--dashboard-host=127.0.0.1" in prepared["head_start_ray_commands"][1]
    assert any("files.example.com:/models" in c for c in prepared["initialization_commands"])


@pytest.mark.parametrize(("user_id", "status"), [("1000", 0), ("1001", 1)])
def test_a_user_who_can_not_share_the_token_is_told_at_once(
    tmp_path: Path, user_id: str, status: int
) -> None:
    fake = tmp_path / "id"
    fake.write_text(f'#!/bin/sh\ntest "$1" = -u && echo {user_id} || echo somebody\n')
    fake.chmod(0o755)
    first, *_ = rendered("on_premise")["initialization_commands"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(["bash", "-c", first], env=environment, capture_output=True, text=True)
    assert done.returncode == status
    expected = "error: ssh_user: somebody has the id 1001 here, and needs 1000, that of the "
    assert done.stderr.startswith(expected if status else "")
    assert done.stderr.count("\n") == status


def test_the_id_is_that_of_the_images() -> None:
    for image in ("cpu", "gpu"):
        file = VALUES.parent / "images" / f"{image}.Dockerfile"
        assert f"--uid {_CONTAINER_USER} " in file.read_text()


def test_rays_validator_would_notice() -> None:
    config = rendered("gcp")
    config["available_node_types"]["gpu_workers"]["spot"] = True
    with pytest.raises(Exception, match="'spot' was unexpected"):
        as_ray_reads_it(config)


@pytest.mark.parametrize("provider", ["aws", "gcp"])
def test_decoding_and_models_have_nodes_of_their_own(provider: str) -> None:
    types = as_ray_reads_it(rendered(provider))["available_node_types"]

    assert types["head"]["resources"] == {"CPU": 0}
    assert types["head"]["max_workers"] == 0
    assert types["cpu_workers"]["resources"] == {"CPU": 16}
    assert types["gpu_workers"]["resources"] == {"CPU": 8, "GPU": 1}
    images = {name: kind["docker"]["worker_image"][-3:] for name, kind in list(types.items())[1:]}
    assert images == {"cpu_workers": "cpu", "gpu_workers": "gpu"}


def test_spot_nodes_of_gcp() -> None:
    types = rendered("gcp")["available_node_types"]
    assert "scheduling" not in types["head"]["node_config"]
    assert types["gpu_workers"]["node_config"]["scheduling"] == {
        "provisioningModel": "SPOT",
        "instanceTerminationAction": "DELETE",
        "onHostMaintenance": "TERMINATE",
    }


def test_machines_that_are_there_become_one_cluster() -> None:
    prepared = as_ray_reads_it(rendered("on_premise"))
    assert prepared["provider"]["head_ip"] == "node-1.example.com"
    assert prepared["max_workers"] == 2
    assert prepared["docker"]["image"].endswith(":gpu")
    assert as_ray_reads_it(rendered("on_premise", gpu_workers=None))["docker"]["image"].endswith(
        ":cpu"
    )


def test_ray_starts_its_nodes_on_aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's launcher itself, against a simulated EC2: keys, networks, roles, then instances."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray puts the key pair
    (tmp_path / ".ssh").mkdir()
    with mock_aws():
        boto3.client("iam").create_instance_profile(InstanceProfileName="spark-ray")
        config = bootstrap_aws(as_ray_reads_it(rendered("aws")))
        provider = AWSNodeProvider(config["provider"], config["cluster_name"])
        for name, kind in config["available_node_types"].items():
            tags = {
                TAG_RAY_NODE_KIND: "head" if name == "head" else "worker",
                TAG_RAY_LAUNCH_CONFIG: "hash",
                TAG_RAY_USER_NODE_TYPE: name,
            }
            provider.create_node(kind["node_config"], tags, 1)
        ec2 = boto3.client("ec2", region_name="eu-central-1")
        reservations = ec2.describe_instances()["Reservations"]
    instances = {
        instance["InstanceType"]: instance
        for reservation in reservations
        for instance in reservation["Instances"]
    }

    assert set(instances) == {"m7i.xlarge", "c7i.4xlarge", "g6.2xlarge"}
    spot = {kind for kind, i in instances.items() if i.get("InstanceLifecycle") == "spot"}
    assert spot == {"c7i.4xlarge", "g6.2xlarge"}
    for instance in instances.values():
        assert instance["IamInstanceProfile"]["Arn"].endswith("/spark-ray")
        assert instance["MetadataOptions"]["HttpTokens"] == "required"
        assert instance["ImageId"] == "ami-0123456789abcdef0", "not Ray's own"

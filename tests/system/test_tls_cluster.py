"""A cluster with the certificates that KubeRay's pods make for themselves: only they may talk."""

import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from clusters import StartNode, free_port, started
from ray.util import get_node_ip_address

from spark_ray.cluster.pods import MAKE_CERTIFICATE, TLS, tls_environment
from spark_ray.cluster.render import render
from spark_ray.cluster.values import ClusterValues

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")

COUNT = (
    "import ray\n"
    "ray.init(log_to_driver=False)\n"
    "print('counted', ray.get(ray.remote(lambda: 6 * 7).remote()))\n"
)


def make_authority(folder: Path) -> Path:
    """With the very line that the head of support.yaml tells the operator to type."""
    folder.mkdir()
    support = render(ClusterValues.from_values(provider="kuberay"))["support.yaml"]
    (line,) = re.findall(r"^# +(openssl req .*)$", support, re.MULTILINE)
    subprocess.run(line, shell=True, cwd=folder, check=True, capture_output=True)
    # As `kubectl create secret tls` names them.
    (folder / "ca.key").rename(folder / "tls.key")
    (folder / "ca.crt").rename(folder / "tls.crt")
    return folder


def make_certificate(authority: Path, folder: Path, address: str) -> Path:
    """As the init container does, in a pod of this address."""
    folder.mkdir()
    pod = {
        "POD_IP": address,
        "NAMESPACE": "spark-ray",
        "CLUSTER": "spark-ray-x7k2p",
        "CA_FOLDER": str(authority),
        "TLS_FOLDER": str(folder),
        "PATH": os.environ["PATH"],
    }
    subprocess.run(["/bin/sh", "-c", MAKE_CERTIFICATE], env=pod, check=True, capture_output=True)
    assert {file.name for file in folder.iterdir()} == {"tls.crt", "tls.key", "ca.crt"}
    assert (folder / "tls.key").stat().st_mode & 0o077 == 0
    return folder


def variables(folder: Path) -> dict[str, str]:
    """What the Ray container has in its environment, with the files where they are here."""
    return {
        variable["name"]: variable["value"].replace(TLS, str(folder))
        for variable in tls_environment()
    }


def talk(server: tuple[str, int], folder: Path, name: str) -> None:
    """Raises OSError (ssl.SSLError is one) unless both sides accept each other."""
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(server, timeout=60) as raw,
        context.wrap_socket(raw, server_hostname=name) as line,
    ):
        # In TLS 1.3 a refusal of our own certificate comes with the first bytes of the answer.
        if not line.recv(1):
            raise ConnectionError("closed by the server")


def test_only_nodes_of_the_authority_are_let_in(
    start_node: StartNode, environment: dict[str, str], tmp_path: Path
) -> None:
    address, port = get_node_ip_address(), free_port()
    node = make_certificate(make_authority(tmp_path / "ca"), tmp_path / "node", address)
    other = make_authority(tmp_path / "other")
    stranger = make_certificate(other, tmp_path / "stranger", address)
    arguments = [
        "--head",
        "--num-cpus=1",
        f"--port={port}",
        "--include-dashboard=false",
        f"--dashboard-agent-listen-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    started(
        lambda: start_node(*arguments, **variables(node)),
        lambda head: b"Ray runtime started" in head.log.read_bytes(),
    )

    done = subprocess.run(
        [sys.executable, "-c", COUNT],
        env={**environment, **variables(node), "RAY_ADDRESS": f"{address}:{port}"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert "counted 42" in done.stdout, done.stderr

    talk((address, port), node, address)
    talk((address, port), node, "spark-ray-x7k2p-head-svc.spark-ray.svc.cluster.local")
    with pytest.raises(ssl.SSLCertVerificationError):
        talk((address, port), node, "spark-ray-x7k2p-head-svc.elsewhere.svc.cluster.local")
    with pytest.raises(ssl.SSLCertVerificationError):
        talk((address, port), stranger, address)
    shutil.copy(node / "ca.crt", stranger / "ca.crt")  # it trusts us, and we don't trust it
    with pytest.raises(OSError, match=r"alert|closed|reset"):
        talk((address, port), stranger, address)

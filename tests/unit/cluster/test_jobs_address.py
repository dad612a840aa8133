"""Which cluster an address means, and what is said where none is there."""

import argparse
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from spark_ray.cluster.commands import _where
from spark_ray.cluster.config import ClusterPlace
from spark_ray.cluster.jobs_api import _with_scheme, connect
from spark_ray.core.errors import ClusterError


class Dashboard(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *given: object) -> None:
        """Nothing: it would be printed."""


@contextmanager
def listening(server: HTTPServer) -> Iterator[str]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_the_http_of_a_dashboard_may_be_left_out() -> None:
    with listening(HTTPServer(("127.0.0.1", 0), Dashboard)) as address:
        assert _with_scheme(address) == f"http://{address}"
        for given in (f"http://{address}", f"ray://{address}", "auto", "host:name"):
            assert _with_scheme(given) == given


def test_the_port_of_the_gcs_is_left_to_ray() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        assert _with_scheme(address) == address


def test_where_nobody_listens_is_one_sentence() -> None:
    with socket.socket() as held:  # bound, but not listening
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with pytest.raises(ClusterError, match=f"^{address}: no Ray cluster answers there"):
            connect(ClusterPlace(address=address, ca_file=None))


def test_what_is_to_be_typed_next_names_the_cluster() -> None:
    given = argparse.Namespace(address="http://head:8265", ca_file="/my ca.crt")
    assert _where(given) == " --address http://head:8265 --ca-file '/my ca.crt'"
    assert _where(ClusterPlace(address=None, ca_file=None)) == ""

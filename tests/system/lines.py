"""A TCP line to a server that can be cut, mended, or fall silent, as lines to clusters do."""

import contextlib
import socket
import threading


class Line:
    """Forwards connections to a local port.

    `cut` breaks every connection and refuses new ones until `mend`; `silence` stops the bytes of
    the connections of this moment without a word, as a NAT does that has forgotten them.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._sockets: list[socket.socket] = []
        self._silent: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._server: socket.socket | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.mend()

    def mend(self) -> None:
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(("127.0.0.1", self.port))
        server.listen()
        self._server = server
        threading.Thread(target=self._accept, args=(server,), daemon=True).start()

    def cut(self) -> None:
        assert self._server is not None
        # An accept that waits keeps the socket open; shutting it down wakes that up first.
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        with self._lock:
            ends, self._sockets = self._sockets, []
        for end in ends:
            _close(end)

    def silence(self) -> int:
        """How many connections were silenced."""
        with self._lock:
            fallen = set(self._sockets) - self._silent
            self._silent |= fallen
        return len(fallen) // 2

    def _accept(self, server: socket.socket) -> None:
        while True:
            try:
                client, _ = server.accept()
                target = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                return
            with self._lock:
                self._sockets += [client, target]
            for source, sink in ((client, target), (target, client)):
                threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                if source not in self._silent:
                    sink.sendall(data)
        if source not in self._silent:
            _close(sink)
            with self._lock, contextlib.suppress(ValueError):
                self._sockets.remove(source)


def _close(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()

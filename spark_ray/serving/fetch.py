"""Media that requests name by address: fetched from allowed places only, never from inside.

A server that fetches what it is told to is a way into its own network. So a host must be on the
list, every address that it resolves to must be public, the connection goes to the very address that
was checked (a second lookup could answer otherwise), and each redirect is checked anew.
"""

import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from fnmatch import fnmatch
from urllib.parse import SplitResult, urljoin, urlsplit

from spark_ray.core.errors import StorageError
from spark_ray.core.storage import open_read
from spark_ray.serving.errors import ApiError, too_large

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MOST_REDIRECTS = 3
_CHUNK_BYTES = 1 << 18
_CONNECT_TIMEOUT_S = 10.0
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")  # leads on to the IPv4 address in its last bits


class Fetcher:
    """Reads media from `https://` and `s3://` places that the operator allows."""

    def __init__(
        self,
        allowed_hosts: Sequence[str],
        allowed_buckets: Sequence[str],
        max_bytes: int,
        timeout_s: float,
    ) -> None:
        self._hosts, self._buckets = allowed_hosts, allowed_buckets
        self._max_bytes, self._timeout_s = max_bytes, timeout_s

    def chunks(self, url: str) -> Iterator[bytes]:
        """The file's bytes, piece by piece.

        Raises:
            ApiError: the place is not allowed, can't be read, or the file is too large.
        """
        read = self._from_bucket(url) if url.startswith("s3://") else self._from_host(url)
        end = time.monotonic() + self._timeout_s
        size = 0
        for chunk in read:
            size += len(chunk)
            if size > self._max_bytes:
                raise too_large(url, self._max_bytes)
            if time.monotonic() > end:
                raise ApiError(504, "fetch_timeout", f"{url}: took too long to fetch")
            yield chunk

    def check_bucket(self, url: str) -> None:
        """
        Raises:
            ApiError: the address is not below one of the allowed `s3://` prefixes.
        """
        parts = url.removeprefix("s3://").split("/")
        inside = any(url.startswith(f"{bucket.rstrip('/')}/") for bucket in self._buckets)
        if not url.startswith("s3://") or not inside or {"", ".", ".."} & set(parts):
            raise _not_allowed(url, "allowed_buckets", self._buckets)
        # A job's inputs are lines of a file: what is behind a line break would be one of its own.
        if not url.isprintable():
            raise ApiError(400, "invalid_url", f"{url!r} holds a character that can't be printed")

    def _from_bucket(self, url: str) -> Iterator[bytes]:
        self.check_bucket(url)
        try:
            with open_read(url) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
        except StorageError as error:
            raise ApiError(422, "fetch_failed", str(error)) from error

    def _from_host(self, url: str) -> Iterator[bytes]:
        for _ in range(_MOST_REDIRECTS + 1):
            parts = self._checked(url)
            host = parts.hostname or ""
            connection = _PinnedConnection(host, public_address(host), _CONNECT_TIMEOUT_S)
            with closing(connection):
                try:
                    path = f"{parts.path or '/'}{'?' + parts.query if parts.query else ''}"
                    connection.request("GET", path, headers={"Accept-Encoding": "identity"})
                    response = connection.getresponse()
                    if response.status in _REDIRECTS:
                        url = urljoin(url, response.getheader("Location") or "")
                        continue
                    if response.status != 200:
                        raise ApiError(
                            422, "fetch_failed", f"{url}: answered with status {response.status}"
                        )
                    yield from _body(response)
                    return
                except (OSError, http.client.HTTPException, UnicodeError) as error:
                    raise ApiError(422, "fetch_failed", f"{url}: can't be fetched") from error
        raise ApiError(422, "fetch_failed", f"{url}: redirects too often")

    def _checked(self, url: str) -> SplitResult:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise ApiError(400, "invalid_url", f"{url!r} is no address") from error
        if parts.scheme != "https" or port not in (None, 443) or parts.username or not host:
            raise ApiError(
                400, "invalid_url", f"{url!r}: give an https:// address with the usual port"
            )
        if not url.isascii() or any(character.isspace() for character in url):
            raise ApiError(400, "invalid_url", f"{url!r}: percent-encode what is not plain ASCII")
        if not any(fnmatch(host.lower(), allowed.lower()) for allowed in self._hosts):
            raise _not_allowed(host, "allowed_hosts", self._hosts)
        return parts


def _body(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What has come at each time, so that one who sends a byte now and then is seen to be slow.

    Raises:
        IncompleteRead: it ended before it should.
    """
    left = response.length
    while left != 0 and (chunk := response.read1(_CHUNK_BYTES)):
        left = None if left is None else left - len(chunk)
        yield chunk
    if left:
        raise http.client.IncompleteRead(b"", left)


def public_address(host: str) -> str:
    """An address of the host, all of whose addresses are public.

    Raises:
        ApiError: it has none, or one that is private, local or reserved.
    """
    try:
        found = socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ApiError(422, "fetch_failed", f"{host}: no such host") from error
    addresses = [str(entry[4][0]) for entry in found]
    for address in addresses:
        if not _is_public(address):
            raise ApiError(403, "address_not_allowed", f"{host}: is not a public address")
    return addresses[0]


def _is_public(address: str) -> bool:
    parsed = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return _is_public(str(inner))
        if parsed.is_site_local or parsed.is_reserved:  # `is_global` says yes to both
            return False
    return parsed.is_global and not parsed.is_multicast


def _not_allowed(place: str, setting: str, allowed: Sequence[str]) -> ApiError:
    known = ", ".join(allowed) if allowed else "none"
    return ApiError(
        403,
        "address_not_allowed",
        f"{place}: not among the places to fetch from ({setting} of this server: {known})",
    )


class _PinnedConnection(http.client.HTTPSConnection):
    """TLS to one address, with the certificate of the name."""

    def __init__(self, host: str, address: str, timeout_s: float) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(host, 443, timeout=timeout_s, context=self._tls)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address, 443), self.timeout)
        self.sock = self._tls.wrap_socket(plain, server_hostname=self.host)

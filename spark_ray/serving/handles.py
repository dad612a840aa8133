"""How one deployment asks another: by gRPC, which takes Serve less time than actor tasks."""

from typing import Any

MESSAGES_ENVIRONMENT = {"RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str((1 << 31) - 1)}
"""For both ends: clips are larger than the 4 MiB that Serve allows. It is gRPC's own bound."""


def by_grpc(handle: Any) -> Any:
    """A handle whose calls carry arguments and answers, which then never lie in the object store.

    Serve has this for all handles of a cluster (`RAY_SERVE_USE_GRPC_BY_DEFAULT`), where it must be
    set as Ray starts; the option behind it is private.
    """
    return handle.options(_by_reference=False)

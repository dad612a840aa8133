"""Retries without doubles: a request with a key that was seen before is not carried out again."""

import time
from collections.abc import Callable

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError

from spark_ray.serving.database import Answered, Database
from spark_ray.serving.errors import ApiError

_LIFETIME_S = 86_400.0


def once(
    database: Database,
    owner: str,
    key: str | None,
    request_sha256: str,
    create: Callable[[], str],
) -> str:
    """The id that `create` makes, or made when this owner first sent this key.

    Raises:
        ApiError: the key came with another request, or the first one is still being carried out.
        Whatever `create` raises; the key is free again then.
    """
    if key is None:
        return create()
    now = time.time()
    try:
        with database.session() as session:
            session.execute(delete(Answered).where(Answered.created < now - _LIFETIME_S))
            session.add(
                Answered(
                    owner=owner, key=key, request_sha256=request_sha256, answer=None, created=now
                )
            )
    except IntegrityError:
        return _earlier(database, owner, key, request_sha256)
    try:
        created = create()
    except BaseException:
        with database.session() as session:
            session.execute(delete(Answered).where(Answered.owner == owner, Answered.key == key))
        raise
    with database.session() as session:
        stored = session.get(Answered, (owner, key))
        assert stored is not None
        stored.answer = {"id": created}
    return created


def _earlier(database: Database, owner: str, key: str, request_sha256: str) -> str:
    with database.session() as session:
        stored = session.get(Answered, (owner, key))
    if stored is not None and stored.request_sha256 != request_sha256:
        raise ApiError(
            422, "idempotency_key_reused", "this Idempotency-Key came with another request before"
        )
    if stored is None or stored.answer is None:
        raise ApiError(
            409,
            "request_in_progress",
            "the first request with this Idempotency-Key is not done yet",
            retry_after_s=1.0,
        )
    return str(stored.answer["id"])

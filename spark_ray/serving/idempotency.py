"""Retries without doubles: a request with a key that was seen before is not carried out again."""

import time
from collections.abc import Callable

from sqlalchemy import delete
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from spark_ray.serving.database import Answered, Database
from spark_ray.serving.errors import ApiError

_LIFETIME_S = 86_400.0


def once(
    database: Database,
    owner: str,
    key: str | None,
    request_sha256: str,
    create: Callable[[Session], str],
) -> str:
    """The id that `create` makes, or made when this owner first sent this key.

    What it writes in the session and the key are stored together or not at all: a process that dies
    in between leaves no key for which nothing was made. A second request waits for the first.

    Raises:
        ApiError: the key came with another request.
        Whatever `create` raises; the key is free again then.
    """
    with database.session() as session:
        if key is None:
            return create(session)
        now = time.time()
        session.execute(delete(Answered).where(Answered.created < now - _LIFETIME_S))
        answered = Answered(
            owner=owner, key=key, request_sha256=request_sha256, answer=None, created=now
        )
        try:
            with session.begin_nested():
                session.add(answered)
        except IntegrityError:
            return _earlier(session.get_one(Answered, (owner, key)), request_sha256)
        created = create(session)
        answered.answer = {"id": created}
        return created


def _earlier(stored: Answered, request_sha256: str) -> str:
    if stored.request_sha256 != request_sha256:
        raise ApiError(
            422, "idempotency_key_reused", "this Idempotency-Key came with another request before"
        )
    assert stored.answer is not None, "it is stored together with the key"
    return str(stored.answer["id"])

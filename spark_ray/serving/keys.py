"""API keys: made, listed, revoked, and looked up by the hash of their secret.

A secret is 256 bits from the system's random source, so a plain SHA-256 of it can't be searched
for; a slow password hash would only cost every request some milliseconds.
"""

import hashlib
import secrets
import time
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import select

from spark_ray.core.errors import ConfigError, unknown_choice
from spark_ray.serving.database import ApiKey, Database, audit_entry

Scope = Literal["infer", "jobs", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

PREFIX = "sk-spark-"
_REMEMBERED_S = 5.0
_MOST_REMEMBERED = 10_000


@dataclass(frozen=True)
class Caller:
    """Who asks, and what they may."""

    id: str
    name: str
    scopes: frozenset[str]
    requests_per_minute: int
    max_concurrent: int

    def may(self, scope: Scope) -> bool:
        return scope in self.scopes or "admin" in self.scopes


class KeyStore:
    """The keys of a database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._remembered: dict[str, tuple[float, Caller | None]] = {}

    def create(
        self,
        name: str,
        scopes: list[str],
        *,
        requests_per_minute: int,
        max_concurrent: int,
        lifetime_s: float | None,
    ) -> tuple[ApiKey, str]:
        """A new key and its secret, which can't be shown again.

        Raises:
            ConfigError: a scope is unknown, or there is none.
        """
        for scope in scopes:
            if scope not in SCOPES:
                raise unknown_choice("scopes", scope, SCOPES)
        if not scopes:
            raise ConfigError(f"scopes: a key needs at least one of: {', '.join(SCOPES)}")
        secret = PREFIX + secrets.token_urlsafe(32)
        now = time.time()
        key = ApiKey(
            id=f"key-{secrets.token_hex(8)}",
            name=name,
            secret_sha256=_hash(secret),
            scopes=sorted(set(scopes)),
            requests_per_minute=requests_per_minute,
            max_concurrent=max_concurrent,
            created=now,
            expires=None if lifetime_s is None else now + lifetime_s,
            revoked=None,
        )
        with self._database.session() as session:
            made = audit_entry("key.create", key=None, subject=key.id, name=name, scopes=key.scopes)
            session.add_all([key, made])
        return key, secret

    def list(self) -> list[ApiKey]:
        with self._database.session() as session:
            return list(session.scalars(select(ApiKey).order_by(ApiKey.created)))

    def revoke(self, key_id: str) -> None:
        """
        Raises:
            ConfigError: there is no such key.
        """
        with self._database.session() as session:
            key = session.get(ApiKey, key_id)
            if key is None:
                known = session.scalars(select(ApiKey.id).where(ApiKey.revoked.is_(None)))
                raise unknown_choice("key", key_id, known)
            key.revoked = key.revoked or time.time()
            session.add(audit_entry("key.revoke", key=None, subject=key_id))

    def caller(self, secret: str) -> Caller | None:
        """Who has this secret; None for nobody, or a key that was revoked or is out of date."""
        now = time.time()
        hashed = _hash(secret)
        caller = self._look_up(hashed, now)
        if len(self._remembered) >= _MOST_REMEMBERED:
            self._remembered.clear()
        self._remembered[hashed] = (now + _REMEMBERED_S, caller)
        return caller

    def remembered(self, secret: str) -> tuple[Caller | None] | None:
        """What `caller` answered within the last 5 s; None where it has to be asked.

        So a revoked key works that much longer at most, and most requests ask no database.
        """
        until, caller = self._remembered.get(_hash(secret), (0.0, None))
        return (caller,) if until > time.time() else None

    def _look_up(self, hashed: str, now: float) -> Caller | None:
        with self._database.session() as session:
            key = session.scalar(select(ApiKey).where(ApiKey.secret_sha256 == hashed))
        if key is None or key.revoked or (key.expires is not None and key.expires <= now):
            return None
        return Caller(
            id=key.id,
            name=key.name,
            scopes=frozenset(key.scopes),
            requests_per_minute=key.requests_per_minute,
            max_concurrent=key.max_concurrent,
        )


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()

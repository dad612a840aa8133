"""What the server remembers: keys, assets, jobs, answered requests and who did what.

SQLite on a laptop, PostgreSQL where several nodes serve, through the same SQLAlchemy tables.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, Engine, Index, String, create_engine, event, or_, select
from sqlalchemy.exc import InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from spark_ray.core.errors import StorageError

SQLITE = "sqlite:///"
_BUSY_TIMEOUT_S = 15
# Besides what cannot be reached: a PostgreSQL that is now another's standby, a connection that it
# closed, and a pool whose connections all wait for something.
_OUTAGES = (OperationalError, InternalError, InterfaceError, PoolTimeout)


class Table(DeclarativeBase):
    """Base of the tables. Times are seconds since 1970."""

    type_annotation_map = {dict[str, Any]: JSON, list[str]: JSON}  # noqa: RUF012


class ApiKey(Table):
    """A key, known by the hash of its secret; the secret itself is shown once and never stored."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str]
    secret_sha256: Mapped[str] = mapped_column(String(64), unique=True)
    scopes: Mapped[list[str]]
    requests_per_minute: Mapped[int]
    max_concurrent: Mapped[int]
    created: Mapped[float]
    expires: Mapped[float | None]
    revoked: Mapped[float | None]


class Asset(Table):
    """An uploaded or fetched file. `owner` is the key that may use it."""

    __tablename__ = "assets"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(32), index=True)
    kind: Mapped[str]
    media_type: Mapped[str]
    size_bytes: Mapped[int]
    received_bytes: Mapped[int]
    sha256: Mapped[str | None]
    created: Mapped[float]
    expires: Mapped[float] = mapped_column(index=True)
    complete: Mapped[bool]


class AssetPart(Table):
    """A piece of an upload that is not complete. A file that no line names was not received."""

    __tablename__ = "asset_parts"
    asset_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    offset: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Job(Table):
    """A build of a dataset that somebody asked for."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(String(32), index=True)
    state: Mapped[str] = mapped_column(index=True)
    request: Mapped[dict[str, Any]]
    submission: Mapped[str | None]
    attempts: Mapped[int] = mapped_column(default=0)
    created: Mapped[float]
    finished: Mapped[float | None]
    result: Mapped[dict[str, Any] | None]
    error: Mapped[str | None]


class Answered(Table):
    """A request that came with an idempotency key, and what it was answered."""

    __tablename__ = "answered"
    owner: Mapped[str] = mapped_column(String(32), primary_key=True)
    key: Mapped[str] = mapped_column(String(128), primary_key=True)
    request_sha256: Mapped[str]
    answer: Mapped[dict[str, Any] | None]
    created: Mapped[float] = mapped_column(index=True)


class AuditEntry(Table):
    """Who did what, for whoever has to know later."""

    __tablename__ = "audit"
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    time: Mapped[float]
    key: Mapped[str | None]
    action: Mapped[str]
    subject: Mapped[str | None]
    detail: Mapped[dict[str, Any] | None]
    __table_args__ = (Index("audit_by_time", "time"),)


class Database:
    """A pool of connections; sessions commit when their block ends without an error."""

    def __init__(self, url: str) -> None:
        self._engine = _engine(url)
        with _storage_errors(self._engine):
            Table.metadata.create_all(self._engine)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """
        Raises:
            StorageError: the database can't be read or written.
        """
        with (
            _storage_errors(self._engine),
            Session(self._engine, expire_on_commit=False) as session,
            session.begin(),
        ):
            yield session

    def audit(
        self, action: str, *, key: str | None, subject: str | None = None, **detail: Any
    ) -> None:
        with self.session() as session:
            session.add(audit_entry(action, key=key, subject=subject, **detail))

    def audited(self, key: str | None, last: int) -> list[AuditEntry]:
        """The newest entries in order of time, of all or of what concerns one key."""
        newest = select(AuditEntry).order_by(AuditEntry.number.desc()).limit(last)
        if key is not None:
            newest = newest.where(or_(AuditEntry.key == key, AuditEntry.subject == key))
        with self.session() as session:
            return list(session.scalars(newest))[::-1]


def audit_entry(
    action: str, *, key: str | None, subject: str | None = None, **detail: Any
) -> AuditEntry:
    return AuditEntry(
        time=time.time(), key=key, action=action, subject=subject, detail=detail or None
    )


@contextmanager
def _storage_errors(engine: Engine) -> Iterator[None]:
    """What a database that is locked away, read-only or gone comes to, as one sentence."""
    try:
        yield
    except _OUTAGES as error:
        where = engine.url.render_as_string(hide_password=True)
        reason = getattr(error, "orig", error)
        raise StorageError(f"{where}: the database can't be used: {reason}") from error


def _engine(url: str) -> Engine:
    if not url.startswith(SQLITE):
        return create_engine(url, pool_pre_ping=True)
    file = Path(url.removeprefix(SQLITE))
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{file.parent}: this folder can't be made: {error.strerror}") from error
    engine = create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        # Readers and the writer don't wait for each other, and a commit survives a crash of ours.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")

    return engine

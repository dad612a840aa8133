"""`spark-ray keys …`: API keys, made and revoked by whoever can reach the server's database."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import Field
from rich.console import Console
from rich.table import Table

from spark_ray.core.config import JobConfig
from spark_ray.core.errors import ConfigError
from spark_ray.serving.database import SQLITE, ApiKey, Database
from spark_ray.serving.keys import KeyStore, Scope
from spark_ray.serving.settings import ServeSettings

_DAY_S = 86_400.0


class _KeyPlace(JobConfig):
    """Where the server keeps its keys."""

    state: Annotated[str, Field(min_length=1)] = Field(
        "serving", description="the server's `state` folder"
    )
    database_url: str | None = Field(None, description="the server's `database_url`, if it has one")

    @property
    def database(self) -> str:
        place = ServeSettings.from_values(state=self.state, database_url=self.database_url)
        return place.located().database

    def known_database(self) -> Database:
        """
        Raises:
            ConfigError: nobody has made a key there.
        """
        file = Path(self.database.removeprefix(SQLITE))
        if self.database_url is None and not file.exists():
            raise ConfigError(
                f"state: {file} is no server's database; give the `state` folder of its file in "
                "serve_configs/, from the folder in which `ray start` ran"
            )
        return Database(self.database)


class CreateKey(_KeyPlace):
    """Make an API key. The secret is printed once and not stored."""

    name: Annotated[str, Field(min_length=1, max_length=100)] = Field(description="whose key it is")
    scopes: list[Scope] = Field(
        ["infer"],
        min_length=1,
        description="infer (ask models), jobs (build datasets), admin (all, and metrics)",
    )
    requests_per_minute: int = Field(600, ge=1)
    max_concurrent: int = Field(32, ge=1, description="requests at a time")
    days: float | None = Field(None, gt=0, description="until it ends; unset means never")


class ListKeys(_KeyPlace):
    """List the API keys, without their secrets."""


class RevokeKey(_KeyPlace):
    """Revoke an API key; it stops working within seconds."""

    key: Annotated[str, Field(min_length=1)] = Field(description="id of the key, key-…")


class ShowAudit(_KeyPlace):
    """Print who did what, as JSON lines: keys made and revoked, jobs, assets deleted."""

    key: str | None = Field(None, description="only what this key did, or was done to it")
    last: int = Field(1000, ge=1, description="so many of the newest entries")


def create_key(arguments: Sequence[str]) -> int:
    config = CreateKey.from_command_line(arguments, "spark-ray keys create")
    key, secret = KeyStore(Database(config.database)).create(
        config.name,
        list(config.scopes),
        requests_per_minute=config.requests_per_minute,
        max_concurrent=config.max_concurrent,
        lifetime_s=None if config.days is None else config.days * _DAY_S,
    )
    console = Console(stderr=True)
    console.print(f"{key.id} for {key.name!r}, scopes: {', '.join(key.scopes)}")
    if config.database_url is None:
        console.print(f"for the server whose database is {config.database.removeprefix(SQLITE)}")
    console.print("its secret, which is not shown again:")
    print(secret)
    return 0


def list_keys(arguments: Sequence[str]) -> int:
    config = ListKeys.from_command_line(arguments, "spark-ray keys list")
    table = Table()
    table.add_column("id", no_wrap=True)
    for column in ("name", "scopes", "requests/min", "at a time", "made", "state"):
        table.add_column(column, overflow="fold")
    for key in KeyStore(config.known_database()).list():
        table.add_row(
            key.id,
            key.name,
            ", ".join(key.scopes),
            str(key.requests_per_minute),
            str(key.max_concurrent),
            _date(key.created),
            _state(key),
        )
    Console().print(table)
    return 0


def revoke_key(arguments: Sequence[str]) -> int:
    config = RevokeKey.from_command_line(arguments, "spark-ray keys revoke")
    KeyStore(config.known_database()).revoke(config.key)
    print(f"revoked {config.key}")
    return 0


def show_audit(arguments: Sequence[str]) -> int:
    config = ShowAudit.from_command_line(arguments, "spark-ray keys audit")
    for entry in config.known_database().audited(config.key, config.last):
        said = {
            "time": datetime.fromtimestamp(entry.time, UTC).isoformat(timespec="milliseconds"),
            "action": entry.action,
            "key": entry.key,
            "subject": entry.subject,
            **(entry.detail or {}),
        }
        print(json.dumps(said))
    return 0


def _state(key: ApiKey) -> str:
    if key.revoked:
        return f"revoked {_date(key.revoked)}"
    return f"until {_date(key.expires)}" if key.expires else "valid"


def _date(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")

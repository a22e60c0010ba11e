"""Brings a database to the schema of this release."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, inspect, text
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DBAPIError

from updraft import errors
from updraft.store.database import unusable

HEAD = "0006"
"""The newest revision in ``migrations/versions``; a test holds the two together."""

KNOWN = ("0001", "0002", "0003", "0004", "0005", "0006")
"""Every revision that this release can start from."""


def upgrade(engine: Engine) -> None:
    """Apply the migrations that are missing.

    Raises ``errors.WrongVersion`` when a newer release has written the database, and
    ``errors.Unavailable`` when it cannot be used.
    """
    try:
        _upgrade(engine)
    except DBAPIError as error:
        raise unusable(engine, error) from error


def _upgrade(engine: Engine) -> None:
    with engine.connect() as connection:
        at = _revision(connection)
    if at == HEAD:
        return  # the usual start: Alembic need not even be imported
    if at is not None and at not in KNOWN:
        raise errors.WrongVersion(
            f"the database was written by a newer Updraft (schema {at}); install that release"
        )
    from alembic import command  # noqa: PLC0415 - only when there is something to do
    from alembic.config import Config  # noqa: PLC0415

    config = Config()
    scripts = str(Path(__file__).parent / "migrations")
    config.set_main_option("script_location", scripts.replace("%", "%%"))
    with engine.connect() as connection, _foreign_keys_off(connection), connection.begin():
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
        if isinstance(connection.dialect, sqlite.dialect):
            broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            if broken:
                raise errors.Unavailable(f"the database has rows that refer to none: {broken[:3]}")


@contextmanager
def _foreign_keys_off(connection: Connection) -> Iterator[None]:
    """Let SQLite replace a table, which is how it alters one, without emptying those below it.

    Outside a transaction, and so on the driver's connection: inside, the pragma does nothing.
    """
    if not isinstance(connection.dialect, sqlite.dialect):
        yield
        return
    driver: Any = connection.connection.driver_connection
    driver.execute("PRAGMA foreign_keys=OFF")
    try:
        yield
    finally:
        driver.execute("PRAGMA foreign_keys=ON")


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()

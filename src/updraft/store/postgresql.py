"""PostgreSQL as the store has it: connections that notice a dead peer, and errors of one line."""

from __future__ import annotations

from typing import Any

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.pool import NullPool

from updraft import errors

LEAST_VERSION = 140000  # client_connection_check_interval came with 14
_CONNECT_SECONDS = 5

# A peer that is gone without a word is noticed within about five seconds, on both sides: the
# database gives a dead server's lock to the one that stands by, and a server leaves a dead
# database's socket.
_OURS = {
    "connect_timeout": _CONNECT_SECONDS,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5000,
    "application_name": "updraft",
}
_THEIRS = {
    "tcp_keepalives_idle": "2",
    "tcp_keepalives_interval": "1",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "5s",
    "client_connection_check_interval": "2s",
    "idle_in_transaction_session_timeout": "60s",
    "statement_timeout": "60s",
    "lock_timeout": "10s",
    "synchronous_commit": "on",  # an acknowledged write survives a power cut
}

# https://www.postgresql.org/docs/15/errcodes-appendix.html
_DISK_FULL = "53100"
_STARTING_OR_STOPPING = ("57P01", "57P02", "57P03", "53300")
_TIMED_OUT = ("25P03", "57P05")
"""The database ended a session that was silent for too long."""
_PASSING = ("40001", "40P01", "55P03", "57014")
"""The transaction did not happen, and may when it is tried again."""


def is_postgresql(url: str | URL) -> bool:
    """Whether ``url`` names a database of PostgreSQL's."""
    return make_url(url).get_backend_name() in ("postgresql", "postgres")


def make_engine(url: str | URL, connections: int) -> Engine:
    """Return an engine with a pool of ``connections``; 0: without a pool."""
    # `postgres` as a scheme is libpq's, and not SQLAlchemy's.
    made = make_url(url).set(drivername="postgresql+psycopg")
    options = " ".join(f"-c {name}={value}" for name, value in _THEIRS.items())
    given = made.query.get("options", "")
    given = given if isinstance(given, str) else " ".join(given)
    arguments: dict[str, Any] = {
        name: value for name, value in _OURS.items() if name not in made.query
    }
    arguments["options"] = f"{options} {given}".strip()  # the later of two wins
    made = made.difference_update_query(["options"])
    if connections:
        return create_engine(
            made, connect_args=arguments, pool_size=connections, max_overflow=2, pool_timeout=30
        )
    return create_engine(made, connect_args=arguments, poolclass=NullPool)


def sqlstate(error: BaseException) -> str:
    """Return the code that the database gave; empty when there is none."""
    original = error.orig if isinstance(error, DBAPIError) else error
    return getattr(original, "sqlstate", None) or ""


def is_gone(error: BaseException) -> bool:
    """Whether the database, or the connection to it, went away: nothing is said about the write."""
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error)
    if error.connection_invalidated or state.startswith("08"):
        return True
    if state in _STARTING_OR_STOPPING + _TIMED_OUT:
        return True
    # The driver's own words, about a connection that could not be made, come without a code.
    return not state and isinstance(error, OperationalError | InterfaceError)


def is_passing(error: BaseException) -> bool:
    """Whether the transaction was rolled back for a reason that passes."""
    return isinstance(error, DBAPIError) and sqlstate(error) in _PASSING


def translated(error: Exception) -> Exception:
    """Return the error of ours that says the same; ``error`` where there is none."""
    if not isinstance(error, DBAPIError):
        return error
    state = sqlstate(error)
    if state == _DISK_FULL:
        return errors.DiskFull("the disk of the database is full; free some space")
    if is_gone(error) or is_passing(error):
        return errors.NotReady(f"the database does not answer: {one_line(error)}; try again")
    if state.startswith("22") or "NUL (0x00)" in str(error.orig):
        return errors.BadRequest(f"the database cannot store that: {one_line(error)}")
    return error


def unusable(engine: Engine, error: DBAPIError) -> errors.Unavailable:
    """Return the error that says why a server cannot start with this database."""
    if sqlstate(error) == _DISK_FULL:
        return errors.DiskFull("the disk of the database is full; free some space")
    where = f"{engine.url.database} at {engine.url.host or 'this machine'}"
    return errors.Unavailable(
        f"cannot use the database {where}: {one_line(error)}; check server.database"
    )


def one_line(error: DBAPIError) -> str:
    """Return the first line of what the database or its driver said; no statement, no value."""
    lines = str(error.orig).strip().splitlines()
    return " ".join(lines[0].split()) if lines else type(error.orig).__name__

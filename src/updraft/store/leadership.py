"""Who may write to a shared database: one server at a time, fenced by an epoch.

A session's advisory lock says who is alive: PostgreSQL drops it with the connection, and then a
server that stands by takes it.  The *epoch*, in the one row of ``leadership``, says who may write:
each new leader raises it, and every group of writes is committed only together with a change of
that row under its own epoch.  So a server that was taken for dead and is not can write nothing,
however late it hears of it.

The same change counts the groups.  After a connection that was lost in a commit, the count tells
whether the group is in the database: the row's lock makes whoever asks wait until that is decided.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from sqlalchemy import URL, Connection, Engine, func, select, text, update
from sqlalchemy.exc import DBAPIError

from updraft.store import postgresql
from updraft.store.tables import leadership

log = logging.getLogger("updraft.leadership")

_TRY_SECONDS = 0.25
_LOOK_SECONDS = 1.0
_LEADER_FIRST_SECONDS = 2.0
"""After a restart of the database its leader of before has this long to be it again."""

# A lock of this schema's, so that two installations may share a database.
_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended('updraft ' || current_schema(), 0))")
_EPOCH = select(leadership.c.epoch)
_MARK = (
    update(leadership)
    .values(groups=leadership.c.groups + 1)
    .returning(leadership.c.groups)
)  # fmt: skip
_BEGIN = update(leadership).values(epoch=leadership.c.epoch + 1, groups=0)


class Deposed(Exception):
    """Another server leads: nothing was written, and nothing will be."""


class Leadership:
    """One server's right to write to the database at ``url``.

    ``deposed`` is called, from any thread, once another server leads.
    """

    def __init__(self, url: str | URL, deposed: Callable[[], None]) -> None:
        self._engine: Engine = postgresql.make_engine(url, 0)
        self._connection: Connection | None = None
        self._deposed = deposed
        self._wait_until = 0.0
        self._connected_before = False
        self.epoch = 0

    # -- taking and keeping the lock

    async def take(self, waiting: Callable[[], None]) -> None:
        """Wait for the lock; ``waiting`` is called once, if another server has it.

        Raises ``errors.Unavailable`` when the database cannot be used to begin with.
        """
        told = False
        while not await asyncio.to_thread(self._try):
            if not told:
                waiting()
                told = True
            await asyncio.sleep(_TRY_SECONDS)

    def begin(self, engine: Engine) -> None:
        """Begin an epoch: from here on earlier leaders cannot write.  The schema must be there."""
        with engine.begin() as connection:
            self.epoch = connection.execute(_BEGIN.returning(leadership.c.epoch)).scalar_one()
        log.info("this server leads, in epoch %d", self.epoch)

    async def watch(self) -> None:
        """Look after the lock, for ever: take it again after a loss, unless another leads."""
        while True:
            await asyncio.sleep(_LOOK_SECONDS if self._connection is not None else _TRY_SECONDS)
            try:
                await asyncio.to_thread(self._look)
            except Deposed:
                self._deposed()
                return

    def _try(self) -> bool:
        """Try once; an outage of the database is waited for, but not at the very first."""
        if time.monotonic() < self._wait_until:
            return False
        try:
            if self._connection is None:
                self._connection = self._connect()
                if self._connected_before:
                    self._wait_until = time.monotonic() + _LEADER_FIRST_SECONDS
                    return False
                self._connected_before = True
            return bool(self._connection.execute(_LOCK).scalar_one())
        except DBAPIError as error:
            self.release()
            if not self._connected_before:
                raise postgresql.unusable(self._engine, error) from error
            return False

    def _look(self) -> None:
        try:
            if self._connection is None:
                connection = self._connect()
                # While it is an old session of ours that has the lock, nobody else does.
                if connection.execute(_LOCK).scalar_one():
                    log.warning("this server has the lock on the database again")
                    self._connection = connection
                    self._check(connection)
                else:
                    try:
                        self._check(connection)
                    finally:
                        connection.close()
            else:
                self._check(self._connection)
        except DBAPIError as error:
            if self._connection is not None:
                log.error(  # noqa: TRY400 - no trace needed
                    "the lock on the database is lost: %s", postgresql.one_line(error)
                )
            self.release()

    def _check(self, connection: Connection) -> None:
        if connection.execute(_EPOCH).scalar_one() != self.epoch:
            raise Deposed

    def _connect(self) -> Connection:
        return self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def release(self) -> None:
        """Give the lock up, with its connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
            connection.close()

    # -- in the committer's transactions

    def mark(self, connection: Connection) -> int:
        """Count this group, in its own transaction; return its number.  Raises ``Deposed``."""
        statement = _MARK.where(leadership.c.epoch == self.epoch)
        number: int | None = connection.execute(statement).scalar_one_or_none()
        if number is None:
            raise Deposed
        return number

    def is_committed(self, connection: Connection, number: int) -> bool:
        """Whether the group of this number, the newest, was committed.  Raises ``Deposed``."""
        statement = select(leadership.c.epoch, leadership.c.groups).with_for_update()
        epoch, groups = connection.execute(statement).one()
        if epoch != self.epoch:
            raise Deposed
        return bool(groups >= number)

    def lost(self) -> None:
        """The committer found that another server leads."""
        self._deposed()


def epoch_of(connection: Connection) -> int:
    """Return the epoch that the database is in."""
    return connection.execute(select(func.max(leadership.c.epoch))).scalar() or 0

"""Who may write to a shared database: one server at a time, fenced by an epoch.

A session's advisory lock says who is alive: PostgreSQL drops it with the session, and then a
server that stands by takes it.  The leader says something in that session every second; one of
which nothing is heard for ``SILENT_SECONDS``, because it is stopped or its machine hangs, has its
session ended by the database.  The *epoch*, in the one row of ``leadership``, says who may write:
each new leader raises it, and every group of writes is committed only together with a change of
that row under its own epoch.  So a server that was taken for dead and is not can write nothing,
however late it hears of it.

The same change counts the groups.  After a connection that was lost in a commit, the count tells
whether the group is in the database: the row's lock makes whoever asks wait until that is decided.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable

from sqlalchemy import URL, Connection, Engine, func, select, text, update
from sqlalchemy.exc import DBAPIError

from updraft import errors
from updraft.store import postgresql
from updraft.store.tables import leadership

log = logging.getLogger("updraft.leadership")

_TRY_SECONDS = 0.25
_LOOK_SECONDS = 1.0
_LEADER_FIRST_SECONDS = 2.0
"""After a restart of the database its leader of before has this long to be it again."""
SILENT_SECONDS = 6
"""The database takes the lock from a leader of which it has heard nothing for so long."""

# A lock of this schema's, so that two installations may share a database.
_LOCK = text("SELECT pg_try_advisory_lock(hashtextextended('updraft ' || current_schema(), 0))")
_LEADER = text(
    "SELECT host(client_addr) FROM pg_locks JOIN pg_stat_activity USING (pid) WHERE granted "
    "AND locktype = 'advisory' AND objsubid = 1 "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) "
    "AND (CAST(classid AS bigint) << 32) | CAST(objid AS bigint) = "
    "hashtextextended('updraft ' || current_schema(), 0)"
)
_SILENCE = text(f"SET idle_session_timeout = '{SILENT_SECONDS}s'")
# Who has the lock ends what an earlier leader has under way: one that was stopped in a transaction
# would keep the row, and with it everybody, waiting.
_END_WRITERS = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_locks WHERE relation = "
    "to_regclass('leadership') AND mode IN ('RowExclusiveLock', 'RowShareLock') AND database = "
    "(SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()"
)
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
        self._using = threading.Lock()
        """Held by the thread that uses the connection."""
        self._released = threading.Event()
        self._deposed = deposed
        self._heard = -math.inf
        """When the session that has the lock was last known to be there."""
        self._wait_until = 0.0
        self._connected_before = False
        self.epoch = 0

    # -- taking and keeping the lock

    async def take(self, waiting: Callable[[str], None]) -> None:
        """Wait for the lock; ``waiting`` is called once, if another server has it.

        It gets the address from which that one reaches the database; empty where it is not known.

        From then on a thread looks after it, whatever else this server does.  Raises
        ``errors.Unavailable`` when the database cannot be used to begin with.
        """
        told = False
        while not await asyncio.to_thread(self._try):
            if not told:
                waiting(await asyncio.to_thread(self._leader))
                told = True
            await asyncio.sleep(_TRY_SECONDS)
        threading.Thread(target=self._keep, name="leadership", daemon=True).start()

    def begin(self) -> None:
        """Begin an epoch: from here on earlier leaders cannot write.  The schema must be there.

        Raises ``errors.Unavailable`` where the lock was lost meanwhile: another may have it.
        """
        try:
            with self._using:
                if self._connection is None:
                    raise _lock_lost()
                self._connection.execute(_END_WRITERS)
                began = self._connection.execute(_BEGIN.returning(leadership.c.epoch))
                self.epoch = began.scalar_one()
        except DBAPIError as error:
            raise _lock_lost() from error
        log.info("this server leads, in epoch %d", self.epoch)

    def is_sure(self) -> bool:
        """Whether nobody else can lead yet: the database has heard us a moment ago.

        Who is not may still be the leader, and is not to promise what only the leader can keep.
        """
        return time.monotonic() - self._heard < SILENT_SECONDS

    def _try(self) -> bool:
        """Try once; an outage of the database is waited for, but not at the very first."""
        if time.monotonic() < self._wait_until:
            return False
        with self._using:
            try:
                if self._connection is None:
                    self._connection = self._connect()
                    if self._connected_before:
                        self._wait_until = time.monotonic() + _LEADER_FIRST_SECONDS
                        return False
                    self._connected_before = True
                asked = time.monotonic()
                taken = bool(self._connection.execute(_LOCK).scalar_one())
                if taken:
                    self._heard = asked
                    self._connection.execute(_END_WRITERS)
            except DBAPIError as error:
                self._disconnect()
                if not self._connected_before:
                    raise postgresql.unusable(self._engine, error) from error
                return False
            return taken

    def _leader(self) -> str:
        """Return the address of whoever has the lock; empty where it is not known."""
        with self._using:
            try:
                found = self._connection and self._connection.execute(_LEADER).scalar()
            except DBAPIError:
                self._disconnect()
                return ""
        return str(found or "")

    def _keep(self) -> None:
        """Look after the lock until it is given up: take it again, unless another leads."""
        pause = _LOOK_SECONDS
        while not self._released.wait(pause):
            had = self._connection is not None
            try:
                with self._using:
                    if not self._released.is_set():
                        self._look()
            except Deposed:
                self._deposed()
                return
            if self._connection is not None:
                pause = _LOOK_SECONDS
            else:
                pause = 0 if had else _TRY_SECONDS

    def _look(self) -> None:
        try:
            if self._connection is None:
                connection = self._connect()
                # While it is an old session of ours that has the lock, nobody else does.
                asked = time.monotonic()
                if connection.execute(_LOCK).scalar_one():
                    log.warning("this server has the lock on the database again")
                    self._connection = connection
                    self._check(connection)
                    self._heard = asked
                else:
                    try:
                        self._check(connection)
                    finally:
                        connection.close()
            else:
                asked = time.monotonic()
                self._check(self._connection)
                self._heard = asked
        except DBAPIError as error:
            if self._connection is not None:
                log.error(  # noqa: TRY400 - no trace needed
                    "the lock on the database is lost: %s", postgresql.one_line(error)
                )
            self._disconnect()

    def _check(self, connection: Connection) -> None:
        if not self.epoch:
            connection.execute(select(1))  # there need be no table yet
        elif connection.execute(_EPOCH).scalar_one() != self.epoch:
            raise Deposed

    def _connect(self) -> Connection:
        connection = self._engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        connection.execute(_SILENCE)
        return connection

    def release(self) -> None:
        """Give the lock up, with its connection."""
        self._released.set()
        with self._using:
            self._disconnect()

    def _disconnect(self) -> None:
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


def _lock_lost() -> errors.Unavailable:
    return errors.Unavailable("the lock on the database was lost; start this server again")


def epoch_of(connection: Connection) -> int:
    """Return the epoch that the database is in."""
    return connection.execute(select(func.max(leadership.c.epoch))).scalar() or 0

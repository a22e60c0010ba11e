"""One database, one writer: every write goes through a committer that groups what is waiting.

A commit costs a flush of the disk, whether it carries one write or a hundred; so the writer thread
takes all that has been queued while the last flush ran, and commits it together.  Each write is a
function over a connection; if one fails, the others are run again without it.

Reads run on a small pool of threads with connections of their own and see the last commit.

PostgreSQL may go away and come back.  Reads and writes wait for it: as long as it takes, where they
are *patient*, else for ``AWAY_SECONDS``; then they are taken back.  A group whose commit was under
way is looked up (``store.leadership``): it is answered if it is there, else run again.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from updraft import errors
from updraft.store import postgresql
from updraft.store.leadership import Deposed, Leadership

log = logging.getLogger("updraft.database")

T = TypeVar("T")
Work = Callable[[Connection], T]

_MAX_GROUP = 256
_READERS = 2
_RETRY_SECONDS = 0.2
_TRIES = 3
AWAY_SECONDS = 10.0
"""How long a request waits for a database that does not answer."""
_CLOSING_SECONDS = 10.0
"""How long a database that is away is waited for when the server ends."""


@dataclass(slots=True)
class _Write:
    work: Work[Any]
    done: asyncio.Future[Any]
    trying: bool = False
    """It is in a transaction that may be committed, or may have been."""
    withdrawn: bool = False


@dataclass(slots=True)
class _Mark:
    """By which a group is found again."""

    leadership: Leadership
    number: int = 0


class Undecided(Exception):
    """Whether a write is stored is not known yet; ``outcome`` has its result once it is."""

    def __init__(self, outcome: asyncio.Future[Any]) -> None:
        super().__init__("it is not known yet whether this was stored")
        self.outcome = outcome


class Database:
    """The database at ``url`` (SQLAlchemy's form).  Use it from one event loop.

    ``leadership``: what a server of a shared database writes under.
    """

    def __init__(self, url: str | URL, leadership: Leadership | None = None) -> None:
        self.engine = _make_engine(url)
        self.leadership = leadership
        self._shared = postgresql.is_postgresql(url)
        self._loop = asyncio.get_running_loop()
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writer = threading.Thread(target=self._write_all, name="committer", daemon=True)
        self._connection: Connection | None = None
        self._closed = False
        self._gave_up = threading.Event()
        self._withdrawing = threading.Lock()
        self.commits = 0
        self.writes = 0
        self._writer.start()

    async def write(self, work: Work[T], *, patient: bool = False) -> T:
        """Run ``work`` in a transaction; return its result once that is on the disk.

        ``work`` may run more than once and must do nothing but statements.  ``patient``: for a
        shared database that is away there is no limit.  Raises what it raises, ``errors.DiskFull``
        when the disk is full, ``errors.NotReady`` when it is closed or away and nothing is stored,
        ``errors.Unavailable`` when that is not known.
        """
        try:
            return await self.decide(work, patient=patient)
        except Undecided as error:
            raise errors.Unavailable(
                "the database went away while this was being stored; look whether it was, before "
                "you ask again"
            ) from error

    async def decide(self, work: Work[T], *, patient: bool = False) -> T:
        """Write, as ``write`` does.  Raises ``Undecided`` where that knows no more."""
        if self._closed:
            raise errors.NotReady("the server is stopping; try again")
        write = _Write(work, self._loop.create_future())
        done: asyncio.Future[T] = write.done
        self._writes.put(write)
        if patient or not self._shared:
            return await done
        try:
            await asyncio.wait({done}, timeout=AWAY_SECONDS)
        except asyncio.CancelledError:
            done.cancel()
            raise
        if done.done():
            return done.result()
        with self._withdrawing:
            write.withdrawn = not write.trying
        if not write.withdrawn:
            raise Undecided(done)
        raise _away()

    async def read(self, work: Work[T], *, patient: bool = False) -> T:
        """Run ``work``, which only reads and may run more than once, and return its result.

        ``patient``: as for ``write``.  Raises ``errors.NotReady`` when the database is away.
        """

        def run() -> T:
            with self.engine.connect() as connection:
                return work(connection)

        if not self._shared:
            return await self._loop.run_in_executor(self._readers, run)
        abandoned = threading.Event()
        reading = self._loop.run_in_executor(
            self._readers, lambda: self._read_shared(work, abandoned)
        )
        try:
            await asyncio.wait({reading}, timeout=None if patient else AWAY_SECONDS)
            if reading.done():
                return reading.result()
        finally:
            abandoned.set()
            reading.cancel()
        raise _away()

    def _read_shared(self, work: Work[T], abandoned: threading.Event) -> T:
        while True:
            try:
                with self.engine.connect() as connection:
                    # Several statements of one read see one state.
                    connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                    return work(connection)
            except Exception as error:
                if self._closed or abandoned.is_set() or not postgresql.is_gone(error):
                    known = postgresql.translated(error)
                    if known is error:
                        raise
                    raise known from error
            self._gave_up.wait(_RETRY_SECONDS)

    async def close(self) -> None:
        """Finish the writes that are queued, and close."""
        self._closed = True
        self._writes.put(None)
        giving_up = asyncio.get_running_loop().call_later(_CLOSING_SECONDS, self._gave_up.set)
        await asyncio.to_thread(self._writer.join)
        giving_up.cancel()
        await asyncio.to_thread(self._readers.shutdown)
        self.engine.dispose()

    # -- the writer thread

    def _write_all(self) -> None:
        closing = False
        while not closing:
            group: list[_Write] = []
            write = self._writes.get()
            while True:
                if write is None:
                    closing = True
                    break
                group.append(write)
                if len(group) >= _MAX_GROUP or self._writes.empty():
                    break
                write = self._writes.get()
            if group:
                self._commit(group)
        self._disconnect()

    def _commit(self, group: list[_Write]) -> None:
        try:
            if self._shared:
                results = self._transact_shared(group)
            else:
                results = self._transact(group, None, [])
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            if len(group) > 1:
                self._nothing_stored(group)
                for write in group:
                    self._commit([write])
                return
            self._answer([(write, None, _translated(error)) for write in group])
            return
        self.commits += 1
        self.writes += len(group)
        self._answer([(w, result, None) for w, result in zip(group, results, strict=True)])

    def _connected(self) -> Connection:
        if self._connection is None:
            self._connection = self.engine.connect()
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _transact(self, group: list[_Write], mark: _Mark | None, results: list[Any]) -> list[Any]:
        """Run a group and commit it; ``results`` is filled before the commit, and returned."""
        connection = self._connected()
        with self._withdrawing:
            group[:] = [write for write in group if not write.withdrawn]
            for write in group:
                write.trying = True
        if not group:
            return results
        with connection.begin():
            if mark is not None:
                mark.number = mark.leadership.mark(connection)
            results += [write.work(connection) for write in group]
        return results

    def _nothing_stored(self, group: list[_Write]) -> None:
        """A transaction was rolled back: until the next one, who asked for it may take it back."""
        with self._withdrawing:
            for write in group:
                write.trying = False

    def _transact_shared(self, group: list[_Write]) -> list[Any]:
        """Commit a group once, however often the connection is lost meanwhile."""
        tries, away = 0, False
        while True:
            mark = None if self.leadership is None else _Mark(self.leadership)
            results: list[Any] = []
            try:
                return self._transact(group, mark, results)
            except Deposed as error:
                raise self._lost_leadership() from error
            except Exception as error:
                if postgresql.is_passing(error) and (tries := tries + 1) < _TRIES:
                    log.warning("a write did not get through; trying again")
                elif not postgresql.is_gone(error):
                    raise
                else:
                    if not away:
                        log.warning("the database went away, or is not there; waiting for it")
                    away = True
                    self._disconnect()
                    if self._was_committed(mark, len(results)):
                        return results
            self._nothing_stored(group)
            if self._gave_up.wait(_RETRY_SECONDS):
                raise errors.NotReady("the server is stopping without its database; try again")

    def _was_committed(self, mark: _Mark | None, ran: int) -> bool:
        """Whether a group is stored whose connection was lost; waits until that can be told."""
        if not ran:
            return False  # the commit was not asked for
        if mark is None:
            raise errors.Unavailable(
                "the database went away during a commit; whether it was done is not known"
            )
        while True:
            try:
                connection = self._connected()
                with connection.begin():
                    return mark.leadership.is_committed(connection, mark.number)
            except Deposed as error:
                raise self._lost_leadership() from error
            except Exception as error:
                if not (postgresql.is_gone(error) or postgresql.is_passing(error)):
                    raise
                self._disconnect()
            if self._gave_up.wait(_RETRY_SECONDS):
                raise errors.Unavailable(
                    "the server is stopping without its database; whether this was stored is not "
                    "known"
                )

    def _lost_leadership(self) -> errors.Unavailable:
        if self.leadership is not None:
            self.leadership.lost()
        return errors.NotReady("another server has taken over; try again")

    def _answer(self, answers: list[tuple[_Write, Any, Exception | None]]) -> None:
        def deliver() -> None:
            for write, result, error in answers:
                if write.done.cancelled():
                    continue
                if error is None:
                    write.done.set_result(result)
                else:
                    write.done.set_exception(error)

        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)


def _away() -> errors.NotReady:
    return errors.NotReady(f"the server's database is away; it was waited for {AWAY_SECONDS:g} s")


def unusable(engine: Engine, error: DBAPIError) -> errors.Unavailable:
    """Return the error that says why a database cannot be opened."""
    if postgresql.is_postgresql(engine.url):
        return postgresql.unusable(engine, error)
    known = _translated(error)
    if isinstance(known, errors.DiskFull):
        return known
    return errors.Unavailable(f"cannot use the database {engine.url.database}: {error.orig}")


# SQLite takes only ENOSPC for a full disk; a quota of the user's (EDQUOT) is a write that failed.
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")


def _translated(error: Exception) -> Exception:
    if not isinstance(error, DBAPIError):
        return error
    if not isinstance(error.orig, sqlite3.Error):
        return postgresql.translated(error)
    code = getattr(error.orig, "sqlite_errorname", "")
    if code in _FULL:
        return errors.DiskFull("the disk of the state folder is full; free some space")
    return error


def sqlite_url(path: str) -> URL:
    """Return the URL of a database file, whatever characters its path has."""
    return URL.create("sqlite", database=path)


def _make_engine(url: str | URL) -> Engine:
    if postgresql.is_postgresql(url):
        return postgresql.make_engine(url, _READERS + 2)
    engine = create_engine(
        url,
        poolclass=QueuePool,
        pool_size=_READERS + 2,
        connect_args={"check_same_thread": False, "timeout": 30},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver's own transaction handling begins too late for a consistent read-then-write.
        connection.isolation_level = None
        cursor = connection.cursor()
        for pragma in (
            "journal_mode=WAL",
            "synchronous=FULL",  # an acknowledged write survives a power cut
            "foreign_keys=ON",
            "temp_store=MEMORY",
            "cache_size=-4000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")

    return engine

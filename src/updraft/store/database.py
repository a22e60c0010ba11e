"""One database, one writer: every write goes through a committer that groups what is waiting.

A commit costs a flush of the disk, whether it carries one write or a hundred; so the writer thread
takes all that has been queued while the last flush ran, and commits it together.  Each write is a
function over a connection; if one fails, the others are run again without it.

Reads run on a small pool of threads with connections of their own and see the last commit.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import QueuePool

from updraft import errors

T = TypeVar("T")
Work = Callable[[Connection], T]

_MAX_GROUP = 256
_READERS = 2


@dataclass(slots=True)
class _Write:
    work: Work[Any]
    done: asyncio.Future[Any]


class Database:
    """The database at ``url`` (SQLAlchemy's form).  Use it from one event loop."""

    def __init__(self, url: str | URL) -> None:
        self.engine = _make_engine(url)
        self._loop = asyncio.get_running_loop()
        self._writes: queue.SimpleQueue[_Write | None] = queue.SimpleQueue()
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="read")
        self._writer = threading.Thread(target=self._write_all, name="committer", daemon=True)
        self._closed = False
        self.commits = 0
        self.writes = 0
        self._writer.start()

    async def write(self, work: Work[T]) -> T:
        """Run ``work`` in a transaction; return its result once that is on the disk.

        ``work`` may run more than once and must do nothing but statements.  Raises what it raises,
        ``errors.DiskFull`` when the disk is full, ``errors.Unavailable`` when it is closed.
        """
        if self._closed:
            raise errors.Unavailable("the server is stopping; try again")
        done: asyncio.Future[T] = self._loop.create_future()
        self._writes.put(_Write(work, done))
        return await done

    async def read(self, work: Work[T]) -> T:
        """Run ``work``, which only reads, and return its result."""

        def run() -> T:
            with self.engine.connect() as connection:
                return work(connection)

        return await self._loop.run_in_executor(self._readers, run)

    async def close(self) -> None:
        """Finish the writes that are queued, and close."""
        self._closed = True
        self._writes.put(None)
        await asyncio.to_thread(self._writer.join)
        self._readers.shutdown()
        self.engine.dispose()

    # -- the writer thread

    def _write_all(self) -> None:
        connection: Connection | None = None
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
            if not group:
                continue
            try:
                connection = connection or self.engine.connect()
            except Exception as error:  # noqa: BLE001 - handed to those who wait for it
                self._answer([(write, None, _translated(error)) for write in group])
            else:
                self._commit(connection, group)
        if connection is not None:
            connection.close()

    def _commit(self, connection: Connection, group: list[_Write]) -> None:
        try:
            with connection.begin():
                results: list[Any] = [write.work(connection) for write in group]
        except Exception as error:  # noqa: BLE001 - handed to whoever waits for it
            if len(group) > 1:
                for write in group:
                    self._commit(connection, [write])
                return
            self._answer([(group[0], None, _translated(error))])
            return
        self.commits += 1
        self.writes += len(group)
        self._answer([(w, result, None) for w, result in zip(group, results, strict=True)])

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


def unusable(engine: Engine, error: DBAPIError) -> errors.Unavailable:
    """Return the error that says why a database cannot be opened."""
    known = _translated(error)
    if isinstance(known, errors.DiskFull):
        return known
    return errors.Unavailable(f"cannot use the database {engine.url.database}: {error.orig}")


# SQLite takes only ENOSPC for a full disk; a quota of the user's (EDQUOT) is a write that failed.
_FULL = ("SQLITE_FULL", "SQLITE_IOERR_WRITE")


def _translated(error: Exception) -> Exception:
    code = getattr(error.orig, "sqlite_errorname", "") if isinstance(error, DBAPIError) else ""
    if code in _FULL:
        return errors.DiskFull("the disk of the state folder is full; free some space")
    return error


def sqlite_url(path: str) -> URL:
    """Return the URL of a database file, whatever characters its path has."""
    return URL.create("sqlite", database=path)


def _make_engine(url: str | URL) -> Engine:
    if make_url(url).get_backend_name() != "sqlite":
        return create_engine(url, pool_size=_READERS + 2)
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

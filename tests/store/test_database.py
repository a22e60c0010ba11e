"""The committer: what it acknowledges is stored, in order, and one bad write is nobody else's."""

import asyncio
import random
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError, OperationalError

from tests.small_disk import fill, limited_file_size, make_room, small_disk
from updraft import errors
from updraft.store.database import Database, Work

SECONDS = 20.0


@asynccontextmanager
async def numbers(path: Path) -> AsyncIterator[Database]:
    """A database with a table of numbers."""
    database = Database(f"sqlite:///{path}")
    await database.write(
        lambda connection: connection.execute(
            text("CREATE TABLE IF NOT EXISTS numbers (at INTEGER PRIMARY KEY, n INTEGER UNIQUE)")
        )
    )
    try:
        yield database
    finally:
        await database.close()


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine; nothing may hang, and no task or future be left with an error."""

    async def watched() -> None:
        said: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: said.append(context))
        async with asyncio.timeout(SECONDS):
            await main
        assert said == []

    asyncio.run(watched())


def insert(number: int) -> Work[int]:
    def work(connection: Connection) -> int:
        connection.execute(text("INSERT INTO numbers (n) VALUES (:n)"), {"n": number})
        return number

    return work


def insert_large(number: int, size: int) -> Work[None]:
    def work(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE IF NOT EXISTS large (n, data)"))
        values = {"n": number, "data": bytes(size)}
        connection.execute(text("INSERT INTO large VALUES (:n, :data)"), values)

    return work


def stored(connection: Connection) -> list[int]:
    return list(connection.execute(text("SELECT n FROM numbers ORDER BY at")).scalars())


class Gate:
    """A write that holds the committer up, so that what comes meanwhile makes one group."""

    def __init__(self) -> None:
        self._entered = threading.Event()
        self._open = threading.Event()

    def work(self, _connection: Connection) -> None:
        self._entered.set()
        assert self._open.wait(SECONDS)

    async def entered(self) -> None:
        assert await asyncio.to_thread(self._entered.wait, SECONDS)

    def open(self) -> None:
        self._open.set()


async def queued(
    database: Database, works: list[Work[Any]]
) -> tuple[Gate, "list[asyncio.Task[Any]]"]:
    """Queue writes behind a gate; return it with their tasks, once all are queued."""
    gate = Gate()
    tasks = [asyncio.create_task(database.write(gate.work))]
    await gate.entered()
    tasks += [asyncio.create_task(database.write(work)) for work in works]
    await asyncio.sleep(0)  # each task has its turn
    return gate, tasks[1:]


def test_what_waits_together_is_committed_together(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            before = database.commits
            gate, tasks = await queued(database, [insert(n) for n in range(100)])
            gate.open()
            assert await asyncio.gather(*tasks) == list(range(100))
            assert database.commits == before + 2
            assert await database.read(stored) == list(range(100))

    run(main())


def test_a_group_is_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            before = database.commits
            gate, tasks = await queued(database, [insert(n) for n in range(600)])
            gate.open()
            await asyncio.gather(*tasks)
            assert database.commits == before + 1 + 3
            assert await database.read(stored) == list(range(600))

    run(main())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(0, 6), max_size=15))
def test_a_write_that_fails_is_told_and_hurts_no_other(wanted: list[int]) -> None:
    """Every number may be there once: to repeat one fails."""

    async def main() -> None:
        async with numbers(Path(":memory:")) as database:
            gate, tasks = await queued(database, [insert(n) for n in wanted])
            gate.open()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            seen: list[int] = []
            for number, result in zip(wanted, results, strict=True):
                if number in seen:
                    assert isinstance(result, IntegrityError)
                else:
                    assert result == number
                    seen.append(number)
            # A read of its own connection would see another memory database.
            assert await database.write(stored) == seen

    run(main())


def test_a_failing_write_leaves_nothing_of_itself(tmp_path: Path) -> None:
    def half(connection: Connection) -> None:
        insert(1)(connection)
        raise LookupError("stale")

    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            gate, tasks = await queued(database, [insert(0), half, insert(2)])
            gate.open()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert results[0] == 0
            assert isinstance(results[1], LookupError)
            assert results[2] == 2
            assert await database.read(stored) == [0, 2]

    run(main())


def test_a_write_is_seen_by_everybody_once_it_is_acknowledged(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            for number in range(20):
                await database.write(insert(number))
                assert await database.read(stored) == list(range(number + 1))
                with sqlite3.connect(tmp_path / "db") as another:
                    count = another.execute("SELECT count(*) FROM numbers").fetchone()
                another.close()
                assert count == (number + 1,)

    run(main())


def test_writers_of_one_task_are_stored_in_their_order(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:

            async def writer(start: int) -> None:
                for number in range(start, start + 30):
                    await database.write(insert(number))

            await asyncio.gather(*(writer(100 * each) for each in range(5)))
            everything = await database.read(stored)
            assert len(everything) == 150
            for each in range(5):
                mine = [number for number in everything if number // 100 == each]
                assert mine == sorted(mine)

    run(main())


def test_who_no_longer_waits_disturbs_nobody(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            gate, tasks = await queued(database, [insert(n) for n in (0, 1, 1, 2)])
            tasks[0].cancel()  # its write succeeds
            tasks[2].cancel()  # its write fails
            gate.open()
            assert await tasks[1] == 1
            assert await tasks[3] == 2
            assert [task.cancelled() for task in tasks] == [True, False, True, False]
            # What was queued is written: nobody can tell any more whether it was too late.
            assert await database.read(stored) == [0, 1, 2]

    run(main())


def test_what_is_queued_when_it_closes_is_written(tmp_path: Path) -> None:
    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            gate, tasks = await queued(database, [insert(n) for n in range(5)])
            closing = asyncio.create_task(database.close())
            await asyncio.sleep(0)
            gate.open()
            await closing
            assert await asyncio.gather(*tasks) == list(range(5))
            with pytest.raises(errors.Unavailable):
                await database.write(insert(6))
        with sqlite3.connect(tmp_path / "db") as again:
            assert again.execute("SELECT count(*) FROM numbers").fetchone() == (5,)
        again.close()

    run(main())


def test_a_database_that_cannot_be_opened_fails_and_does_not_hang(tmp_path: Path) -> None:
    async def main() -> None:
        database = Database(f"sqlite:///{tmp_path / 'no folder' / 'db'}")
        for attempt in (database.write, database.read):
            ask: Callable[[Work[int]], Awaitable[int]] = attempt
            with pytest.raises(OperationalError):
                await ask(lambda _: 1)
        (tmp_path / "no folder").mkdir()
        await database.write(insert_large(1, 10))
        await database.close()

    run(main())


def test_connections_are_as_a_durable_store_needs_them(tmp_path: Path) -> None:
    def pragmas(connection: Connection) -> tuple[Any, ...]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return tuple(connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in names)

    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            assert await database.write(pragmas) == ("wal", 2, 1)
            assert await database.read(pragmas) == ("wal", 2, 1)

    run(main())


async def survives_a_full_disk(
    database: Database, full: Callable[[], None], room: Callable[[], None]
) -> None:
    """Everything that is acknowledged stays, what is not is told, and it goes on with room."""
    await database.write(insert(0))
    await database.write(insert_large(0, 10))
    full()
    large = [insert_large(n, 300_000) for n in range(1, 4)]
    gate, tasks = await queued(database, [insert(1), *large])
    gate.open()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, errors.DiskFull) for result in results[1:]), results
    assert results[0] == 1 or isinstance(results[0], errors.DiskFull)
    acknowledged = [0, 1] if results[0] == 1 else [0]
    assert await database.read(stored) == acknowledged
    with pytest.raises(errors.DiskFull, match="free some space"):
        await database.write(large[0])
    room()
    await database.write(large[0])
    await database.write(insert(2))
    assert await database.read(stored) == [*acknowledged, 2]


def test_a_full_database(tmp_path: Path) -> None:
    def limit(pages: int) -> Work[None]:
        def work(connection: Connection) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")

        return work

    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            with sqlite3.connect(tmp_path / "db") as look:
                (pages,) = look.execute("PRAGMA page_count").fetchone()
            look.close()
            await database.write(insert_large(0, 10))
            await database.write(limit(pages + 10))
            gate, tasks = await queued(database, [insert(0), insert_large(1, 300_000), insert(1)])
            gate.open()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert (results[0], results[2]) == (0, 1)
            assert isinstance(results[1], errors.DiskFull)
            assert await database.read(stored) == [0, 1]
            await database.write(limit(1_000_000))
            await database.write(insert_large(1, 300_000))

    run(main())


def test_files_that_may_not_grow(tmp_path: Path) -> None:
    """To SQLite a user's quota looks like this: not as a full disk, but as a failed write."""
    limits: list[Any] = []

    def full() -> None:
        size = max(file.stat().st_size for file in tmp_path.iterdir())
        limits.append(limited_file_size(size + 20_000))
        limits[0].__enter__()

    async def main() -> None:
        async with numbers(tmp_path / "db") as database:
            try:
                await survives_a_full_disk(
                    database, full, lambda: limits.pop().__exit__(None, None, None)
                )
            finally:
                if limits:
                    limits.pop().__exit__(None, None, None)

    run(main())


@pytest.mark.root
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    async def main() -> None:
        with small_disk(tmp_path / "disk", kib=3000) as disk:
            async with numbers(disk / "db") as database:
                await survives_a_full_disk(database, lambda: fill(disk), lambda: make_room(disk))

    run(main())


_WRITER = """
import asyncio, sys
from sqlalchemy import text
from updraft.store.database import Database

async def main():
    database = Database(sys.argv[1])
    await database.write(lambda c: c.execute(text("CREATE TABLE numbers (n INTEGER UNIQUE)")))

    async def writer(number):
        while True:
            await database.write(
                lambda c: c.execute(text("INSERT INTO numbers VALUES (:n)"), {"n": number})
            )
            print(number, flush=True)
            number += 10

    await asyncio.gather(*map(writer, range(10)))

asyncio.run(main())
"""


def test_what_was_acknowledged_is_there_after_kill_9(tmp_path: Path, seed: int) -> None:
    wanted = random.Random(seed).randrange(1, 300)
    command = [sys.executable, "-c", _WRITER, f"sqlite:///{tmp_path / 'db'}"]
    acknowledged: list[int] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(b"\n"):
                acknowledged.append(int(line))
            if len(acknowledged) == wanted:
                process.send_signal(signal.SIGKILL)
    assert len(acknowledged) >= wanted
    with sqlite3.connect(tmp_path / "db") as database:
        kept = {n for (n,) in database.execute("SELECT n FROM numbers")}
    database.close()
    assert kept >= set(acknowledged)

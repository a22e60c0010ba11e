"""One writer of a shared database: fenced by its epoch, sure of what it committed."""

import asyncio
import contextlib
import os
import pwd
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, text

from tests import postgresql as testing
from tests.postgresql import Cluster
from tests.small_disk import small_disk
from tests.store.test_database import insert, queued, run, stored
from updraft import errors
from updraft.store import database as database_module
from updraft.store import postgresql, schema
from updraft.store.database import Database, Undecided
from updraft.store.leadership import Leadership, epoch_of

pytestmark = pytest.mark.postgresql

HOLDER = (
    "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND granted "
    "AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
)
END_HOLDER = f"SELECT pg_terminate_backend(pid) FROM ({HOLDER}) AS holder"


class Leader:
    """A server's database, and whether it was told that another leads."""

    def __init__(self, url: str) -> None:
        self.deposed = threading.Event()
        self.waited = threading.Event()
        self.leadership = Leadership(url, self.deposed.set)
        self.url = url

    async def take(self) -> Database:
        await self.leadership.take(lambda _: self.waited.set())
        database = Database(self.url, self.leadership)
        await asyncio.to_thread(schema.upgrade, database.engine)
        await asyncio.to_thread(self.leadership.begin)
        return database


@contextlib.asynccontextmanager
async def leading(url: str) -> AsyncIterator[tuple[Leader, Database]]:
    """A leader with a table of numbers."""
    leader = Leader(url)
    database = await leader.take()
    create = "CREATE TABLE IF NOT EXISTS numbers (at SERIAL PRIMARY KEY, n INTEGER UNIQUE)"
    await database.write(lambda connection: connection.execute(text(create)))
    try:
        yield leader, database
    finally:
        await database.close()
        leader.leadership.release()


@pytest.fixture
def own_cluster() -> Iterator[Cluster]:
    """One that may be killed."""
    with testing.cluster() as made:
        yield made


async def within(look: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not look():  # noqa: ASYNC110 - it is another process that is waited for
            await asyncio.sleep(0.02)


def test_a_second_server_waits_and_leads_when_the_first_has_gone(postgresql_url: str) -> None:
    async def main() -> None:
        second = Leader(postgresql_url)
        async with leading(postgresql_url) as (first, database):
            taking = asyncio.create_task(second.take())
            await within(second.waited.is_set)
            await database.write(insert(1))
            assert not taking.done()
            assert first.leadership.epoch == 1
        taken = await taking
        assert second.leadership.epoch == 2
        assert await taken.read(epoch_of) == 2
        assert await taken.read(stored) == [1]
        await taken.close()
        second.leadership.release()

    run(main())


def test_who_lost_its_lock_cannot_write_and_hears_of_it(
    cluster: Cluster, postgresql_url: str
) -> None:
    async def main() -> None:
        name = postgresql_url.rpartition("/")[2]
        second = Leader(postgresql_url)
        async with leading(postgresql_url) as (first, database):
            await database.write(insert(1))
            # As when the first one's machine is cut off: its lock goes, the server does not know.
            cluster.sql(name, END_HOLDER)
            taken = await second.take()
            with pytest.raises(errors.Unavailable, match="another server has taken over"):
                await database.write(insert(2))
            assert first.deposed.is_set()
            assert await taken.read(stored) == [1]
            await taken.close()
            second.leadership.release()

    run(main())


def test_an_idle_leader_hears_that_another_leads(cluster: Cluster, postgresql_url: str) -> None:
    async def main() -> None:
        name = postgresql_url.rpartition("/")[2]
        async with leading(postgresql_url) as (first, _):
            cluster.sql(name, "UPDATE leadership SET epoch = epoch + 1")
            await within(first.deposed.is_set)

    run(main())


LEADS = """
import asyncio, sys, time
from sqlalchemy import text
from updraft.store import schema
from updraft.store.database import Database
from updraft.store.leadership import Leadership

async def main():
    leadership = Leadership(sys.argv[1], lambda: print("deposed", flush=True))
    await leadership.take(lambda _: None)
    database = Database(sys.argv[1], leadership)
    schema.upgrade(database.engine)
    leadership.begin()

    def work(connection):
        connection.execute(text("SELECT 1"))
        print("leads", flush=True)
        sys.stdin.readline()

    try:
        await database.write(work)
    except Exception as error:
        print(error, flush=True)

asyncio.run(main())
"""


def test_a_leader_that_is_stopped_in_a_transaction_is_succeeded_and_can_write_nothing(
    postgresql_url: str,
) -> None:
    """It has the lock, and the row that every leader writes; the database's machine hears it."""

    async def main(process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "leads\n"
        process.send_signal(signal.SIGSTOP)
        second = Leader(postgresql_url)
        taken = await second.take()
        assert second.waited.is_set()
        assert second.leadership.epoch == 2
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        said = await asyncio.to_thread(process.stdout.read)
        assert "deposed\n" in said
        assert "another server has taken over" in said
        await taken.close()
        second.leadership.release()

    with subprocess.Popen(
        [sys.executable, "-c", LEADS, postgresql_url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        try:
            run(main(process))
        finally:
            process.kill()


def test_a_lock_that_was_lost_before_the_epoch_began_gives_no_right_to_begin_it(
    cluster: Cluster, postgresql_url: str
) -> None:
    async def main() -> None:
        first, second = Leader(postgresql_url), Leader(postgresql_url)
        await first.leadership.take(lambda _: first.waited.set())
        taking = asyncio.create_task(second.take())
        await within(second.waited.is_set)
        cluster.sql(postgresql_url.rpartition("/")[2], END_HOLDER)
        taken = await taking
        with pytest.raises(errors.Unavailable, match="lock on the database was lost"):
            await asyncio.to_thread(first.leadership.begin)
        assert await taken.read(epoch_of) == 1
        await taken.close()
        for each in (first, second):
            each.leadership.release()

    run(main())


def test_a_lock_that_was_lost_is_taken_again_where_nobody_else_led(
    cluster: Cluster, postgresql_url: str
) -> None:
    async def main() -> None:
        name = postgresql_url.rpartition("/")[2]
        async with leading(postgresql_url) as (first, database):
            before = cluster.sql(name, HOLDER)
            cluster.sql(name, END_HOLDER)
            await within(lambda: cluster.sql(name, HOLDER) not in ([], before))
            await database.write(insert(1))
            assert not first.deposed.is_set()

    run(main())


def test_a_commit_whose_answer_is_lost_is_found_and_not_repeated(
    cluster: Cluster, postgresql_url: str
) -> None:
    """The connection ends behind the commit: what was stored is answered, and stored once."""

    async def main() -> None:
        async with leading(postgresql_url) as (_, database):
            await database.write(insert(0))
            ran: list[int] = []
            real = database.engine.dialect.do_commit
            lose = [True]

            def commit_and_lose(connection: Any) -> None:
                real(connection)
                if lose and threading.current_thread().name == "committer":
                    lose.clear()
                    connection.driver_connection.close()
                    raise psycopg.OperationalError("server closed the connection unexpectedly")

            vars(database.engine.dialect)["do_commit"] = commit_and_lose

            def work(connection: Connection) -> int:
                ran.append(1)
                return insert(1)(connection)

            assert await database.write(work) == 1
            assert (lose, ran) == ([], [1])
            assert await database.read(stored) == [0, 1]

    run(main())


def test_what_waits_while_the_database_is_killed_is_written_once_it_is_back(
    own_cluster: Cluster,
) -> None:
    url = own_cluster.url(own_cluster.make_database())

    async def main() -> None:
        async with leading(url) as (leader, database):
            gate, tasks = await queued(database, [insert(n) for n in range(100)])
            reading: asyncio.Task[list[int]]
            await asyncio.to_thread(own_cluster.kill)
            gate.open()
            reading = asyncio.create_task(database.read(stored))
            await asyncio.sleep(0.5)
            assert not any(task.done() for task in [*tasks, reading])
            await asyncio.to_thread(own_cluster.start)
            assert await asyncio.gather(*tasks) == list(range(100))
            await reading
            assert sorted(await database.read(stored)) == list(range(100))
            assert not leader.deposed.is_set()

    run(main())


def test_who_will_not_wait_for_a_database_that_is_away_is_told_and_has_done_nothing(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_cluster.url(own_cluster.make_database())
    monkeypatch.setattr(database_module, "AWAY_SECONDS", 0.5)

    async def main() -> None:
        async with leading(url) as (leader, database):
            await asyncio.to_thread(own_cluster.kill)
            patient = [
                asyncio.create_task(database.write(insert(1), patient=True)),
                asyncio.create_task(database.read(stored, patient=True)),
            ]
            writes = [database.write(insert(n)) for n in range(2, 300)]
            reads = [database.read(stored) for _ in range(20)]
            told = await asyncio.gather(*writes, *reads, return_exceptions=True)
            assert {type(error) for error in told} == {errors.NotReady}
            assert not any(task.done() for task in patient)
            await asyncio.to_thread(own_cluster.start)
            assert await patient[0] == 1
            await patient[1]
            assert await database.write(insert(1000)) == 1000
            assert await database.read(stored) == [1, 1000]
            assert not leader.deposed.is_set()

    run(main())


def test_a_write_whose_commit_is_under_way_is_not_taken_back(
    own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = own_cluster.url(own_cluster.make_database())
    monkeypatch.setattr(database_module, "AWAY_SECONDS", 0.5)

    async def main() -> None:
        async with leading(url) as (_, database):
            committed = threading.Event()
            real = database.engine.dialect.do_commit

            def commit_and_lose(connection: Any) -> None:
                real(connection)
                if threading.current_thread().name == "committer" and not committed.is_set():
                    own_cluster.kill()
                    committed.set()
                    raise psycopg.OperationalError("server closed the connection unexpectedly")

            vars(database.engine.dialect)["do_commit"] = commit_and_lose
            with pytest.raises(Undecided) as caught:
                await database.decide(insert(1))
            with pytest.raises(errors.NotReady):  # behind it
                await database.write(insert(2))
            await asyncio.to_thread(own_cluster.start)
            assert await caught.value.outcome == 1
            assert await database.read(stored) == [1]

    run(main())


@pytest.mark.timeout(120)
def test_acknowledged_writes_survive_kills_of_the_database_and_none_is_double(
    own_cluster: Cluster,
) -> None:
    url = own_cluster.url(own_cluster.make_database())

    async def main() -> None:
        async with leading(url) as (leader, database):
            acknowledged: list[int] = []
            over = False

            async def writer(number: int) -> None:
                while not over:
                    await database.write(insert(number))  # a repetition would not be unique
                    acknowledged.append(number)
                    number += 10

            writers = [asyncio.create_task(writer(n)) for n in range(10)]
            for _ in range(3):
                count = len(acknowledged)
                await within(lambda count=count: len(acknowledged) > count + 200)  # type: ignore[misc]
                await asyncio.to_thread(own_cluster.kill)
                await asyncio.to_thread(own_cluster.start)
            over = True
            await asyncio.gather(*writers)
            assert sorted(await database.read(stored)) == sorted(acknowledged)
            assert not leader.deposed.is_set()

    run(main())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda url: url.replace("admin:", "admin:wrong"), "password authentication failed"),
        (lambda url: url + "missing", "does not exist"),
        (lambda url: url.rpartition(":")[0] + ":1/updraft", "refused"),
    ],
)
def test_a_database_that_cannot_be_used_is_said_in_one_line(
    postgresql_url: str, change: Callable[[str], str], said: str
) -> None:
    async def main() -> None:
        leadership = Leadership(change(postgresql_url), lambda: None)
        with pytest.raises(errors.Unavailable, match=said) as caught:
            await leadership.take(lambda _: None)
        message = caught.value.message
        assert "\n" not in message
        assert "check server.database" in message
        assert testing.PASSWORD not in message

    run(main())


@pytest.mark.root
def test_a_full_disk_is_told_as_one(postgresql_url: str, cluster: Cluster, tmp_path: Path) -> None:
    """A tablespace on a small disk, so that the log of the database has room."""
    name = postgresql_url.rpartition("/")[2]
    with small_disk(cluster.folder / "small", kib=3000) as disk:
        user = pwd.getpwnam("nobody")
        space = disk / "space"
        space.mkdir()
        for folder in (disk, space):
            os.chown(folder, user.pw_uid, user.pw_gid)
        cluster.sql(name, f"CREATE TABLESPACE small LOCATION '{space}'")
        cluster.sql(name, "CREATE TABLE large (n INTEGER, data BYTEA) "
                          "TABLESPACE small")  # fmt: skip

        def large(connection: Connection) -> None:
            values = {"data": os.urandom(4_000_000)}
            connection.execute(text("INSERT INTO large VALUES (1, :data)"), values)

        async def main() -> None:
            async with leading(postgresql_url) as (_, database):
                with pytest.raises(errors.DiskFull, match="disk of the database is full"):
                    await database.write(large)
                await database.write(insert(1))
                assert await database.read(stored) == [1]

        try:
            run(main())
        finally:
            cluster.sql(name, "DROP TABLE large")
            cluster.sql(name, "DROP TABLESPACE small")


def test_what_the_database_cannot_hold_is_bad_input(postgresql_url: str) -> None:
    async def main() -> None:
        async with leading(postgresql_url) as (_, database):
            for value in ("a\0b", "x" * 65):
                statement = text("INSERT INTO pools VALUES (:name, '', false, 0)")
                with pytest.raises(errors.BadRequest):
                    await database.write(
                        lambda c, value=value, s=statement: c.execute(s, {"name": value})  # type: ignore[misc]
                    )

    run(main())


def test_names_are_ordered_by_their_bytes(postgresql_url: str) -> None:
    engine = postgresql.make_engine(postgresql_url, 1)
    schema.upgrade(engine)
    with engine.begin() as connection:
        for name in ("b", "a-1", "aa", "a1", "B"):
            values = {"name": name}
            connection.execute(text("INSERT INTO pools VALUES (:name, '', false, 0)"), values)
        found = connection.execute(text("SELECT name FROM pools ORDER BY name")).scalars().all()
    engine.dispose()
    assert list(found) == sorted(["b", "a-1", "aa", "a1", "B"])

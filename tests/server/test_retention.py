"""Stored output is bounded by age and by size, and a live job's is never touched."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from updraft.configuration.schema import Server
from updraft.model.states import State
from updraft.scheduling.queue import Party
from updraft.server.loops.retention import drop_old_jobs, drop_old_output, sweep_output
from updraft.server.services.stored import StoredOutput
from updraft.store import schema, tables
from updraft.store.database import Database, Work

NOW_NS = time.time_ns()
DAY_NS = 86400 * 10**9
MIB = 1 << 20


async def with_jobs(
    folder: Path,
    ended: list[tuple[str, State, int | None]],
    check: Callable[[Database], Awaitable[None]],
) -> None:
    """Make jobs of (id, state, age in days at their end), each with 1 MiB of output."""
    database = Database(f"sqlite:///{folder / 'jobs.db'}")
    schema.upgrade(database.engine)
    for serial, (job_id, state, age) in enumerate(ended, start=1):
        await database.write(_job(serial, job_id, state, age))
        (folder / "logs" / job_id / "0.1").mkdir(parents=True)
        (folder / "logs" / job_id / "0.1" / "stdout").write_bytes(b"x")
    try:
        await check(database)
    finally:
        await database.close()


def _job(serial: int, job_id: str, state: State, age: int | None) -> Work[None]:
    job = {
        "serial": serial, "id": job_id, "owner": "uid:1", "project": "default",
        "jurisdiction": "local", "submit_key": job_id.encode(), "attached": False,
        "detached": False, "name": "", "labels": "{}", "pool": "local", "command": b"de",
        "cpus_milli": 1000, "memory_bytes": 0, "gpus": 0, "retries": 0, "priority": 0,
        "keep_alive_ms": 0, "grace_ms": 0, "state": state, "wanted": "run", "message": "",
        "created_ns": NOW_NS - 500 * DAY_NS, "kept": True,
        "ended_ns": None if age is None else NOW_NS - age * DAY_NS,
    }  # fmt: skip
    attempt = {
        "serial": serial, "job_serial": serial, "task_index": 0, "number": 1, "state": "ENDED",
        "runner": "local", "gpu_ids": "[]", "granted_ns": 0, "message": "",
        "stdout_bytes": MIB, "stderr_bytes": 0,
    }  # fmt: skip

    def insert(connection: Connection) -> None:
        connection.execute(tables.jobs.insert(), job)
        connection.execute(tables.attempts.insert(), attempt)
        said = {"job_serial": serial, "at_ns": 0, "kind": state, "message": ""}
        connection.execute(tables.events.insert(), said)

    return insert


@pytest.mark.parametrize(
    ("days", "size", "left"),
    [
        (30.0, 100 * MIB, {"aged", "fresh", "newest", "runs"}),
        (5.0, 100 * MIB, {"fresh", "newest", "runs"}),
        (0.5, 100 * MIB, {"runs"}),
        (30.0, 2 * MIB, {"fresh", "newest", "runs"}),
        (30.0, 0, {"runs"}),
    ],
)
def test_old_and_too_much_output_goes_oldest_first(
    tmp_path: Path, days: float, size: int, left: set[str]
) -> None:
    jobs = [
        ("runs", State.RUNNING, None),
        ("aged", State.SUCCESS, 10),
        ("fresh", State.FAILURE, 2),
        ("newest", State.CANCELLED, 1),
    ]
    bounds = Server(retention=days * 86400, retention_size=size)

    async def check(database: Database) -> None:
        dropped = await drop_old_output(database, str(tmp_path / "logs"), bounds, NOW_NS)
        assert dropped == len(jobs) - len(left)
        assert {path.name for path in (tmp_path / "logs").iterdir()} == left
        kept = await database.read(
            lambda c: set(c.execute(select(tables.jobs.c.id).where(tables.jobs.c.kept)).scalars())
        )
        assert kept == left

    asyncio.run(with_jobs(tmp_path, jobs, check))


async def left_of(database: Database) -> dict[str, set[int]]:
    """Return which jobs' rows there are in each table, by their serials."""

    def read(connection: Connection) -> dict[str, set[int]]:
        columns = {
            "jobs": tables.jobs.c.serial,
            "attempts": tables.attempts.c.job_serial,
            "events": tables.events.c.job_serial,
        }
        return {
            name: set(connection.execute(select(column)).scalars())
            for name, column in columns.items()
        }

    return await database.read(read)


@pytest.mark.parametrize(
    ("days", "left"),
    [
        (30.0, {1, 2, 3, 4, 5}),
        (9.0, {1, 3, 4, 5}),
        (1.5, {1, 4, 5}),
        (0.5, {1, 5}),  # the newest stays: its serials must not be given out again
    ],
)
def test_old_jobs_go_with_attempts_events_and_output_and_a_live_one_never(
    tmp_path: Path, days: float, left: set[int]
) -> None:
    jobs = [
        ("runs", State.RUNNING, None),
        ("aged", State.SUCCESS, 10),
        ("fresh", State.FAILURE, 2),
        ("newer", State.EXPIRED, 1),
        ("newest", State.CANCELLED, 1),
    ]
    bounds = Server(keep_jobs=days * 86400)

    async def check(database: Database) -> None:
        dropped = await drop_old_jobs(database, str(tmp_path / "logs"), bounds, NOW_NS)
        assert dropped == len(jobs) - len(left)
        assert await left_of(database) == {"jobs": left, "attempts": left, "events": left}
        names = {path.name for path in (tmp_path / "logs").iterdir()}
        assert names == {jobs[serial - 1][0] for serial in left}

    asyncio.run(with_jobs(tmp_path, jobs, check))


def test_the_job_of_the_newest_event_stays_until_there_is_a_newer_one(tmp_path: Path) -> None:
    jobs = [
        ("last", State.SUCCESS, 10),
        ("other", State.SUCCESS, 20),
        ("newest", State.RUNNING, None),
    ]
    logs = str(tmp_path / "logs")

    def happen(job_serial: int) -> Work[int]:
        said = {"job_serial": job_serial, "at_ns": 0, "kind": "RUNNING", "message": ""}
        made = tables.events.insert().returning(tables.events.c.serial).values(said)
        return lambda connection: connection.execute(made).scalar_one()

    async def check(database: Database) -> None:
        told = await database.write(happen(1))
        bounds = Server(keep_jobs=86400.0)
        assert await drop_old_jobs(database, logs, bounds, NOW_NS) == 1
        assert (await left_of(database))["jobs"] == {1, 3}
        assert await database.write(happen(3)) > told
        assert await drop_old_jobs(database, logs, bounds, NOW_NS) == 1
        assert (await left_of(database))["jobs"] == {3}

    asyncio.run(with_jobs(tmp_path, jobs, check))


def test_stored_output_is_counted_once_kept_and_counted_anew_by_retention(tmp_path: Path) -> None:
    jobs = [("old", State.SUCCESS, 40), ("new", State.SUCCESS, 1), ("runs", State.RUNNING, None)]
    mine = Party("default", "uid:1")

    async def check(database: Database) -> None:
        stored = StoredOutput()
        reads = 0
        read = database.read

        async def counting(work: Work[Any], *, patient: bool = False) -> Any:
            nonlocal reads
            reads += 1
            return await read(work, patient=patient)

        database.read = counting  # type: ignore[method-assign]
        stored.add(mine, (5, 0))  # before it is counted, it is counted with the rest
        keys = (mine, "default", mine, Party("default", "uid:2"), "other")
        found = await asyncio.gather(*(stored.of(database, key) for key in keys))
        assert found == [3 * MIB, 3 * MIB, 3 * MIB, 0, 0]
        stored.add(mine, (MIB, 0))
        assert await stored.of(database, "default") == 4 * MIB
        assert reads == 1
        await drop_old_output(database, str(tmp_path / "logs"), Server(), NOW_NS)
        await stored.count_anew(database)
        assert await stored.of(database, mine) == 2 * MIB

    asyncio.run(with_jobs(tmp_path, jobs, check))


def test_many_old_jobs_go_a_bounded_number_at_a_time(tmp_path: Path) -> None:
    jobs: list[tuple[str, State, int | None]] = [
        (f"job{number}", State.SUCCESS, 400) for number in range(450)
    ]
    # A live one among the old does not end the walk.
    jobs[10] = ("runs", State.RUNNING, None)

    async def check(database: Database) -> None:
        before = database.commits
        bounds = Server()
        assert await drop_old_jobs(database, str(tmp_path / "logs"), bounds, NOW_NS) == 448
        assert database.commits - before == 3
        assert (await left_of(database))["jobs"] == {11, 450}

    asyncio.run(with_jobs(tmp_path, jobs, check))


def test_output_that_a_crash_left_without_its_job_is_swept(tmp_path: Path) -> None:
    jobs = [("runs", State.RUNNING, None), ("kept", State.SUCCESS, 1), ("gone", State.SUCCESS, 40)]

    async def check(database: Database) -> None:
        logs = tmp_path / "logs"
        await drop_old_output(database, str(logs), Server(), NOW_NS)
        # As if the server had died after its note: of output, and of a job.
        for name in ("gone", "nobody"):
            (logs / name / "0.1").mkdir(parents=True)
        assert await sweep_output(database, str(logs)) == 2
        assert {path.name for path in logs.iterdir()} == {"runs", "kept"}

    asyncio.run(with_jobs(tmp_path, jobs, check))

"""Drops stored output that is too old or too much, oldest first; never a live job's."""

from __future__ import annotations

import asyncio
import shutil
import time
from pathlib import Path

from sqlalchemy import Connection

from updraft.configuration.schema import Server
from updraft.server.observe.beats import Beats
from updraft.store import jobs as queries
from updraft.store.database import Database

NAME = "retention"

_PASS_SECONDS = 600.0
_LATE_SECONDS = 3 * _PASS_SECONDS
_BATCH = 200
_FOR_EVER_SECONDS = 200 * 365 * 86400.0


async def keep_output_bounded(
    database: Database, logs_folder: str, configuration: Server, beats: Beats
) -> None:
    """Run a pass now and then, for ever."""
    beats.expect(NAME, _LATE_SECONDS)
    while True:
        with beats.one_pass(NAME):
            await drop_old_output(database, logs_folder, configuration, time.time_ns())
        await asyncio.sleep(_PASS_SECONDS)


async def drop_old_output(
    database: Database, logs_folder: str, configuration: Server, now_ns: int
) -> int:
    """Drop what is over the bounds at ``now_ns``; return how many jobs lost their output."""
    before_ns = now_ns - int(min(configuration.retention, _FOR_EVER_SECONDS) * 1e9)
    dropped = 0
    while True:
        old = await database.read(lambda c: queries.ended_with_output(c, before_ns, _BATCH))
        if not old:
            break
        dropped += await _drop(database, logs_folder, [(row.serial, row.id) for row in old])
    over = await database.read(queries.stored_bytes) - configuration.retention_size
    while over > 0:
        oldest = await database.read(lambda c: queries.ended_with_output(c, None, _BATCH))
        if not oldest:
            break
        chosen: list[tuple[int, str]] = []
        for row in oldest:
            chosen.append((row.serial, row.id))
            over -= row.stored_bytes
            if over <= 0:
                break
        dropped += await _drop(database, logs_folder, chosen)
    return dropped


async def _drop(database: Database, logs_folder: str, jobs: list[tuple[int, str]]) -> int:
    def note(connection: Connection) -> None:
        queries.drop_output(connection, [serial for serial, _ in jobs])

    # Noted first: a crash in between leaves files without a reader, not a reader without files.
    await database.write(note)
    for _, job_id in jobs:
        await asyncio.to_thread(shutil.rmtree, Path(logs_folder) / job_id, ignore_errors=True)
    return len(jobs)

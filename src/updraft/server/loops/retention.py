"""Drops what is kept of ended jobs when it is too old or too much; never a live job's.

Output goes first, by age and by size.  The jobs themselves, with their attempts and events, go by
age, a bounded number at a time.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from sqlalchemy import Connection

from updraft.configuration.schema import Server
from updraft.server.observe.beats import Beats
from updraft.server.services.stored import StoredOutput
from updraft.store import jobs as queries
from updraft.store.database import Database

NAME = "retention"

_PASS_SECONDS = 600.0
_LATE_SECONDS = 3 * _PASS_SECONDS
_BATCH = 200
_FOR_EVER_SECONDS = 200 * 365 * 86400.0


async def keep_output_bounded(
    database: Database,
    logs_folder: str,
    configuration: Server,
    beats: Beats,
    stored: StoredOutput,
) -> None:
    """Run a pass now and then, for ever."""
    beats.expect(NAME, _LATE_SECONDS)
    swept = False
    while True:
        with beats.one_pass(NAME):
            if not swept:
                await sweep_output(database, logs_folder)
                swept = True
            await drop_old_jobs(database, logs_folder, configuration, time.time_ns())
            await drop_old_output(database, logs_folder, configuration, time.time_ns())
            await stored.count_anew(database)
        await asyncio.sleep(_PASS_SECONDS)


async def sweep_output(database: Database, logs_folder: str) -> int:
    """Remove what a crash between a note and its removal left; return how many jobs' it was."""
    # A job is stored before its folder is made, so what has no job has none to come.
    names = await asyncio.to_thread(os.listdir, logs_folder)
    swept = 0
    for start in range(0, len(names), _BATCH):
        some = names[start : start + _BATCH]
        kept = await database.read(partial(queries.kept_among, ids=some))
        left = [name for name in some if name not in kept]
        await _remove(logs_folder, left)
        swept += len(left)
    return swept


async def drop_old_jobs(
    database: Database, logs_folder: str, configuration: Server, now_ns: int
) -> int:
    """Drop jobs that ended too long before ``now_ns``, all that is kept of them; return how many.

    Walks from the oldest job to the first that was submitted too late to go, so that its cost is
    that of what goes and of what still lives.
    """
    before_ns = now_ns - int(min(configuration.keep_jobs, _FOR_EVER_SECONDS) * 1e9)
    dropped = after = 0
    while True:
        oldest = await database.read(partial(queries.oldest_jobs, after=after, limit=_BATCH))
        old = [row for row in oldest if row.ended_ns is not None and row.ended_ns < before_ns]
        serials = [row.serial for row in old]
        if serials:
            await database.write(partial(queries.delete_jobs, serials=serials))
            await _remove(logs_folder, [row.id for row in old])
            dropped += len(old)
        if not oldest or oldest[-1].created_ns >= before_ns:
            return dropped
        after = oldest[-1].serial


async def drop_old_output(
    database: Database, logs_folder: str, configuration: Server, now_ns: int
) -> int:
    """Drop what is over the bounds at ``now_ns``; return how many jobs lost their output."""
    before_ns = now_ns - int(min(configuration.retention, _FOR_EVER_SECONDS) * 1e9)
    quota = configuration.output_quota
    dropped = 0
    while True:
        old = await database.read(lambda c: queries.ended_with_output(c, before_ns, _BATCH, quota))
        if not old:
            break
        dropped += await _drop(database, logs_folder, [(row.serial, row.id) for row in old])
    stored = await database.read(lambda c: queries.stored_bytes(c, quota))
    over = stored - configuration.retention_size
    while over > 0:
        oldest = await database.read(lambda c: queries.ended_with_output(c, None, _BATCH, quota))
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
    await _remove(logs_folder, [job_id for _, job_id in jobs])
    return len(jobs)


async def _remove(logs_folder: str, job_ids: Sequence[str]) -> None:
    for job_id in job_ids:
        await asyncio.to_thread(shutil.rmtree, Path(logs_folder) / job_id, ignore_errors=True)

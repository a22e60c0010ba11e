"""Reading what tasks wrote: from a position, the last lines, since a moment, and as it comes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Kind
from updraft.server.services.array_output import ArrayOutput
from updraft.server.services.attempt_output import AttemptOutput, Piece, Window
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import Jobs, check_index
from updraft.store import jobs as queries
from updraft.store.database import Database


class Logs:
    """The stored output of jobs."""

    def __init__(self, database: Database, execution: Execution, jobs: Jobs) -> None:
        self._database = database
        self._execution = execution
        self._jobs = jobs

    async def read(self, who: Principal, job_id: str, window: Window) -> AsyncIterator[Piece]:
        """Return the output in the order in which it was written.

        Raises as ``Jobs.row`` does, ``errors.NotFound`` for output that retention has removed and
        for an attempt that was not made.
        """
        row = await self._jobs.row(who, job_id)
        if not row["kept"]:
            raise errors.NotFound(
                f"the output of job {row['id']} is no longer stored; raise server.retention"
            )
        if row["kind"] != Kind.SINGLE and window.task is None:
            if window.tail is not None or window.since_ns is not None or window.attempt is not None:
                raise errors.BadRequest(
                    f"job {row['id']} has {row['tasks']} tasks; a part of the output "
                    f"is of one of them: {row['id']}/INDEX"
                )
            return ArrayOutput(self._database, self._execution, row).read(window)
        index = window.task or 0
        check_index(row, index)
        attempts = await self._database.read(lambda c: queries.attempts_of(c, row["serial"], index))
        last = attempts[-1]["number"] if attempts else 0
        if window.attempt is not None and not 1 <= window.attempt <= last:
            raise errors.NotFound(f"job {row['id']} has no attempt {window.attempt}")
        return self._read(row["serial"], row["id"], window.attempt or last, window)

    async def _read(
        self, serial: int, job_id: str, first: int, window: Window
    ) -> AsyncIterator[Piece]:
        number: int | None = first
        index = window.task or 0
        with self._execution.changes.follow(serial, output=True) as changed:
            while number is not None:
                if number:
                    part = window if number == first else _whole(window)
                    folder = self._execution.live.folder_of(job_id, number, index)
                    with AttemptOutput(folder, number, part) as attempt:
                        for piece in await asyncio.to_thread(attempt.begin):
                            yield piece
                        over = False
                        while not over:
                            changed.clear()
                            # In this order: what was written before the end is there when we read.
                            over = not window.follow or self._over(serial, index, number)
                            attempt.look()
                            while batch := await asyncio.to_thread(attempt.some):
                                for piece in batch:
                                    yield piece
                            if not over:
                                await changed.wait()
                        for piece in attempt.ends():
                            yield piece
                if not window.follow:
                    return
                number = await self._next(serial, index, number, changed)

    def _over(self, serial: int, index: int, number: int) -> bool:
        """Whether the attempt writes no more."""
        job = self._execution.live.find_serial(serial)
        if job is not None and job.array is not None:
            return job.array.number_of(index) != number
        return job is None or job.attempt is None or job.attempt.number != number

    async def _next(
        self, serial: int, index: int, number: int, changed: asyncio.Event
    ) -> int | None:
        """Wait for the attempt behind ``number``; None when the job ends without one."""
        while True:
            changed.clear()
            job = self._execution.live.find_serial(serial)
            if job is None:
                made = await self._database.read(lambda c: queries.attempts_of(c, serial, index))
                return number + 1 if made and made[-1]["number"] > number else None
            if job.array is not None:
                now = job.array.number_of(index)
                if now is not None and now > number:
                    return number + 1
                if now is None and not job.array.waits(index):
                    return None
            elif job.attempts > number:
                return number + 1
            await changed.wait()


def _whole(window: Window) -> Window:
    """Only the first attempt is shown in part."""
    return Window(window.streams, task=window.task, follow=window.follow)

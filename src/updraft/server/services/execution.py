"""Carries jobs from their submission to their end: what the rest of the server asks for.

What is in memory is a copy of what is stored: every change is written first, guarded by the state
that it expects, and applied here once the write is on the disk.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection

from updraft import errors
from updraft.model.job import Kind, Outcome
from updraft.model.pool import LOCAL_POOL
from updraft.model.states import State, Wanted
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.attendance import Attendance
from updraft.server.services.background import Background
from updraft.server.services.core import Core
from updraft.server.services.dependencies import Dependencies, unmet_of
from updraft.server.services.endings import Endings
from updraft.server.services.events import Changes
from updraft.server.services.granting import Granting
from updraft.server.services.intake import Intake
from updraft.server.services.live import Client, LiveJob
from updraft.server.services.live_jobs import LiveJobs
from updraft.server.services.reconciling import Reconciling
from updraft.server.services.reports import Reports
from updraft.server.services.rows import live_array, live_attempt, live_job
from updraft.server.services.submitting import Submitting
from updraft.server.services.task_surroundings import TaskSurroundings
from updraft.server.services.timing import Timing
from updraft.storage.segments import DEFAULT_QUOTA_BYTES
from updraft.store import jobs as queries
from updraft.store.database import Database
from updraft.store.upstreams import ends_of
from updraft.wire import frames


class Execution:
    """All live jobs of this server.

    ``quota_bytes``: how much of each output stream is kept; ``default_pool``: of jobs that name
    none.
    """

    def __init__(
        self,
        database: Database,
        keys: EnvironmentKeys,
        relay: Relay,
        logs_folder: str,
        *,
        quota_bytes: int = DEFAULT_QUOTA_BYTES,
        default_pool: str = LOCAL_POOL,
    ) -> None:
        self.quota_bytes = quota_bytes
        self.relay = relay
        self.changes = Changes()
        self.live = LiveJobs(logs_folder, quota_bytes)
        self.intake = Intake(relay, quota_bytes)
        self.attendance = Attendance(self.live, self._give_up)
        self._database = database
        self._background = Background(database)
        self._surroundings = TaskSurroundings(keys)
        self._timing = Timing(self._begin, self._expire_soon)
        self.dependencies = Dependencies(self._may_run, self._give_up)
        core = Core(
            database,
            keys,
            self._background,
            self.live,
            relay,
            self.intake,
            self.changes,
            self._timing,
            self.dependencies,
            self._surroundings,
        )
        self._endings = Endings(core, self.schedule)
        self._endings.forsake = self._forsake
        self._granting = Granting(core, self._endings, quota_bytes)
        self.arrays = self._granting.arrays
        self.submitting = Submitting(
            core, self._granting, self._endings, self.attendance, default_pool
        )
        self.reports = Reports(core, self._endings)
        self.runners = Reconciling(
            core, self._granting, self._endings, self.reports, self.attendance
        )

    async def load(self) -> None:
        """Take over the live jobs that an earlier server left."""

        def read(connection: Connection) -> tuple[Any, ...]:
            rows = queries.live_jobs(connection)
            return (
                queries.last_serials(connection),
                rows,
                queries.live_attempts(connection),
                queries.attempt_counts(connection),
                {
                    row["serial"]: queries.tasks_of(connection, row["serial"])
                    for row in rows
                    if row["kind"] == Kind.ARRAY
                },
                queries.ancestors(connection),
            )

        serials, rows, attempts, counts, tasks, ancestors = await self._database.read(read)
        self.submitting.last_serial, self.live.last_attempt = serials
        for row in rows:
            job = live_job(row, counts.get(row["serial"], 0))
            if row["kind"] == Kind.ARRAY:
                job.array = live_array(row, tasks[row["serial"]])
                job.start_stored = job.started_ns is not None
            self.dependencies.add(job)
            self.live.add(job)
            self._timing.watch(job)
            self.attendance.expect_after_restart(job)
        for row in sorted(attempts, key=lambda each: each["serial"]):
            job = self.live.jobs[row["job_serial"]]
            if job.array is not None:
                self.live.hold_task(job, row)
                continue
            attempt = live_attempt(row, job)
            self.live.families.borrow_again(job, attempt)
            self.live.hold(job, attempt)
        for job in self.live.jobs.values():
            if job.array is not None:
                self.live.wait(job)
                self.arrays.kick(job)
        for job, why in self.live.families.load(ancestors):
            self._give_up(job, why)
        waiting = self.dependencies.waiting()
        edges = [edge for job in waiting for edge in unmet_of(job)]
        ends = await self._database.read(lambda c: ends_of(c, edges))
        for job in waiting:
            self.dependencies.settle(job, ends)

    def serve_tasks_at(self, socket: str) -> None:
        """Let tasks of this machine's runner know the server's socket."""
        self._surroundings.socket = os.fsencode(socket)

    def schedule(self) -> None:
        """Look at the queues soon, since something changed."""
        self._granting.schedule()

    # -- requests about a live job

    async def cancel(self, job: LiveJob, why: str = "cancelled", *, patient: bool = False) -> None:
        """End a job: SIGTERM, its grace, SIGKILL.  The wish is stored before it is acted on.

        ``patient``: however long the database is away.  Raises ``errors.NotReady`` when it is, and
        ``errors.DiskFull`` when the wish cannot be stored; a job that runs, and may be what fills
        the disk, is ended all the same.
        """
        before, job.wanted = job.wanted, Wanted.CANCEL
        try:
            if job.waiting:
                outcome = Outcome(State.CANCELLED, None, why)
                await self._endings.finish_unstarted(job, outcome, patient=patient)
                return
            await self._write_job(job, {"wanted": Wanted.CANCEL}, patient=patient)
        except errors.NotReady:
            job.wanted = before
            raise
        except errors.DiskFull as error:
            if job.waiting:
                job.wanted = Wanted.RUN
                raise
            self._kill(job)
            raise errors.DiskFull(
                f"job {job.id} is being ended, but this could not be stored: {error.message}"
            ) from error
        self._kill(job)
        self._forsake(job, f"job {job.id}, which submitted it, was cancelled")

    def _forsake(self, job: LiveJob, why: str) -> None:
        """Cancel the children of a job that is cancelled, or was lost, and theirs with them."""
        for child in self.live.families.children(job.id):
            # Also one that is ending: it may be about to be tried again.
            if child.wanted is not Wanted.CANCEL:
                self._give_up(child, why)

    def _kill(self, job: LiveJob) -> None:
        why = "deadline" if job.expired else "cancel"
        if job.array is not None:
            self.arrays.cancel(job, why)
            return
        runner = self.live.runner_of(job)
        if runner is not None and job.attempt is not None:
            runner.kill(job.attempt.serial, why, job.grace_ms)

    def _begin(self, job: LiveJob) -> None:
        if job.waiting or job.array is not None:
            self.live.wait(job)
            self.schedule()

    def _may_run(self, job: LiveJob) -> None:
        """What a job waited for has come, or some of its tasks may run."""
        self.live.wait(job)
        if job.array is not None:
            self.arrays.kick(job)
        self.changes.changed(job.serial)
        self.schedule()

    def _expire_soon(self, job: LiveJob) -> None:
        self._background.spawn(self._expire(job), f"expire {job.id}")

    async def _expire(self, job: LiveJob) -> None:
        """End a job whose deadline is over; one that runs has its grace."""
        if job.ending:
            return
        job.expired = True
        if job.waiting:
            outcome = Outcome(State.EXPIRED, None, "its deadline was reached before it started")
            await self._endings.finish_unstarted(job, outcome, patient=True)
            return
        job.wanted = Wanted.CANCEL
        self._kill(job)
        self._forsake(job, f"job {job.id}, which submitted it, has expired")

    async def cancel_all(self) -> None:
        """Cancel every live job."""
        for job in list(self.live.jobs.values()):
            await self.cancel(job)

    async def set_time_limit(self, job: LiveJob, limit_ms: int | None) -> None:
        """Change a job's time limit, counted from its start."""
        await self._write_job(job, {"time_limit_ms": limit_ms})
        job.time_limit_ms = limit_ms
        self.live.forward(job, frames.DEADLINE, {"limit_ms": limit_ms})

    async def detach_client(self, job: LiveJob, client: Client) -> None:
        """The job's client leaves on purpose: stored, so that a restart does not miss it."""
        self.attendance.left(job, client)
        self.live.left_alone(job)
        await self._write_job(job, {"detached": True})

    def _give_up(self, job: LiveJob, why: str) -> None:
        self._background.spawn(self._cancel_if_live(job, why), f"cancel {job.id}")

    async def _cancel_if_live(self, job: LiveJob, why: str) -> None:
        with suppress(errors.Conflict):  # it came to its end meanwhile
            await self.cancel(job, why, patient=True)

    async def _write_job(
        self, job: LiveJob, values: dict[str, Any], *, patient: bool = False
    ) -> None:
        def store(connection: Connection) -> bool:
            return queries.move_job(connection, job.serial, queries.LIVE, values)

        if not await self._database.write(store, patient=patient):
            raise errors.Conflict(f"job {job.id} has ended")

    # -- ending

    def close(self) -> None:
        """Begin nothing new: this server ends, and the next one goes on."""
        self._background.closing = True

    def drain(self) -> None:
        """Take no more jobs, however long those that there are take: no server comes after this."""
        self._background.draining = True
        self.close()

    async def settle(self) -> None:
        """Wait for the writes that are under way; those that wait for room are given up."""
        await self._background.settle()

"""Grants: which job starts where, and what its runner is sent.

Capacity is reserved before a grant is written, so that two grants never count on the same CPU; a
runner hears of a grant once it is on the disk.
"""

from __future__ import annotations

import asyncio
import os
import time
from typing import Any

from sqlalchemy import Connection

from updraft.model.job import Outcome, name_of
from updraft.model.states import State, Wanted
from updraft.scheduling.capacity import NOTHING
from updraft.scheduling.queue import Grant, place
from updraft.server.services.arrays import Arrays
from updraft.server.services.core import Core
from updraft.server.services.endings import Endings
from updraft.server.services.live import Lender, LiveAttempt, LiveJob
from updraft.server.services.rows import attempt_row
from updraft.server.services.specs import spec_of
from updraft.store import jobs as queries
from updraft.wire import frames
from updraft.wire.packing import unpack_dict


class Granting:
    """Takes jobs from the queues of their pools to runners."""

    def __init__(self, core: Core, endings: Endings, quota_bytes: int) -> None:
        self.arrays = Arrays(core, endings, self.schedule, quota_bytes)
        self._database = core.database
        self._keys = core.keys
        self._background = core.background
        self._live = core.live
        self._relay = core.relay
        self._intake = core.intake
        self._changes = core.changes
        self._endings = endings
        self._quota_bytes = quota_bytes
        self._surroundings = core.surroundings
        self._schedule_due = False

    def grant_now(self, job: LiveJob) -> tuple[LiveAttempt | None, dict[str, Any] | None]:
        """Grant a new job at once when nobody waits before it and it fits."""
        if job.array is not None or job.not_before_ns is not None or job.waits_for:
            return None, None
        queued = len(self._live.queue(job.pool)) > 1 and job.need != NOTHING
        headrooms = self._live.holdings.headrooms([job.party])
        families = self._live.families
        runner = families.runner_of_parent(job)
        if runner is not None:
            # Where its directory is: in what is free there, or else in what its parent holds.
            near = [] if queued or runner.node is None else [runner.node]
            grant, loan = place(job.place, near, headrooms), families.loan(job)
            if grant is not None:
                return self._grant(job, grant)
            if loan is not None:
                return self._grant(job, *loan)
        if queued:
            return None, None
        grant = place(job.place, self._live.nodes(job.pool), headrooms)
        return (None, None) if grant is None else self._grant(job, grant)

    def _grant(
        self, job: LiveJob, grant: Grant, lender: Lender | None = None
    ) -> tuple[LiveAttempt, dict[str, Any]]:
        runner = self._live.runners[grant.node]
        runner.free = runner.free.without(grant.need, grant.gpus)
        attempt = LiveAttempt(
            self._live.new_serial(),
            job.attempts + 1,
            runner.name,
            grant.need,
            grant.gpus,
            time.time_ns(),
        )
        attempt.unpaid_cpus_milli = job.unpaid_cpus_milli
        if lender is not None:
            attempt.lender, attempt.borrows = lender, job.need
        self._live.hold(job, attempt)
        return attempt, attempt_row(job, attempt)

    def schedule(self) -> None:
        """Look at the queue soon: once for all that changes in this turn of the loop."""
        if not self._schedule_due:
            self._schedule_due = True
            asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        self._schedule_due = False
        for pool in self._live.pools:
            queue = self._live.queue(pool)
            if not len(queue):
                continue
            for child, loan, lender in self._live.families.loans(pool):
                attempt, values = self._grant(child, loan, lender)
                self._background.spawn(
                    self._store_grant(child, attempt, values), f"grant {child.id}"
                )
            headrooms = self._live.holdings.headrooms(queue.parties())
            grants = queue.choose(self._live.nodes(pool), headrooms)
            for grant in grants:
                job = self._live.jobs[grant.serial]
                if job.array is not None:
                    self.arrays.granted(job, grant)
                    self._live.families.look_at(job.id)
                    self._live.wait(job)
                    continue
                attempt, values = self._grant(job, grant)
                self._background.spawn(self._store_grant(job, attempt, values), f"grant {job.id}")
            if grants:
                self.schedule()  # other stages of their pipelines may start now

    async def _store_grant(
        self, job: LiveJob, attempt: LiveAttempt, values: dict[str, Any]
    ) -> None:
        def store(connection: Connection) -> bool:
            queries.insert_attempt(connection, values)
            return True

        try:
            await self._background.write(store)
        except BaseException:
            self._live.release(job, attempt)
            self._live.wait(job)
            raise
        attempt.stored = True
        await self.spawn_stored(job, attempt)

    async def spawn_stored(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """Send a grant whose command and environment are in the database."""
        row = await self._background.read(lambda c: queries.command_of(c, job.serial))
        if job.attempt is not attempt or job.ending:
            return  # it is another's turn, or nobody's
        environment = None
        if row.environment is not None and row.key_slot is not None:
            environment = self._keys.decrypt(row.key_slot, row.environment)
        if environment is None:
            end = {"refused": "start", "errno": 0, "message": "its stored environment is lost"}
            await self._endings.finish(job, attempt, {**end, "stdout": 0, "stderr": 0})
            return
        command = unpack_dict(row.command)
        job.command_name = name_of(command["argv"])
        if job.wanted is Wanted.CANCEL:
            outcome = Outcome(State.CANCELLED, None, "cancelled before it started")
            await self._endings.finish_unstarted(job, outcome, patient=True)
            return
        self.send_spawn(job, attempt, command, environment)

    def send_spawn(
        self, job: LiveJob, attempt: LiveAttempt, command: dict[str, Any], environment: bytes
    ) -> None:
        """Send a grant that is stored to its runner, if that is there."""
        if job.attempt is not attempt or job.ending:
            return  # given up while it was being stored, or looked up
        runner = self._live.runners.get(attempt.runner)
        if runner is None or runner.control is None or runner.data is None:
            return  # gone meanwhile; reconciling with it sends the grant again
        if runner.ships:
            self.begin_intake(job, attempt)
            self._intake.granted(attempt.serial, runner.data)
        if job.client is not None:
            job.client.attempt_granted(job, attempt)
        limit = frames.NO_LIMIT if job.client is None else frames.OUTPUT_WINDOW_BYTES
        shared = spec_of(job, command, environment, self._quota_bytes)
        spec = {
            **shared,
            **self._surroundings.of(job, attempt.serial, shared, runner),
            "gpus": list(attempt.gpus),
            "folder": os.fsencode(self._live.folder_of(job.id, attempt.number)),
            "attached": job.client is not None,
            "limits": [limit, limit],
        }
        spec["environment"] += b"\0UPDRAFT_ATTEMPT=%d" % attempt.number
        self._relay.granted(attempt.serial, runner.data, ships=runner.ships)
        attempt.keeper = runner.keeper
        runner.control.send_message(frames.SPAWN, spec, attempt.serial << 2)
        self._live.send_signals(runner, attempt)

    def begin_intake(self, job: LiveJob, attempt: LiveAttempt, *, fresh: bool = True) -> None:
        """Take in the output of an attempt on another machine; ``fresh``: nothing is here yet."""
        if not self._intake.holds(attempt.serial):
            folder = str(self._live.folder_of(job.id, attempt.number))
            self._intake.begin(
                attempt.serial, folder, lambda: self._changes.grew(job.serial), fresh=fresh
            )

"""Carries jobs from their submission to their end: grants, reports, retries, cancellation.

What is in memory is a copy of what is stored: every change is written first, guarded by the state
that it expects, and applied here once the write is on the disk.  Capacity is reserved before the
write, so that two grants never count on the same CPU.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from updraft import errors, faults
from updraft.model.access import Principal
from updraft.model.ending import outcome_of
from updraft.model.job import Outcome, Submission, new_job_id
from updraft.model.pool import LOCAL_POOL, Pool
from updraft.model.states import AttemptState, State, Wanted
from updraft.scheduling.capacity import NOTHING, Capacity
from updraft.scheduling.queue import Grant, place
from updraft.scheduling.reasons import never_fits
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.attendance import Attendance
from updraft.server.services.events import Changes
from updraft.server.services.intake import Intake
from updraft.server.services.live import Client, LiveAttempt, LiveJob, LiveRunner
from updraft.server.services.live_jobs import LiveJobs
from updraft.server.services.rows import (
    attempt_row,
    command_body,
    ended_attempt_values,
    ended_values,
    event_row,
    job_row,
    live_attempt,
    live_job,
    start_of,
    start_writes,
)
from updraft.storage.segments import DEFAULT_QUOTA_BYTES, SegmentReader
from updraft.store import jobs as queries
from updraft.store.database import Database, Undecided, Work
from updraft.wire import frames
from updraft.wire.packing import pack, unpack_dict

log = logging.getLogger("updraft.execution")

_DISK_RETRY_SECONDS = 1.0
_START_WRITE_DELAY_SECONDS = 0.02
"""A start is stored a moment later: most short tasks end meanwhile, and one write tells both."""

_FIRST_RUNNER_SECONDS = 5.0
"""How long a submission waits for the runner that a new server has just started."""


class Execution:
    """All live jobs of this server."""

    def __init__(
        self, database: Database, keys: EnvironmentKeys, relay: Relay, logs_folder: str
    ) -> None:
        self._database = database
        self._keys = keys
        self.relay = relay
        self.changes = Changes()
        self.live = LiveJobs(logs_folder)
        self.intake = Intake(relay)
        self.attendance = Attendance(self.live, self._give_up)
        self._job_serial = 0
        self._attempt_serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._schedule_due = False
        self._some_runner = asyncio.Event()
        self._settling = self._settled = False
        self.closing = False
        """This server ends; the next one goes on."""
        self.draining = False
        """No new jobs are taken, for as long as it takes to end those that there are."""
        self.quota_bytes = DEFAULT_QUOTA_BYTES
        self.default_pool = LOCAL_POOL
        self.launched: Callable[[str, float, float], None] = lambda *_: None
        """Counts a launch: its pool, how long it was queued, how long its runner took (s)."""

    # -- starting up

    async def load(self) -> None:
        """Take over the live jobs that an earlier server left."""

        def read(connection: Connection) -> tuple[Any, ...]:
            return (
                queries.last_serials(connection),
                queries.live_jobs(connection),
                queries.live_attempts(connection),
                queries.attempt_counts(connection),
            )

        (
            (self._job_serial, self._attempt_serial),
            rows,
            attempts,
            counts,
        ) = await self._database.read(read)
        for row in rows:
            job = live_job(row, counts.get(row["serial"], 0))
            self.live.add(job)
            self.attendance.expect_after_restart(job)
        for row in attempts:
            job = self.live.jobs[row["job_serial"]]
            self.live.hold(job, live_attempt(row, job))
        self.intake.quota_bytes = self.quota_bytes

    # -- submitting

    async def submit(
        self,
        who: Principal,
        submission: Submission,
        environment: bytes,
        client: Client | None = None,
    ) -> str:
        """Store a job, and start it at once if there is room.  Returns its id, once durable.

        A key that was seen before returns that job's id.  ``client`` is attached to a new job.
        """
        pool = self._pool_of(who, submission.pool)
        await self._first_runner(pool)
        self._check_that_it_fits(who, submission, pool)
        time_limit_ms = _time_limit(submission.policy.time_limit_ms, pool)
        if self.draining:
            raise errors.Unavailable("the server is stopping; try again")
        if self.closing:
            raise errors.NotReady("the server is being restarted")
        self._job_serial += 1
        slot, encrypted = self._keys.encrypt(environment)
        now = time.time_ns()
        policy = submission.policy
        job = LiveJob(
            serial=self._job_serial,
            id=new_job_id(),
            owner=who.owner,
            project=who.project,
            pool=pool.name,
            name=submission.name,
            need=submission.resources,
            priority=policy.priority,
            retries=policy.retries,
            time_limit_ms=time_limit_ms,
            keep_alive_ms=policy.keep_alive_ms,
            grace_ms=policy.grace_ms,
            attached=submission.attached,
            created_ns=now,
            command_name=os.fsdecode(submission.command.argv[0]),
            terminal=submission.command.terminal is not None,
            key_slot=slot,
            client=client,
            pipes=submission.pipes,
        )
        command = command_body(submission)
        values = job_row(job, submission, pool.jurisdiction, pack(command), encrypted)
        self.live.add(job)
        attempt, attempt_values = self._grant_now(job)
        events = [event_row(job, State.IN_QUEUE, "submitted")]

        def store(connection: Connection) -> str | None:
            queries.insert_job(connection, values, attempt_values, events)
            return None

        try:
            await self._database.decide(store)
        except Undecided as error:
            # The same key finds the job, if it is stored in the end.
            rest = self._stored_late(job, attempt, error.outcome)
            self._spawn_task(rest, f"store {job.id}")
            raise errors.NotReady(
                "the server's database is away; ask again with the same key"
            ) from error
        except IntegrityError:
            self._drop(job)
            known = await self._database.read(
                lambda connection: queries.find_submitted(
                    connection, who.owner, submission.key, who.project
                )
            )
            if known is None:
                raise
            return known
        except BaseException:
            self._drop(job)
            raise
        faults.reached("insert-ack")
        if client is not None:
            client.accepted(job)
        if attempt is not None:
            attempt.stored = True
            self._send_spawn(job, attempt, command, environment)
        self.schedule()  # for itself, or for the stages of a pipeline that wait for it
        return job.id

    async def _stored_late(
        self, job: LiveJob, attempt: LiveAttempt | None, outcome: asyncio.Future[Any]
    ) -> None:
        """Wait whether a job is stored whose client was told to ask again, and go on with it."""
        client, job.client = job.client, None
        try:
            await outcome
        except Exception:
            self._drop(job)
            raise
        if client is not None:
            job.client = client
            self.attendance.lost(job, client)  # its connection was ended with that answer
        if attempt is not None:
            attempt.stored = True
            await self._spawn_stored(job, attempt)
        self.schedule()

    def _pool_of(self, who: Principal, name: str) -> Pool:
        """Return the pool that a submission names, or the one that is meant when it names none."""
        name = name or self.default_pool
        pool = self.live.pools.get(name)
        if pool is None or not pool.takes(who.project):
            known = sorted(
                each.name for each in self.live.pools.values() if each.takes(who.project)
            )
            if not name and known:
                raise errors.BadRequest(f"which pool? choose one with -P: {', '.join(known)}")
            raise errors.BadRequest(
                f"there is no pool {name!r}; the pools are: {', '.join(known)}"
                if known
                else "there is no pool yet; an administrator makes one: updraft pool create NAME"
            )
        if pool.draining:
            raise errors.Conflict(f"pool {name} is being drained and takes no new jobs")
        return pool

    def _check_that_it_fits(self, who: Principal, submission: Submission, pool: Pool) -> None:
        need = submission.resources
        totals: list[Capacity] = []
        for runner in self.live.runners_of(pool.name):
            if runner.known.serves in (None, who.owner):
                if runner.total.fits(need):
                    return
                totals.append(runner.total)
        problem = never_fits(need, totals, pool.name)
        if problem is not None:
            raise errors.BadRequest(problem)

    async def _first_runner(self, pool: Pool) -> None:
        """Wait for the runner that a new server has just started: it knows what there is."""
        if pool.name == LOCAL_POOL and not self.live.runners:
            try:
                async with asyncio.timeout(_FIRST_RUNNER_SECONDS):
                    await self._some_runner.wait()
            except TimeoutError:
                log.warning("no runner has come yet; what is submitted waits for one")

    def _grant_now(self, job: LiveJob) -> tuple[LiveAttempt | None, dict[str, Any] | None]:
        """Grant a new job at once when nobody waits before it and it fits."""
        if len(self.live.queue(job.pool)) > 1 and job.need != NOTHING:
            return None, None
        headrooms = self.live.holdings.headrooms([job.party])
        grant = place(job.place, self.live.nodes(job.pool), headrooms)
        return (None, None) if grant is None else self._grant(job, grant)

    def _grant(self, job: LiveJob, grant: Grant) -> tuple[LiveAttempt, dict[str, Any]]:
        runner = self.live.runners[grant.node]
        runner.free = runner.free.without(grant.need, grant.gpus)
        self._attempt_serial += 1
        attempt = LiveAttempt(
            self._attempt_serial,
            job.attempts + 1,
            runner.name,
            grant.need,
            grant.gpus,
            time.time_ns(),
        )
        self.live.hold(job, attempt)
        return attempt, attempt_row(job, attempt)

    def _send_spawn(
        self, job: LiveJob, attempt: LiveAttempt, command: dict[str, Any], environment: bytes
    ) -> None:
        runner = self.live.runners[attempt.runner]
        if runner.control is None or runner.data is None:
            return  # gone meanwhile; reconciling with it sends the grant again
        if runner.ships:
            self._begin_intake(job, attempt)
            self.intake.granted(attempt.serial, runner.data)
        if job.client is not None:
            job.client.attempt_granted(job, attempt)
        limit = frames.NO_LIMIT if job.client is None else frames.OUTPUT_WINDOW_BYTES
        extra = b"\0UPDRAFT_JOB_ID=%b\0UPDRAFT_ATTEMPT=%d" % (job.id.encode(), attempt.number)
        if job.need.gpus:
            extra += b"\0CUDA_VISIBLE_DEVICES=" + ",".join(attempt.gpus).encode()
        tty = command["tty"]
        spec = {
            **command,
            "job": job.id,
            "owner": job.owner,
            "project": job.project,
            "gpus": list(attempt.gpus),
            "folder": os.fsencode(self.live.folder_of(job.id, attempt.number)),
            "environment": environment + extra,
            "attached": job.client is not None,
            "limits": [limit, limit],
            "memory_bytes": job.need.memory_bytes,
            "cpus_milli": job.need.cpus_milli,
            "grace_ms": job.grace_ms,
            "deadline_ms": job.time_limit_ms,
            "quota_bytes": self.quota_bytes,
            "tty": tty,
        }
        self.relay.granted(attempt.serial, runner.data, ships=runner.ships)
        runner.control.send_message(frames.SPAWN, spec, attempt.serial << 2)
        self.live.send_signals(runner, attempt)

    def _begin_intake(self, job: LiveJob, attempt: LiveAttempt, *, fresh: bool = True) -> None:
        if not self.intake.holds(attempt.serial):
            folder = str(self.live.folder_of(job.id, attempt.number))
            self.intake.begin(
                attempt.serial, folder, lambda: self.changes.grew(job.serial), fresh=fresh
            )

    # -- scheduling

    def schedule(self) -> None:
        """Look at the queue soon: once for all that changes in this turn of the loop."""
        if not self._schedule_due:
            self._schedule_due = True
            asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        self._schedule_due = False
        for pool in self.live.pools:
            queue = self.live.queue(pool)
            if not len(queue):
                continue
            headrooms = self.live.holdings.headrooms(queue.parties())
            grants = queue.choose(self.live.nodes(pool), headrooms)
            for grant in grants:
                job = self.live.jobs[grant.serial]
                attempt, values = self._grant(job, grant)
                self._spawn_task(self._store_grant(job, attempt, values), f"grant {job.id}")
            if grants:
                self.schedule()  # other stages of their pipelines may start now

    async def _store_grant(
        self, job: LiveJob, attempt: LiveAttempt, values: dict[str, Any]
    ) -> None:
        def store(connection: Connection) -> bool:
            queries.insert_attempt(connection, values)
            return True

        await self._write_when_there_is_room(store)
        attempt.stored = True
        await self._spawn_stored(job, attempt)

    async def _spawn_stored(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """Send a grant whose command and environment are in the database."""
        row = await self._database.read(lambda c: queries.command_of(c, job.serial), patient=True)
        environment = None
        if row.environment is not None and row.key_slot is not None:
            environment = self._keys.decrypt(row.key_slot, row.environment)
        if environment is None:
            end = {"refused": "start", "errno": 0, "message": "its stored environment is lost"}
            await self._finish(job, attempt, {**end, "stdout": 0, "stderr": 0})
            return
        command = unpack_dict(row.command)
        job.command_name = os.fsdecode(command["argv"][0])
        if job.wanted is Wanted.CANCEL:
            await self._finish_unstarted(job, "cancelled before it started", patient=True)
            return
        self._send_spawn(job, attempt, command, environment)

    # -- runners

    def runner_joined(self, runner: LiveRunner, reports: list[dict[str, Any]]) -> None:
        """A runner has connected, with all that its keeper holds: reconcile."""
        runner.free = self.live.free_beside(runner.name, runner.total)
        self.live.runners[runner.name] = runner
        self._some_runner.set()
        known: set[int] = set()
        forget: list[int] = []
        relayed: list[int] = []
        for report in reports:
            serial = report["attempt"]
            job = self.live.by_attempt.get(serial)
            end = report.get("end")
            if job is None or job.attempt is None or job.attempt.serial != serial:
                # Ended or superseded here: nothing that it says is taken any more.
                if end is not None:
                    forget.append(serial)
                else:
                    self._send_kill(runner, serial, "stale", 0)
                continue
            known.add(serial)
            relayed.append(serial)
            if runner.ships and runner.data is not None:
                self._begin_intake(job, job.attempt, fresh=False)
                self.intake.runner_joined(serial, runner.data)
            if report.get("pid") is not None:
                self.attempt_started(serial, report)
            if end is None:
                self.live.send_signals(runner, job.attempt)
                self.attendance.runner_is_back(job)
                # It may have been changed while the runner, or this server, was away.
                self.live.forward(job, frames.DEADLINE, {"limit_ms": job.time_limit_ms})
                if job.hung_up:  # an agent that was killed may have had the word with it
                    self.attendance.hang_up(job)
                if job.wanted is Wanted.CANCEL:
                    self._send_kill(runner, serial, "cancel", job.grace_ms)
        if forget and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": forget})
        if runner.data is not None:
            self.relay.runner_joined(relayed, runner.data, ships=runner.ships)
        for report in reports:
            if report["attempt"] in known and report.get("end") is not None:
                self.attempt_exited(report["attempt"], report["end"])
        for held in self.live.attempts_on(runner.name):
            attempt = held.attempt
            if attempt is None or attempt.serial in known:
                continue
            attempt.spawned = False
            if not attempt.stored:
                continue  # it is sent once it is
            if attempt.started_ns is None:
                # The keeper notes an attempt before it starts it, so this one never started.
                self._spawn_task(self._spawn_stored(held, attempt), f"grant {held.id} again")
            else:
                end = {"lost": "its runner does not know it any more"}
                self.attempt_exited(attempt.serial, end)
        self.schedule()

    def is_on(self, serial: int, runner: LiveRunner) -> bool:
        """Whether this attempt is recognised, and that runner's: others' word is not taken."""
        job = self.live.by_attempt.get(serial)
        return (
            job is not None
            and job.attempt is not None
            and job.attempt.runner == runner.name
            and self.live.runners.get(runner.name) is runner
        )

    def runner_left(self, runner: LiveRunner) -> None:
        """The runner's connection is gone; its tasks go on."""
        runner.control = None
        if self.live.runners.get(runner.name) is runner:
            for held in self.live.attempts_on(runner.name):
                if held.attempt is not None:
                    held.attempt.spawned = False
        if runner.data is not None:
            self.intake.runner_left(runner.data)
            self.relay.runner_left(runner.data)
            runner.data = None

    def hang_up(self, runner: LiveRunner) -> None:
        """End a silent runner's connections: if it lives, it dials again."""
        if runner.control is not None:
            runner.control.abort()

    def runner_removed(self, runner: LiveRunner) -> None:
        """A runner is to be one no more; what it had is given up."""
        self.hang_up(runner)
        self.live.runners.pop(runner.name, None)
        self.runner_lost(runner, f"its runner {runner.name} was removed")

    def runner_lost(self, runner: LiveRunner, why: str) -> None:
        """A runner's lease has run out: what it had is given up, and tried again where asked."""
        runner.lost = True
        for held in self.live.attempts_on(runner.name):
            if held.attempt is not None and not held.ending:
                self._end_attempt(held, held.attempt, {"lost": why})

    # -- reports

    def attempt_started(self, serial: int, started: dict[str, Any]) -> None:
        """The command of an attempt runs; ``started`` has its ``pid``, and ``at`` when."""
        job = self.live.by_attempt.get(serial)
        if job is None or job.attempt is None or job.attempt.started_ns is not None:
            return
        attempt = job.attempt
        attempt.pid, attempt.started_ns = started["pid"], started["at"]
        job.state = State.RUNNING
        if job.started_ns is None:
            queued_ns = attempt.granted_ns - job.created_ns
            started_ns = started["at"] - attempt.granted_ns
            self.launched(job.pool, max(queued_ns, 0) / 1e9, max(started_ns, 0) / 1e9)
        job.started_ns = job.started_ns or attempt.started_ns
        if job.client is not None:
            told = ("pid", "clamped_limits", "unenforced", "directory")
            job.client.forward(frames.STARTED, {k: started[k] for k in told if k in started})
        asyncio.get_running_loop().call_later(
            _START_WRITE_DELAY_SECONDS, self._store_start_soon, job, attempt
        )

    def _store_start_soon(self, job: LiveJob, attempt: LiveAttempt) -> None:
        if job.attempt is attempt and not job.ending and not attempt.start_stored:
            self._spawn_task(self._store_start(job, attempt), f"start {job.id}")

    async def _store_start(self, job: LiveJob, attempt: LiveAttempt) -> None:
        while job.attempt is attempt and not job.ending and not attempt.start_stored:
            attempt.start_stored = True
            try:
                await self._database.write(start_writes(job, attempt), patient=True)
            except errors.DiskFull:
                attempt.start_stored = False
                await self._wait_for_room()
            else:
                self.changes.changed(job.serial)

    def attempt_said(self, serial: int, kind: int, body: dict[str, Any]) -> None:
        """The command was stopped or continued by job control."""
        job = self.live.by_attempt.get(serial)
        if job is not None and job.attempt is not None:
            job.attempt.stopped = kind == frames.STOPPED
            if job.client is not None:
                job.client.forward(kind, body)

    def output_grew(self, serial: int) -> None:
        """An output stream of an attempt has grown: wake those who follow it."""
        job = self.live.by_attempt.get(serial)
        if job is not None:
            self.changes.grew(job.serial)

    def attempt_exited(self, serial: int, end: dict[str, Any]) -> None:
        """An attempt ended; its processes are gone and its output is spooled."""
        job = self.live.by_attempt.get(serial)
        if job is None or job.attempt is None or job.ending:
            return
        attempt = job.attempt
        if self.intake.holds(serial) and "stdout" in end:
            # The end shows once all output is here; a runner that goes away tells it anew.
            lengths = (end["stdout"], end["stderr"])
            self.intake.when_complete(serial, lengths, lambda: self._end_attempt(job, attempt, end))
        else:
            self._end_attempt(job, attempt, end)

    def _end_attempt(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> None:
        self._spawn_task(self._finish(job, attempt, end), f"end {job.id}")

    async def _finish(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> None:
        if job.ending or job.attempt is not attempt:
            return
        job.ending = True
        now = time.time_ns()
        outcome = outcome_of(end, job.command_name, job.need.memory_bytes)
        lost = "lost" in end
        again = (
            lost and job.wanted is Wanted.RUN and attempt.number <= job.retries and not self.closing
        )
        lengths = self._lengths(job, attempt, end)
        attempt_values = ended_attempt_values(outcome, end, lengths)
        if again:
            job_values: dict[str, Any] = {"state": State.IN_QUEUE, "message": outcome.message}
            said = [
                event_row(job, State.IN_QUEUE, f"{outcome.message}; trying again", attempt.number)
            ]
        else:
            job_values = ended_values(outcome, end.get("at", now))
            said = [event_row(job, outcome.state, outcome.message, attempt.number)]
        if attempt.started_ns is not None and not attempt.start_stored:
            # A short task's start and end are one write, of as many statements as an end alone.
            attempt.start_stored = True
            start = start_of(job, attempt)
            attempt_values = {**start.attempt, **attempt_values}
            job_values = {**start.job, **job_values}
            said.insert(0, start.event)

        def store(connection: Connection) -> bool:
            moved = queries.move_attempt(
                connection, attempt.serial, ("GRANTED", "RUNNING", "STOPPING"), attempt_values
            )
            moved = moved and queries.move_job(connection, job.serial, queries.LIVE, job_values)
            if moved:
                queries.insert_events(connection, said)
            return moved

        faults.reached("log-terminal")
        moved = await self._write_when_there_is_room(store)
        if not moved:
            log.error("the end of attempt %d of job %s was stale", attempt.number, job.id)
        self.live.release(job, attempt)
        self.intake.end(attempt.serial)
        runner = self.live.runners.get(attempt.runner)
        if runner is not None and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": [attempt.serial]})
        if again:
            job.ending = False
            job.state = State.IN_QUEUE
            self.live.wait(job)
            self.changes.changed(job.serial)
            if job.client is not None:
                job.client.say(f"{outcome.message}; trying again")
        else:
            self._end(job, outcome, lengths)
        self.relay.ended(attempt.serial)
        self.schedule()

    async def _write_when_there_is_room(self, store: Work[bool]) -> bool:
        """Write a grant or an ending, however long the disk is full: whoever waits can wait."""
        while True:
            try:
                return await self._database.write(store, patient=True)
            except errors.DiskFull as error:
                log.error("%s; trying again", error.message)  # noqa: TRY400 - no trace needed
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self._settling:  # the next server hears of it from the runner
            raise errors.DiskFull("the server ends while its disk is full")
        await asyncio.sleep(_DISK_RETRY_SECONDS)

    def _lengths(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> tuple[int, int]:
        """Return how much output an ended attempt has: its keeper's word, or what is stored."""
        if "stdout" in end:
            return end["stdout"], end["stderr"]
        folder = str(self.live.folder_of(job.id, attempt.number))
        return SegmentReader(folder, "stdout").length(), SegmentReader(folder, "stderr").length()

    def _end(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        """A terminal state is stored: tell everybody, and let the job go."""
        job.state = outcome.state
        client = job.client
        self._drop(job)
        if client is not None:
            client.job_ended(job, outcome, lengths)
        self.changes.changed(job.serial)

    def _drop(self, job: LiveJob) -> None:
        self.live.drop(job)
        if job.key_slot is not None:
            self._keys.shred(job.key_slot)
            job.key_slot = None

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
                await self._finish_unstarted(job, why, patient=patient)
                return
            await self._write_job(job, {"wanted": Wanted.CANCEL}, patient=patient)
        except errors.NotReady:
            job.wanted = before
            raise
        except errors.DiskFull as error:
            if job.attempt is None:
                job.wanted = Wanted.RUN
                raise
            self._kill(job)
            raise errors.DiskFull(
                f"job {job.id} is being ended, but this could not be stored: {error.message}"
            ) from error
        self._kill(job)

    def _kill(self, job: LiveJob) -> None:
        runner = self.live.runner_of(job)
        if runner is not None and job.attempt is not None:
            self._send_kill(runner, job.attempt.serial, "cancel", job.grace_ms)

    async def cancel_all(self) -> None:
        """Cancel every live job."""
        for job in list(self.live.jobs.values()):
            await self.cancel(job)

    async def _finish_unstarted(self, job: LiveJob, why: str, *, patient: bool = False) -> None:
        if job.ending:
            return
        job.ending = True
        outcome = Outcome(State.CANCELLED, None, why)
        values = {**ended_values(outcome, time.time_ns()), "wanted": Wanted.CANCEL}
        attempt = job.attempt

        def store(connection: Connection) -> None:
            if attempt is not None:
                ended = {"state": AttemptState.ENDED, "message": why}
                queries.move_attempt(connection, attempt.serial, ("GRANTED",), ended)
            if queries.move_job(connection, job.serial, queries.LIVE, values):
                queries.insert_events(connection, [event_row(job, State.CANCELLED, why)])

        async def finish(written: Awaitable[None]) -> None:
            try:
                await written
            except Undecided as error:
                self._spawn_task(finish(error.outcome), f"cancel {job.id}")
                raise errors.Unavailable(
                    f"the database went away while the end of job {job.id} was being stored; look "
                    f"whether it was: updraft job show {job.id}"
                ) from error
            except BaseException:
                job.ending = False
                raise
            if attempt is not None:
                self.live.release(job, attempt)
                self.intake.end(attempt.serial)
            self._end(job, outcome, (0, 0))
            self.schedule()

        await finish(self._database.decide(store, patient=patient))

    async def set_time_limit(self, job: LiveJob, limit_ms: int | None) -> None:
        """Change a job's time limit, counted from its start."""
        await self._write_job(job, {"time_limit_ms": limit_ms})
        job.time_limit_ms = limit_ms
        self.live.forward(job, frames.DEADLINE, {"limit_ms": limit_ms})

    async def detach_client(self, job: LiveJob, client: Client) -> None:
        """The job's client leaves on purpose: stored, so that a restart does not miss it."""
        self.attendance.left(job, client)
        await self._write_job(job, {"detached": True})

    def _give_up(self, job: LiveJob, why: str) -> None:
        self._spawn_task(self.cancel(job, why, patient=True), f"cancel {job.id}")

    async def _write_job(
        self, job: LiveJob, values: dict[str, Any], *, patient: bool = False
    ) -> None:
        def store(connection: Connection) -> bool:
            return queries.move_job(connection, job.serial, queries.LIVE, values)

        if not await self._database.write(store, patient=patient):
            raise errors.Conflict(f"job {job.id} has ended")

    def _send_kill(self, runner: LiveRunner, serial: int, why: str, grace_ms: int) -> None:
        if runner.control is not None:
            body = {"why": why, "grace_ms": grace_ms}
            runner.control.send_message(frames.KILL, body, serial << 2)

    # -- tasks of this service

    def _spawn_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        if self._settled:  # the next server hears of it from the runner
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def settle(self) -> None:
        """Wait for the writes that are under way, and begin no more.

        Those that wait for room are given up.
        """
        self._settling = True
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._settled = True


def _time_limit(asked_ms: int | None, pool: Pool) -> int | None:
    """Return a job's time limit within what its pool allows."""
    if pool.time_limit_ms is None or asked_ms is None:
        return pool.time_limit_ms if asked_ms is None else asked_ms
    if asked_ms > pool.time_limit_ms:
        raise errors.BadRequest(
            f"pool {pool.name} allows at most {pool.time_limit_ms / 1000:g} s; lower --time"
        )
    return asked_ms

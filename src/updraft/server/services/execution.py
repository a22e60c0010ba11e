"""Carries jobs from their submission to their end: grants, reports, retries, cancellation.

What is in memory is a copy of what is stored: every change is written first, guarded by the state
that it expects, and applied here once the write is on the disk.  Capacity is reserved before the
write, so that two grants never count on the same CPU.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import time
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from updraft import errors, faults
from updraft.model.ending import outcome_of
from updraft.model.job import (
    LOCAL_JURISDICTION,
    LOCAL_POOL,
    Outcome,
    Principal,
    Resources,
    Submission,
    new_job_id,
)
from updraft.model.states import AttemptState, State, Wanted
from updraft.scheduling.queue import NOTHING, PoolQueue, Waiting, never_fits, why_waiting
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.relay.relay import Relay
from updraft.server.services.events import Changes
from updraft.server.services.live import Client, LiveAttempt, LiveJob, LiveRunner
from updraft.storage.segments import DEFAULT_QUOTA_BYTES, SegmentReader
from updraft.store import jobs as queries
from updraft.store.database import Database, Work
from updraft.wire import frames
from updraft.wire.packing import pack, unpack_dict

log = logging.getLogger("updraft.execution")

_DISK_RETRY_SECONDS = 1.0
_START_WRITE_DELAY_SECONDS = 0.02
"""A start is stored a moment later: most short tasks end meanwhile, and one write tells both."""

SERVER_RESTART_WINDOW_SECONDS = 30.0
"""How long an attached job waits for its client after the server was restarted."""


class Execution:
    """All live jobs of this server."""

    def __init__(
        self, database: Database, keys: EnvironmentKeys, relay: Relay, logs_folder: str
    ) -> None:
        self._database = database
        self._keys = keys
        self.relay = relay
        self.changes = Changes()
        self._logs = Path(logs_folder)
        self._jobs: dict[int, LiveJob] = {}
        self._by_id: dict[str, LiveJob] = {}
        self._by_attempt: dict[int, LiveJob] = {}
        self._queues: dict[str, PoolQueue] = {}
        self.runners: dict[str, LiveRunner] = {}
        self._job_serial = 0
        self._attempt_serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._schedule_due = False
        self._some_end = asyncio.Event()
        self.closing = False
        self.quota_bytes = DEFAULT_QUOTA_BYTES

    # -- looking

    @property
    def live_count(self) -> int:
        """How many jobs have not ended."""
        return len(self._jobs)

    def counts(self) -> dict[str, int]:
        """Return how many live jobs run and wait."""
        running = sum(1 for job in self._jobs.values() if job.state is not State.IN_QUEUE)
        return {State.RUNNING: running, State.IN_QUEUE: len(self._jobs) - running}

    def find(self, job_id: str) -> LiveJob | None:
        """Return the live job with this id."""
        return self._by_id.get(job_id)

    def find_serial(self, serial: int) -> LiveJob | None:
        """Return the live job with this serial."""
        return self._jobs.get(serial)

    def folder_of(self, job_id: str, attempt_number: int) -> Path:
        """Return where an attempt's output is stored."""
        return self._logs / job_id / f"0.{attempt_number}"

    def reason(self, job: LiveJob) -> str:
        """Return why a job waits, computed now."""
        if job.attempt is not None:
            return "its runner is starting it" if self._runner_of(job) else "its runner is away"
        runner = next((r for r in self.runners.values() if r.pool == job.pool), None)
        if runner is None or runner.control is None:
            return f"pool {job.pool} has no runner yet"
        ahead = self._queue(job.pool).ahead_of(_waiting(job))
        return why_waiting(job.need, ahead, runner.free, job.pool)

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
            job = LiveJob(
                serial=row["serial"],
                id=row["id"],
                owner=row["owner"],
                project=row["project"],
                pool=row["pool"],
                name=row["name"],
                need=Resources(row["cpus_milli"], row["memory_bytes"], row["gpus"]),
                priority=row["priority"],
                retries=row["retries"],
                time_limit_ms=row["time_limit_ms"],
                keep_alive_ms=row["keep_alive_ms"],
                grace_ms=row["grace_ms"],
                attached=row["attached"],
                created_ns=row["created_ns"],
                command_name="the command",
                state=State(row["state"]),
                wanted=Wanted(row["wanted"]),
                detached=row["detached"],
                started_ns=row["started_ns"],
                attempts=counts.get(row["serial"], 0),
                key_slot=row["key_slot"],
            )
            self._add(job)
            if job.attached and not job.detached:
                self._expect_client(job, SERVER_RESTART_WINDOW_SECONDS)
        for row in attempts:
            job = self._jobs[row["job_serial"]]
            attempt = LiveAttempt(
                serial=row["serial"],
                number=row["number"],
                runner=row["runner"],
                gpus=tuple(json.loads(row["gpu_ids"])),
                granted_ns=row["granted_ns"],
                started_ns=row["started_ns"],
                pid=row["pid"],
                start_stored=row["state"] != AttemptState.GRANTED,
            )
            self._hold(job, attempt)

    def _add(self, job: LiveJob) -> None:
        self._jobs[job.serial] = job
        self._by_id[job.id] = job
        self._queue(job.pool).push(_waiting(job))

    def _queue(self, pool: str) -> PoolQueue:
        return self._queues.setdefault(pool, PoolQueue())

    def _hold(self, job: LiveJob, attempt: LiveAttempt) -> None:
        job.attempt = attempt
        job.attempts = max(job.attempts, attempt.number)
        self._by_attempt[attempt.serial] = job
        self._queue(job.pool).discard(_waiting(job))

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
        if submission.pool != LOCAL_POOL:
            raise errors.BadRequest(
                f"there is no pool {submission.pool!r}; the pools are: {LOCAL_POOL}"
            )
        runner = self.runners.get(LOCAL_POOL)
        if runner is not None:
            problem = never_fits(submission.resources, runner.total, submission.pool)
            if problem is not None:
                raise errors.BadRequest(problem)
        if self.closing:
            raise errors.Unavailable("the server is stopping; try again")
        self._job_serial += 1
        slot, encrypted = self._keys.encrypt(environment)
        now = time.time_ns()
        policy = submission.policy
        job = LiveJob(
            serial=self._job_serial,
            id=new_job_id(),
            owner=who.owner,
            project=who.project,
            pool=submission.pool,
            name=submission.name,
            need=submission.resources,
            priority=policy.priority,
            retries=policy.retries,
            time_limit_ms=policy.time_limit_ms,
            keep_alive_ms=policy.keep_alive_ms,
            grace_ms=policy.grace_ms,
            attached=submission.attached,
            created_ns=now,
            command_name=os.fsdecode(submission.command.argv[0]),
            terminal=submission.command.terminal is not None,
            key_slot=slot,
            client=client,
        )
        command = _command_body(submission)
        values = _job_values(job, submission, pack(command), encrypted)
        self._add(job)
        attempt, attempt_values = self._grant_now(job, runner)
        events = [_event(job, State.IN_QUEUE, "submitted")]

        def store(connection: Connection) -> str | None:
            queries.insert_job(connection, values, attempt_values, events)
            return None

        try:
            await self._database.write(store)
        except IntegrityError:
            self._drop(job)
            known = await self._database.read(
                lambda connection: queries.find_submitted(connection, who.owner, submission.key)
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
            self._send_spawn(job, attempt, command, environment)
        else:
            self.schedule()
        return job.id

    def _grant_now(
        self, job: LiveJob, runner: LiveRunner | None
    ) -> tuple[LiveAttempt | None, dict[str, Any] | None]:
        """Grant a new job at once when nobody waits before it and it fits."""
        if runner is None or runner.control is None:
            return None, None
        alone = len(self._queue(job.pool)) == 1 or job.need == NOTHING
        if not alone or not runner.free.fits(job.need):
            return None, None
        runner.free, gpus = runner.free.take(job.need)
        return self._grant(job, runner, gpus)

    def _grant(
        self, job: LiveJob, runner: LiveRunner, gpus: tuple[str, ...]
    ) -> tuple[LiveAttempt, dict[str, Any]]:
        self._attempt_serial += 1
        attempt = LiveAttempt(
            self._attempt_serial, job.attempts + 1, runner.name, gpus, time.time_ns()
        )
        self._hold(job, attempt)
        return attempt, {
            "serial": attempt.serial,
            "job_serial": job.serial,
            "task_index": 0,
            "number": attempt.number,
            "state": AttemptState.GRANTED,
            "runner": runner.name,
            "gpu_ids": json.dumps(gpus),
            "granted_ns": attempt.granted_ns,
            "message": "",
        }

    def _send_spawn(
        self, job: LiveJob, attempt: LiveAttempt, command: dict[str, Any], environment: bytes
    ) -> None:
        runner = self.runners[attempt.runner]
        if runner.control is None:
            return  # gone meanwhile; reconciling with it sends the grant again
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
            "folder": os.fsencode(self.folder_of(job.id, attempt.number)),
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
        if runner.data is not None:
            self.relay.granted(attempt.serial, runner.data)
        runner.control.send_message(frames.SPAWN, spec, attempt.serial << 2)

    # -- scheduling

    def schedule(self) -> None:
        """Look at the queue soon: once for all that changes in this turn of the loop."""
        if not self._schedule_due:
            self._schedule_due = True
            asyncio.get_running_loop().call_soon(self._schedule)

    def _schedule(self) -> None:
        self._schedule_due = False
        for runner in self.runners.values():
            if runner.control is None:
                continue
            grants, runner.free = self._queue(runner.pool).choose(runner.free)
            for grant in grants:
                job = self._jobs[grant.serial]
                attempt, values = self._grant(job, runner, grant.gpus)
                self._spawn_task(self._store_grant(job, attempt, values), f"grant {job.id}")

    async def _store_grant(
        self, job: LiveJob, attempt: LiveAttempt, values: dict[str, Any]
    ) -> None:
        def store(connection: Connection) -> None:
            queries.insert_attempt(connection, values)

        await self._database.write(store)
        await self._spawn_stored(job, attempt)

    async def _spawn_stored(self, job: LiveJob, attempt: LiveAttempt) -> None:
        """Send a grant whose command and environment are in the database."""
        row = await self._database.read(lambda c: queries.command_of(c, job.serial))
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
            await self._finish_unstarted(job, "cancelled before it started")
            return
        self._send_spawn(job, attempt, command, environment)

    # -- runners

    def runner_joined(self, runner: LiveRunner, reports: list[dict[str, Any]]) -> None:
        """A runner has connected, with all that its keeper holds: reconcile."""
        free = runner.total
        for held in self._by_attempt.values():
            if held.attempt is not None and held.attempt.runner == runner.name:
                free = free.without(held.need, held.attempt.gpus)
        runner.free = free
        self.runners[runner.name] = runner
        known: set[int] = set()
        forget: list[int] = []
        relayed: list[int] = []
        for report in reports:
            serial = report["attempt"]
            job = self._by_attempt.get(serial)
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
            if report.get("pid") is not None:
                self.attempt_started(serial, report)
            if job.wanted is Wanted.CANCEL and end is None:
                self._send_kill(runner, serial, "cancel", job.grace_ms)
        if forget and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": forget})
        if runner.data is not None:
            self.relay.runner_joined(relayed, runner.data)
        for report in reports:
            if report["attempt"] in known and report.get("end") is not None:
                self.attempt_exited(report["attempt"], report["end"])
        for held in list(self._by_attempt.values()):
            attempt = held.attempt
            if attempt is None or attempt.runner != runner.name or attempt.serial in known:
                continue
            if attempt.started_ns is None:
                # The keeper notes an attempt before it starts it, so this one never started.
                self._spawn_task(self._spawn_stored(held, attempt), f"grant {held.id} again")
            else:
                end = {"lost": "its runner does not know it any more"}
                self.attempt_exited(attempt.serial, end)
        self.schedule()

    def runner_left(self, runner: LiveRunner) -> None:
        """The runner's connection is gone; its tasks go on."""
        runner.control = None
        if runner.data is not None:
            self.relay.runner_left(runner.data)
            runner.data = None

    def _runner_of(self, job: LiveJob) -> LiveRunner | None:
        if job.attempt is None:
            return None
        runner = self.runners.get(job.attempt.runner)
        return runner if runner is not None and runner.control is not None else None

    # -- reports

    def attempt_started(self, serial: int, started: dict[str, Any]) -> None:
        """The command of an attempt runs; ``started`` has its ``pid``, and ``at`` when."""
        job = self._by_attempt.get(serial)
        if job is None or job.attempt is None or job.attempt.started_ns is not None:
            return
        attempt = job.attempt
        attempt.pid, attempt.started_ns = started["pid"], started["at"]
        job.state = State.RUNNING
        job.started_ns = job.started_ns or attempt.started_ns
        if job.client is not None:
            told = ("pid", "clamped_limits", "unenforced")
            job.client.forward(frames.STARTED, {k: started[k] for k in told if k in started})
        asyncio.get_running_loop().call_later(
            _START_WRITE_DELAY_SECONDS, self._store_start_soon, job, attempt
        )

    def _store_start_soon(self, job: LiveJob, attempt: LiveAttempt) -> None:
        if job.attempt is attempt and not job.ending and not attempt.start_stored:
            self._spawn_task(self._store_start(job, attempt), f"start {job.id}")

    async def _store_start(self, job: LiveJob, attempt: LiveAttempt) -> None:
        attempt.start_stored = True
        writes = _start_writes(job, attempt)
        await self._database.write(writes)
        self.changes.changed(job.serial)

    def attempt_said(self, serial: int, kind: int, body: dict[str, Any]) -> None:
        """The command was stopped or continued by job control."""
        job = self._by_attempt.get(serial)
        if job is not None and job.attempt is not None:
            job.attempt.stopped = kind == frames.STOPPED
            if job.client is not None:
                job.client.forward(kind, body)

    def output_grew(self, serial: int) -> None:
        """An output stream of an attempt has grown: wake those who follow it."""
        job = self._by_attempt.get(serial)
        if job is not None:
            self.changes.grew(job.serial)

    def attempt_exited(self, serial: int, end: dict[str, Any]) -> None:
        """An attempt ended; its processes are gone and its output is spooled."""
        job = self._by_attempt.get(serial)
        if job is None or job.attempt is None or job.ending:
            return
        self._spawn_task(self._finish(job, job.attempt, end), f"end {job.id}")

    async def _finish(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> None:
        if job.ending:
            return
        job.ending = True
        now = time.time_ns()
        outcome = outcome_of(end, job.command_name, job.need.memory_bytes)
        lost = "lost" in end
        again = (
            lost and job.wanted is Wanted.RUN and attempt.number <= job.retries and not self.closing
        )
        lengths = self._lengths(job, attempt, end)
        start = None
        if attempt.started_ns is not None and not attempt.start_stored:
            start = _start_writes(job, attempt)
            attempt.start_stored = True
        attempt_values = {
            "state": AttemptState.LOST if lost else AttemptState.ENDED,
            "ended_ns": end.get("at", now),
            "exit_code": outcome.exit_code,
            "message": outcome.message,
            "stdout_bytes": lengths[0],
            "stderr_bytes": lengths[1],
            "cpu_ns": end.get("cpu_ns"),
            "peak_memory_bytes": end.get("peak_memory_bytes"),
            "read_bytes": end.get("read_bytes"),
            "written_bytes": end.get("written_bytes"),
        }
        if again:
            job_values: dict[str, Any] = {"state": State.IN_QUEUE, "message": outcome.message}
            said = [_event(job, State.IN_QUEUE, f"{outcome.message}; trying again", attempt.number)]
        else:
            job_values = _ended_values(outcome, end.get("at", now))
            said = [_event(job, outcome.state, outcome.message, attempt.number)]

        def store(connection: Connection) -> bool:
            if start is not None:
                start(connection)
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
        self._release(job, attempt)
        runner = self.runners.get(attempt.runner)
        if runner is not None and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": [attempt.serial]})
        if again:
            job.ending = False
            job.state = State.IN_QUEUE
            self._queue(job.pool).push(_waiting(job))
            self.changes.changed(job.serial)
            if job.client is not None:
                job.client.say(f"{outcome.message}; trying again")
        else:
            self._end(job, outcome, lengths)
        self.relay.ended(attempt.serial)
        self.schedule()

    async def _write_when_there_is_room(self, store: Work[bool]) -> bool:
        """Write an ending; its runner holds it until it is stored, however long the disk is full."""
        while True:
            try:
                return await self._database.write(store)
            except errors.DiskFull as error:
                log.error("%s; trying again", error.message)  # noqa: TRY400 - no trace needed
                await asyncio.sleep(_DISK_RETRY_SECONDS)

    def _lengths(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> tuple[int, int]:
        """Return how much output an ended attempt has: its keeper's word, or what is stored."""
        if "stdout" in end:
            return end["stdout"], end["stderr"]
        folder = str(self.folder_of(job.id, attempt.number))
        return SegmentReader(folder, "stdout").length(), SegmentReader(folder, "stderr").length()

    def _release(self, job: LiveJob, attempt: LiveAttempt) -> None:
        job.attempt = None
        self._by_attempt.pop(attempt.serial, None)
        runner = self.runners.get(attempt.runner)
        if runner is not None:
            runner.free = runner.free.give_back(job.need, attempt.gpus)

    def _end(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        """A terminal state is stored: tell everybody, and let the job go."""
        job.state = outcome.state
        client = job.client
        self._drop(job)
        if client is not None:
            client.job_ended(job, outcome, lengths)
        self.changes.changed(job.serial)

    def _drop(self, job: LiveJob) -> None:
        self._jobs.pop(job.serial, None)
        self._by_id.pop(job.id, None)
        self._queue(job.pool).discard(_waiting(job))
        self._some_end.set()
        job.client = None
        if job.client_gone is not None:
            job.client_gone.cancel()
        if job.attempt is not None:
            self._release(job, job.attempt)
        if job.key_slot is not None:
            self._keys.shred(job.key_slot)
            job.key_slot = None

    # -- requests about a live job

    async def cancel(self, job: LiveJob, why: str = "cancelled") -> None:
        """End a job: SIGTERM, its grace, SIGKILL.  The wish is stored before it is acted on."""
        job.wanted = Wanted.CANCEL
        if job.waiting:
            await self._finish_unstarted(job, why)
            return
        await self._write_job(job, {"wanted": Wanted.CANCEL})
        runner = self._runner_of(job)
        if runner is not None and job.attempt is not None:
            self._send_kill(runner, job.attempt.serial, "cancel", job.grace_ms)

    async def cancel_all(self) -> None:
        """Cancel every live job."""
        for job in list(self._jobs.values()):
            await self.cancel(job)

    async def wait_for_end(self) -> None:
        """Wait until some live job ends."""
        self._some_end.clear()
        await self._some_end.wait()

    async def _finish_unstarted(self, job: LiveJob, why: str) -> None:
        if job.ending:
            return
        job.ending = True
        outcome = Outcome(State.CANCELLED, None, why)
        values = {**_ended_values(outcome, time.time_ns()), "wanted": Wanted.CANCEL}
        attempt = job.attempt

        def store(connection: Connection) -> None:
            if attempt is not None:
                ended = {"state": AttemptState.ENDED, "message": why}
                queries.move_attempt(connection, attempt.serial, ("GRANTED",), ended)
            if queries.move_job(connection, job.serial, queries.LIVE, values):
                queries.insert_events(connection, [_event(job, State.CANCELLED, why)])

        await self._database.write(store)
        if attempt is not None:
            self._release(job, attempt)
        self._end(job, outcome, (0, 0))
        self.schedule()

    def signal(self, job: LiveJob, number: int) -> None:
        """Send a signal to the command's process group."""
        runner = self._runner_of(job)
        if runner is not None and runner.control is not None and job.attempt is not None:
            channel = job.attempt.serial << 2
            runner.control.send_message(frames.SIGNAL, {"signal": number}, channel)

    def forward(self, job: LiveJob, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame about a job's attempt to its runner."""
        runner = self._runner_of(job)
        if runner is not None and runner.control is not None and job.attempt is not None:
            runner.control.send_message(kind, body, job.attempt.serial << 2)

    async def set_time_limit(self, job: LiveJob, limit_ms: int | None) -> None:
        """Change a job's time limit, counted from its start."""
        await self._write_job(job, {"time_limit_ms": limit_ms})
        job.time_limit_ms = limit_ms
        self.forward(job, frames.DEADLINE, {"limit_ms": limit_ms})

    async def _write_job(self, job: LiveJob, values: dict[str, Any]) -> None:
        def store(connection: Connection) -> bool:
            return queries.move_job(connection, job.serial, queries.LIVE, values)

        if not await self._database.write(store):
            raise errors.Conflict(f"job {job.id} has ended")

    def _send_kill(self, runner: LiveRunner, serial: int, why: str, grace_ms: int) -> None:
        if runner.control is not None:
            body = {"why": why, "grace_ms": grace_ms}
            runner.control.send_message(frames.KILL, body, serial << 2)

    # -- clients

    def client_back(self, job: LiveJob, client: Client) -> None:
        """A client attached to the job; another one that was attached is let go."""
        if job.client is not None and job.client is not client:
            job.client.replaced()
        job.client = client
        if job.client_gone is not None:
            job.client_gone.cancel()
            job.client_gone = None

    def client_lost(self, job: LiveJob, client: Client) -> None:
        """The job's client went away without a word."""
        if job.client is not client:
            return
        job.client = None
        if job.attached and not job.detached:
            self._expect_client(job, job.keep_alive_ms / 1000)

    async def client_detached(self, job: LiveJob, client: Client) -> None:
        """The client left on purpose: the job goes on without one."""
        if job.client is client:
            job.client = None
        job.detached = True
        await self._write_job(job, {"detached": True})

    def _expect_client(self, job: LiveJob, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        if job.client_gone is not None:
            job.client_gone.cancel()
        wait = max(seconds, job.keep_alive_ms / 1000)
        job.client_gone = loop.call_later(wait, self._client_is_gone, job)

    def _client_is_gone(self, job: LiveJob) -> None:
        job.client_gone = None
        if job.ending or job.client is not None:
            return
        if job.waiting:
            why = "its client went away before it started"
            self._spawn_task(self.cancel(job, why), f"cancel {job.id}")
            return
        # As a terminal that closes: the hangup goes to the command, which may choose to stay.
        self.signal(job, signal.SIGHUP)
        self.signal(job, signal.SIGCONT)

    # -- tasks of this service

    def _spawn_task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def settle(self) -> None:
        """Wait for the writes that are under way."""
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)


def _waiting(job: LiveJob) -> Waiting:
    return Waiting(job.serial, job.priority, job.need)


def _event(job: LiveJob, kind: str, message: str, attempt: int | None = None) -> dict[str, Any]:
    return {
        "job_serial": job.serial,
        "at_ns": time.time_ns(),
        "kind": str(kind),
        "attempt": attempt,
        "message": message,
    }


def _start_writes(job: LiveJob, attempt: LiveAttempt) -> Any:
    said = [{**_event(job, State.RUNNING, "started", attempt.number), "at_ns": attempt.started_ns}]
    job_values = {"state": State.RUNNING, "started_ns": job.started_ns}
    attempt_values = {
        "state": AttemptState.RUNNING,
        "pid": attempt.pid,
        "started_ns": attempt.started_ns,
    }

    def store(connection: Connection) -> None:
        queries.move_attempt(connection, attempt.serial, ("GRANTED",), attempt_values)
        if queries.move_job(connection, job.serial, (State.IN_QUEUE,), job_values):
            queries.insert_events(connection, said)

    return store


def _ended_values(outcome: Outcome, at_ns: int) -> dict[str, Any]:
    return {
        "state": outcome.state,
        "exit_code": outcome.exit_code,
        "message": outcome.message,
        "ended_ns": at_ns,
        "environment": None,
        "key_slot": None,
    }


def _command_body(submission: Submission) -> dict[str, Any]:
    body = asdict(submission.command)
    body["tty"] = body.pop("terminal")
    return body


def _job_values(
    job: LiveJob, submission: Submission, command: bytes, environment: bytes
) -> dict[str, Any]:
    return {
        "serial": job.serial,
        "id": job.id,
        "owner": job.owner,
        "project": job.project,
        "jurisdiction": LOCAL_JURISDICTION,
        "submit_key": submission.key,
        "attached": submission.attached,
        "detached": False,
        "name": submission.name,
        "labels": json.dumps(submission.labels),
        "pool": submission.pool,
        "command": command,
        "environment": environment,
        "key_slot": job.key_slot,
        "cpus_milli": job.need.cpus_milli,
        "memory_bytes": job.need.memory_bytes,
        "gpus": job.need.gpus,
        "time_limit_ms": job.time_limit_ms,
        "retries": job.retries,
        "priority": job.priority,
        "keep_alive_ms": job.keep_alive_ms,
        "grace_ms": job.grace_ms,
        "source": submission.source,
        "state": State.IN_QUEUE,
        "wanted": Wanted.RUN,
        "message": "",
        "created_ns": job.created_ns,
        "kept": True,
    }

"""Ends attempts and jobs: what is stored of an end, whether it is tried again, who is told.

An end is written first, guarded by the states that it expects, and applied here once the write is
on the disk.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import Connection

from updraft import errors, faults
from updraft.model.ending import outcome_of, reason_to_retry
from updraft.model.job import Outcome, backoff_of
from updraft.model.states import AttemptState, State, Wanted
from updraft.server.services.core import Core
from updraft.server.services.live import LiveAttempt, LiveJob
from updraft.server.services.rows import ended_attempt_values, ended_values, event_row, start_of
from updraft.storage.segments import SegmentReader
from updraft.store import jobs as queries
from updraft.store.database import Undecided
from updraft.wire import frames

log = logging.getLogger("updraft.execution")


class Endings:
    """How attempts and jobs end.  ``schedule`` is called when one has given back what it held."""

    def __init__(self, core: Core, schedule: Callable[[], None]) -> None:
        self._database = core.database
        self._keys = core.keys
        self._background = core.background
        self._live = core.live
        self._relay = core.relay
        self._intake = core.intake
        self._changes = core.changes
        self._timing = core.timing
        self._dependencies = core.dependencies
        self._schedule = schedule
        self.forsake: Callable[[LiveJob, str], None] = lambda *_: None
        """Ends the children of a job that did not come to its own end; says why."""

    def end_attempt(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> None:
        """Begin to end an attempt, as ``end`` says."""
        self._background.spawn(self.finish(job, attempt, end), f"end {job.id}")

    async def finish(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> None:
        """End an attempt, as ``end`` says, and its job unless that is tried again."""
        if job.ending or job.attempt is not attempt:
            return
        end = {**end, "at": attempt.within(end.get("at") or time.time_ns())}
        outcome = outcome_of(end, job.command_name, job.need.memory_bytes)
        again = (
            reason_to_retry(end, outcome) in job.retry_on
            and job.wanted is Wanted.RUN
            and attempt.number <= job.retries
            and not self._background.closing
        )
        lengths = self._lengths(job, attempt, end)
        attempt_values = ended_attempt_values(outcome, end, lengths)
        if again:
            attempt_values["outcome"] = State.IN_QUEUE
            job_values: dict[str, Any] = {"state": State.IN_QUEUE, "message": outcome.message}
            if job.backoff_ms:
                wait_ms = backoff_of(job.backoff_ms, attempt.number)
                job_values["not_before_ns"] = time.time_ns() + wait_ms * 1_000_000
            said = [
                event_row(job, State.IN_QUEUE, f"{outcome.message}; trying again", attempt.number)
            ]
        else:
            attempt_values["outcome"] = outcome.state
            job_values = ended_values(outcome, end["at"])
            said = [event_row(job, outcome.state, outcome.message, attempt.number)]
        start_too = attempt.started_ns is not None and not attempt.start_stored
        if start_too:
            # A short task's start and end are one write, of as many statements as an end alone.
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
        job.ending = True
        attempt.start_stored = attempt.start_stored or start_too
        try:
            moved = await self._background.write(store)
        except BaseException:
            # It has not ended: the next report of it, or a cancellation, tries again.
            job.ending = False
            attempt.start_stored = attempt.start_stored and not start_too
            raise
        if not moved:
            log.error("the end of attempt %d of job %s was stale", attempt.number, job.id)
        else:
            self._live.stored.add(job.party, lengths)
        self._live.release(job, attempt)
        self._intake.end(attempt.serial)
        runner = self._live.runners.get(attempt.runner)
        if runner is not None and runner.control is not None:
            runner.control.send_message(frames.FORGET, {"attempts": [attempt.serial]})
        if again:
            self.forsake(job, f"job {job.id}, which submitted it, is tried again")
            job.ending = False
            job.state = State.IN_QUEUE
            job.not_before_ns = job_values.get("not_before_ns")
            self._live.wait(job)
            self._timing.watch(job)
            self._changes.changed(job.serial)
            if job.client is not None:
                job.client.say(f"{outcome.message}; trying again")
            if job.wanted is Wanted.CANCEL:  # asked for while this was being stored
                ended = Outcome(State.CANCELLED, None, "cancelled")
                await self.finish_unstarted(job, ended, patient=True)
        else:
            self._end(job, outcome, lengths)
        self._relay.ended(attempt.serial)
        self._schedule()

    def _lengths(self, job: LiveJob, attempt: LiveAttempt, end: dict[str, Any]) -> tuple[int, int]:
        """Return how much output an ended attempt has: its keeper's word, or what is stored."""
        if "stdout" in end:
            return end["stdout"], end["stderr"]
        folder = str(self._live.folder_of(job.id, attempt.number))
        return SegmentReader(folder, "stdout").length(), SegmentReader(folder, "stderr").length()

    async def finish_unstarted(
        self, job: LiveJob, outcome: Outcome, *, patient: bool = False
    ) -> None:
        """End a job that has not started.

        ``patient``: however long the database is away.  Raises ``errors.NotReady`` when it is.
        """
        if job.ending:
            return
        job.ending = True
        values = ended_values(outcome, time.time_ns())
        if outcome.state is State.CANCELLED:
            values["wanted"] = Wanted.CANCEL
        attempt = job.attempt

        def store(connection: Connection) -> None:
            if attempt is not None:
                ended = {
                    "state": AttemptState.ENDED,
                    "message": outcome.message,
                    "outcome": outcome.state,
                }
                queries.move_attempt(connection, attempt.serial, ("GRANTED",), ended)
            if queries.move_job(connection, job.serial, queries.LIVE, values):
                said = event_row(job, outcome.state, outcome.message)
                queries.insert_events(connection, [said])

        async def finish(written: Awaitable[None]) -> None:
            try:
                await written
            except Undecided as error:
                self._background.spawn(finish(error.outcome), f"cancel {job.id}")
                raise errors.Unavailable(
                    f"the database went away while the end of job {job.id} was being stored; look "
                    f"whether it was: updraft job show {job.id}"
                ) from error
            except BaseException:
                job.ending = False
                raise
            if attempt is not None:
                self._live.release(job, attempt)
                self._intake.end(attempt.serial)
            self._end(job, outcome, (0, 0))
            self._schedule()

        await finish(self._database.decide(store, patient=patient))

    def array_ended(self, job: LiveJob, outcome: Outcome) -> None:
        """The end of an array is stored, and nothing of it runs."""
        self._end(job, outcome, (0, 0))

    def _end(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        """A terminal state is stored: tell everybody, and let the job go."""
        job.state = outcome.state
        client = job.client
        self.drop(job)
        self._dependencies.job_ended(job, ok=outcome.ok)
        # An array's children are its tasks', most of which came to their own end.
        if outcome.state is not State.SUCCESS and job.array is None:
            why = "did not come to its own end"
            self.forsake(job, f"job {job.id}, which submitted it, {why}")
        if client is not None:
            client.job_ended(job, outcome, lengths)
        self._changes.changed(job.serial)

    def drop(self, job: LiveJob) -> None:
        """Forget a job that has ended, or could not be stored, and its environment."""
        self._live.drop(job)
        self._dependencies.forget(job)
        if job.key_slot is not None:
            self._keys.shred(job.key_slot)
            job.key_slot = None

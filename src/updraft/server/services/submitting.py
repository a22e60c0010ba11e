"""Submissions: what a job asks for is checked, stored, and started at once where there is room."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import IntegrityError

from updraft import errors, faults
from updraft.model.access import Principal
from updraft.model.dependencies import Edge
from updraft.model.job import Kind, Policy, Submission, Tasks, name_of, new_job_id
from updraft.model.pool import LOCAL_POOL, Pool
from updraft.model.ranges import Ranges
from updraft.model.states import State
from updraft.scheduling.capacity import Capacity
from updraft.scheduling.reasons import never_fits
from updraft.server.services.attendance import Attendance
from updraft.server.services.core import Core
from updraft.server.services.dependencies import check_edges
from updraft.server.services.endings import Endings
from updraft.server.services.granting import Granting
from updraft.server.services.live import Client, LiveAttempt, LiveJob, LiveRunner
from updraft.server.services.live_array import LiveArray
from updraft.server.services.rows import command_body, event_row, job_row
from updraft.store import jobs as queries
from updraft.store.database import Undecided
from updraft.store.upstreams import Ended, ends_of, find_upstreams
from updraft.wire.packing import pack

log = logging.getLogger("updraft.execution")

_FIRST_RUNNER_SECONDS = 5.0
"""How long a submission waits for the runner that a new server has just started."""


class Submitting:
    """Takes jobs in.  ``default_pool``: of those that name none."""

    def __init__(
        self,
        core: Core,
        granting: Granting,
        endings: Endings,
        attendance: Attendance,
        default_pool: str,
    ) -> None:
        self._timing = core.timing
        self._database = core.database
        self._keys = core.keys
        self._background = core.background
        self._live = core.live
        self._granting = granting
        self._endings = endings
        self._attendance = attendance
        self._dependencies = core.dependencies
        self._default_pool = default_pool
        self.last_serial = 0
        """The newest job's."""

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
        submission = self._live.families.adopt(who, submission)
        pool = self._pool_of(who, submission.pool)
        await self._first_runner(pool)
        self._check_that_it_fits(who, submission, pool)
        self._live.families.need_room(
            replace(submission, pool=pool.name), self._usable(who, pool.name)
        )
        _check_times(submission.policy)
        after = await self._upstreams(who, submission)
        time_limit_ms = _time_limit(submission.policy.time_limit_ms, pool)
        if self._background.draining:
            raise errors.Unavailable("the server is stopping; try again")
        if self._background.closing:
            raise errors.NotReady("the server is being restarted")
        job = self._new_job(who, submission, pool, time_limit_ms)
        job.after = after
        job.client = client
        job.key_slot, encrypted = self._keys.encrypt(environment)
        command = command_body(submission)
        values = job_row(job, submission, pool.jurisdiction, pack(command), encrypted)
        self._dependencies.add(job)
        self._live.add(job)
        self._timing.watch(job)
        attempt, attempt_values = self._granting.grant_now(job)
        events = [event_row(job, State.IN_QUEUE, "submitted")]

        def store(connection: Connection) -> Mapping[Edge, Ended | None]:
            queries.insert_job(connection, values, attempt_values, events)
            return ends_of(connection, after) if after else {}

        try:
            ends = await self._database.decide(store)
        except Undecided as error:
            # The same key finds the job, if it is stored in the end.
            rest = self._stored_late(job, attempt, error.outcome)
            self._background.spawn(rest, f"store {job.id}")
            raise errors.NotReady(
                "the server's database is away; ask again with the same key"
            ) from error
        except IntegrityError:
            self._endings.drop(job)
            known = await self._database.read(
                lambda connection: queries.find_submitted(
                    connection, who.owner, submission.key, who.project
                )
            )
            if known is None:
                raise
            return known
        except BaseException:
            self._endings.drop(job)
            raise
        faults.reached("insert-ack")
        if client is not None:
            client.accepted(job)
        if attempt is not None:
            attempt.stored = True
            self._granting.send_spawn(job, attempt, command, environment)
        self._dependencies.settle(job, ends)
        self._granting.schedule()  # for itself, or for the stages of a pipeline that wait for it
        return job.id

    def _new_job(
        self, who: Principal, submission: Submission, pool: Pool, time_limit_ms: int | None
    ) -> LiveJob:
        self.last_serial += 1
        policy = submission.policy
        return LiveJob(
            serial=self.last_serial,
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
            created_ns=time.time_ns(),
            command_name=name_of(submission.command.argv),
            terminal=submission.command.terminal is not None,
            pipes=submission.pipes,
            retry_on=policy.retry_on,
            backoff_ms=policy.backoff_ms,
            not_before_ns=policy.not_before_ns,
            deadline_ns=policy.deadline_ns,
            parent=submission.parent,
            array=_array_of(submission.tasks),
            came_from=who.attempt,
        )

    async def _stored_late(
        self, job: LiveJob, attempt: LiveAttempt | None, outcome: asyncio.Future[Any]
    ) -> None:
        """Wait whether a job is stored whose client was told to ask again, and go on with it."""
        client, job.client = job.client, None
        try:
            ends = await outcome
        except Exception:
            self._endings.drop(job)
            raise
        if client is not None:
            job.client = client
            self._attendance.lost(job, client)  # its connection was ended with that answer
        if attempt is not None:
            attempt.stored = True
            await self._granting.spawn_stored(job, attempt)
        self._dependencies.settle(job, ends)
        self._granting.schedule()

    async def _upstreams(self, who: Principal, submission: Submission) -> tuple[Edge, ...]:
        """Return what a submission is to run after, with full ids."""
        if not submission.after:
            return ()
        names = [edge.job for edge in submission.after]
        found = await self._database.read(lambda c: find_upstreams(c, who, names))
        edges = check_edges(submission, found)
        parent = self._live.find(submission.parent or "")
        waits = () if parent is None else (parent.id, *parent.lineage)
        for edge in edges:
            if submission.attached and edge.job in waits:
                raise errors.BadRequest(
                    f"job {edge.job} waits for this one, which would wait for its end; submit it "
                    "with ubatch"
                )
        return tuple(dict.fromkeys(edges))

    def _pool_of(self, who: Principal, name: str) -> Pool:
        """Return the pool that a submission names, or the one that is meant when it names none."""
        usable = {each.name: each for each in self._live.pools.values() if each.takes(who.project)}
        pool = usable.get(name or self._default_pool)
        if pool is None and not name and len(usable) == 1:
            (pool,) = usable.values()
        if pool is None:
            known = ", ".join(sorted(usable))
            if not name and known:
                raise errors.BadRequest(f"which pool? choose one with -P: {known}")
            raise errors.BadRequest(
                f"there is no pool {name!r}; the pools are: {known}"
                if known
                else "there is no pool yet; an administrator makes one: updraft pool create NAME"
            )
        if pool.draining:
            raise errors.Conflict(
                f"pool {pool.name} is being drained and takes no new jobs; choose another with "
                f"-P, or let it take some again: updraft pool drain {pool.name} --undo"
            )
        return pool

    def _check_that_it_fits(self, who: Principal, submission: Submission, pool: Pool) -> None:
        need = submission.resources
        totals: list[Capacity] = []
        for runner in self._usable(who, pool.name):
            if runner.total.fits(need):
                return
            totals.append(runner.total)
        problem = never_fits(need, totals, pool.name)
        if problem is not None:
            raise errors.BadRequest(problem)

    def _usable(self, who: Principal, pool: str) -> Iterator[LiveRunner]:
        """Yield the runners of a pool that take jobs of somebody's."""
        for runner in self._live.runners_of(pool):
            if runner.known.serves in (None, who.owner):
                yield runner

    async def _first_runner(self, pool: Pool) -> None:
        """Wait for the runner that a new server has just started: it knows what there is."""
        if pool.name == LOCAL_POOL and not self._live.runners:
            try:
                async with asyncio.timeout(_FIRST_RUNNER_SECONDS):
                    await self._live.wait_for_runner()
            except TimeoutError:
                log.warning("no runner has come yet; what is submitted waits for one")


def _array_of(tasks: Tasks) -> LiveArray | None:
    """Return the live form of a submitted array, all of it queued."""
    if tasks.kind is not Kind.ARRAY:
        return None
    queued = Ranges.span(0, tasks.count)
    if tasks.indices is not None:
        queued = Ranges.parse(tasks.indices)
    return LiveArray(tasks.count, len(queued), tasks.max_parallel, queued)


def _check_times(policy: Policy) -> None:
    deadline_ns, begin_ns = policy.deadline_ns, policy.not_before_ns
    if deadline_ns is not None and deadline_ns <= time.time_ns():
        raise errors.BadRequest("its deadline is over already; choose a later one")
    if deadline_ns is not None and begin_ns is not None and deadline_ns <= begin_ns:
        raise errors.BadRequest(
            "its deadline comes before the time it may start; choose a later one"
        )


def _time_limit(asked_ms: int | None, pool: Pool) -> int | None:
    """Return a job's time limit within what its pool allows."""
    if pool.time_limit_ms is None or asked_ms is None:
        return pool.time_limit_ms if asked_ms is None else asked_ms
    if asked_ms > pool.time_limit_ms:
        raise errors.BadRequest(
            f"pool {pool.name} allows at most {pool.time_limit_ms / 1000:g} s; lower --time"
        )
    return asked_ms

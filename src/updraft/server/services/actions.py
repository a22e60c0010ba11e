"""What members of a project ask about jobs: submit, run again, extend, cancel.

Each authorises, validates, and writes; what is acknowledged is stored.  What somebody does to
another's job, as an admin, is in the audit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Command, Kind, Policy, Resources, RetryOn, Submission, Tasks
from updraft.model.ranges import Ranges
from updraft.model.states import State, Wanted
from updraft.server.services.admission import Admission
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import Jobs, JobView, check_index
from updraft.server.services.submission import check_labels, parse_after, parse_submission
from updraft.store import jobs as queries

_MAX_LIMIT_MS = 10 * 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Caller:
    """What a rerun takes from whoever asks for it."""

    key: bytes
    """Made by the client: the same key twice is one job."""
    environment: bytes
    """NUL-separated ``KEY=VALUE``."""
    after: Sequence[Mapping[str, Any]] = ()
    """What the new job is to run after; as submissions have it."""
    labels: Mapping[str, str] | None = None
    """None: those of the job."""


class Actions:
    """Requests about jobs, as the API and others in the server make them."""

    def __init__(self, jobs: Jobs, execution: Execution, admission: Admission) -> None:
        self._jobs = jobs
        self._admission = admission
        self._execution = execution
        self._extending = asyncio.Lock()

    async def submit(self, who: Principal, body: Mapping[str, Any]) -> JobView:
        """Store a detached job and return it.  ``body`` as ``parse_submission`` takes it."""
        submission, environment = parse_submission(body)
        await self._admission.admit(who, submission)
        # Once begun, the submission is stored whether its caller waits or not.
        job_id = await asyncio.shield(
            self._execution.submitting.submit(who, submission, environment)
        )
        return await self._jobs.show(who, job_id)

    async def rerun(
        self, who: Principal, job_id: str, caller: Caller, *, failed: bool = False
    ) -> JobView:
        """Submit a job's command again, detached, in the caller's environment.

        ``failed``: of an array only those tasks that did not end ok, under their old indices.

        What ``-e`` set for the job goes over the caller's environment; directory, resources and
        policy are the job's.
        """
        if not 8 <= len(caller.key) <= 64:
            raise errors.BadRequest("key must have 8 to 64 bytes")
        if caller.labels is not None:
            check_labels(caller.labels)
        source = await self._jobs.show(who, job_id)
        row = source.row
        command = _detached(source.command)
        submission = Submission(
            key=caller.key,
            command=command,
            attached=False,
            resources=Resources(row["cpus_milli"], row["memory_bytes"], row["gpus"]),
            policy=Policy(
                time_limit_ms=row["time_limit_ms"],
                retries=row["retries"],
                retry_on=frozenset(map(RetryOn, filter(None, row["retry_on"].split(",")))),
                backoff_ms=row["backoff_ms"],
                priority=row["priority"],
                keep_alive_ms=row["keep_alive_ms"],
                grace_ms=row["grace_ms"],
            ),
            name=row["name"],
            labels=json.loads(row["labels"]) if caller.labels is None else dict(caller.labels),
            after=parse_after(list(caller.after)),
            pool=row["pool"],
            source=row["id"],
            tasks=await self._tasks_again(row, failed=failed),
        )
        await self._admission.admit(who, submission)
        environment = _merge(
            caller.environment, [b"PWD=" + command.directory, *command.set_environment]
        )
        new_id = await asyncio.shield(
            self._execution.submitting.submit(who, submission, environment)
        )
        return await self._jobs.show(who, new_id)

    async def _tasks_again(self, row: RowMapping, *, failed: bool) -> Tasks:
        tasks = Tasks(Kind(row["kind"]), row["tasks"], row["max_parallel"])
        if not failed:
            return tasks
        if not State(row["state"]).terminal:
            raise errors.Conflict(
                f"job {row['id']} has not ended; retry a task of it: updraft job retry "
                f"{row['id']}/INDEX"
            )
        chosen = Ranges.span(0, 0 if row["exit_code"] == 0 else 1)
        if tasks.kind is Kind.ARRAY:
            chosen = await self._jobs.read(lambda c: _not_ok(c, row))
        if not chosen:
            raise errors.Conflict(
                f"all tasks of job {row['id']} are ok; nothing is to be run again"
            )
        return replace(tasks, indices=str(chosen)) if tasks.kind is Kind.ARRAY else tasks

    async def cancel(self, who: Principal, job_id: str) -> JobView:
        """Cancel a job that has not ended; one that was cancelled before is left as it is.

        Raises ``errors.Conflict`` when the job ended otherwise, and ``errors.NotAllowed`` when it
        is another's.
        """
        row = await self._jobs.changeable(who, job_id, "cancel job")
        job = self._execution.live.find_serial(row["serial"])
        if job is not None and job.wanted is not Wanted.CANCEL:
            await asyncio.shield(self._execution.cancel(job))
        view = await self._jobs.shown(who, row)
        state = State(view.row["state"])
        if state.terminal and state is not State.CANCELLED:
            raise errors.Conflict(f"job {row['id']} has ended ({state}: {view.row['message']})")
        return view

    async def cancel_task(self, who: Principal, job_id: str, index: int) -> JobView:
        """Cancel one task of an array; one that was cancelled before is left as it is.

        Raises ``errors.Conflict`` when it has ended, and as ``cancel`` does.
        """
        row = await self._jobs.changeable(who, job_id, "cancel task")
        check_index(row, index)
        job = self._execution.live.find_serial(row["serial"])
        if job is None:
            raise errors.Conflict(f"job {row['id']} has ended ({row['state']}: {row['message']})")
        if job.array is None:
            return await self.cancel(who, row["id"])
        await asyncio.shield(self._execution.arrays.cancel_task(job, index))
        return await self._jobs.shown(who, row)

    async def retry_task(self, who: Principal, job_id: str, index: int) -> JobView:
        """Queue one task of a live array anew that has ended.

        Raises ``errors.Conflict`` when it has not ended, or the whole job has.
        """
        row = await self._jobs.changeable(who, job_id, "retry task")
        check_index(row, index)
        job = self._execution.live.find_serial(row["serial"])
        if job is None or job.array is None:
            raise errors.Conflict(
                f"job {row['id']} has ended; run it again: updraft job rerun --failed {row['id']}"
                if job is None
                else f"job {row['id']} has one task, which has not ended"
            )
        await asyncio.shield(self._execution.arrays.retry_task(job, index))
        return await self._jobs.shown(who, row)

    async def extend(self, who: Principal, job_id: str, more_ms: int) -> JobView:
        """Give a job that has not ended more time.

        Raises ``errors.Conflict`` when it has ended, or has no time limit, and
        ``errors.NotAllowed`` when it is another's.
        """
        if more_ms <= 0:
            raise errors.BadRequest("the time to add must be more than nothing, as 10m or 2h")
        row = await self._jobs.changeable(who, job_id, "extend job")
        async with self._extending:  # two extensions at once add up
            job = self._execution.live.find_serial(row["serial"])
            if job is None:
                raise errors.Conflict(f"job {row['id']} has ended")
            if job.time_limit_ms is None:
                raise errors.Conflict(
                    f"job {row['id']} has no time limit to extend: it runs until it ends, or is "
                    f"cancelled: updraft job cancel {row['id']}"
                )
            limit_ms = job.time_limit_ms + more_ms
            if limit_ms > _MAX_LIMIT_MS:
                raise errors.BadRequest("a time limit is at most ten years; add less")
            await asyncio.shield(self._execution.set_time_limit(job, limit_ms))
        return await self._jobs.shown(who, row)


def _not_ok(connection: Connection, row: RowMapping) -> Ranges:
    """Return the tasks of an ended array that did not end ok, or never began."""
    chosen = Ranges.parse(row["queued"] or "")
    for index in queries.failed_tasks(connection, row["serial"], row["tasks"]):
        chosen.add(index)
    return chosen


def _detached(stored: dict[str, Any]) -> Command:
    """Return a stored command as it runs without a client."""
    known = {each.name for each in fields(Command)}
    kept = {name: value for name, value in stored.items() if name in known}
    return Command(**{**kept, "stdin": False, "terminal": None})


def _merge(environment: bytes, overrides: list[bytes]) -> bytes:
    """Return the NUL-separated block with ``KEY=VALUE`` entries put over it."""
    values = {}
    for entry in [*environment.split(b"\0"), *overrides]:
        key, equals, value = entry.partition(b"=")
        if key and equals:
            values[key] = value
    return b"\0".join(key + b"=" + value for key, value in values.items())

"""What members of a project ask about jobs: submit, run again, extend, cancel.

Each authorises, validates, and writes; what is acknowledged is stored.  What somebody does to
another's job, as an admin, is in the audit.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Command, Policy, Resources, Submission
from updraft.model.states import State, Wanted
from updraft.server.services.admission import Admission
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import Jobs, JobView
from updraft.server.services.submission import parse_submission

_MAX_LIMIT_MS = 10 * 365 * 86_400_000


@dataclass(frozen=True, slots=True)
class Caller:
    """What a rerun takes from whoever asks for it."""

    key: bytes
    """Made by the client: the same key twice is one job."""
    environment: bytes
    """NUL-separated ``KEY=VALUE``."""


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

    async def rerun(self, who: Principal, job_id: str, caller: Caller) -> JobView:
        """Submit a job's command again, detached, in the caller's environment.

        What ``-e`` set for the job goes over the caller's environment; directory, resources and
        policy are the job's.
        """
        if not 8 <= len(caller.key) <= 64:
            raise errors.BadRequest("key must have 8 to 64 bytes")
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
                priority=row["priority"],
                keep_alive_ms=row["keep_alive_ms"],
                grace_ms=row["grace_ms"],
            ),
            name=row["name"],
            labels=json.loads(row["labels"]),
            pool=row["pool"],
            source=row["id"],
        )
        await self._admission.admit(who, submission)
        environment = _merge(
            caller.environment, [b"PWD=" + command.directory, *command.set_environment]
        )
        new_id = await asyncio.shield(
            self._execution.submitting.submit(who, submission, environment)
        )
        return await self._jobs.show(who, new_id)

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

"""Jobs over HTTP: list, show, submit, cancel, extend, run again, wait, follow."""

from __future__ import annotations

import base64
import os
from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse

from updraft import errors
from updraft.model.job import MOST_TASKS
from updraft.model.states import State
from updraft.server.api import presenting
from updraft.server.api.requests import JobId, Who
from updraft.server.services.actions import Actions, Caller
from updraft.server.services.jobs import MAX_PAGE, Jobs
from updraft.store.jobs import Filter
from updraft.wire import schemas

_MAX_WAIT_SECONDS = 300.0

States = Annotated[list[State], Query(description="only jobs in one of these states")]
Owner = Annotated[
    str | None, Query(description="only this user's; `~` is the caller; without, the project's")
]
Failed = Annotated[bool, Query(description="only jobs that ended without being ok")]
LabelFilters = Annotated[list[str], Query(description="KEY=VALUE; several must all hold")]
Parent = Annotated[str | None, Query(description="only jobs that this one's tasks submitted")]
Limit = Annotated[int, Query(ge=1, le=MAX_PAGE)]
Cursor = Annotated[str | None, Query(description="`next_cursor` of the page before")]
After = Annotated[int, Query(ge=-1, lt=MOST_TASKS, description="the index to go on behind")]
Index = Annotated[int, Path(ge=0, lt=MOST_TASKS, description="a task's index")]
WaitSeconds = Annotated[float, Query(ge=0, le=_MAX_WAIT_SECONDS)]


def make_router(jobs: Jobs, actions: Actions) -> APIRouter:
    """Return the routes of jobs."""
    router = APIRouter(tags=["jobs"])

    @router.get("/jobs", summary="List jobs, newest first")
    async def list_jobs(
        who: Who,
        state: States = [],  # noqa: B006 - FastAPI copies it
        failed: Failed = False,
        owner: Owner = None,
        label: LabelFilters = [],  # noqa: B006
        parent: Parent = None,
        limit: Limit = 50,
        cursor: Cursor = None,
    ) -> schemas.JobPage:
        if owner is not None and not owner.isprintable():
            raise errors.BadRequest("owner: a user's name is needed, or ~")
        whose = who.owner if owner == "~" else owner
        wanted = Filter(tuple(dict.fromkeys(state)), failed, _labels(label), limit, whose, parent)
        return presenting.page(await jobs.list(who, wanted, cursor))

    @router.post("/jobs", status_code=201, summary="Submit a detached job")
    async def submit(who: Who, body: schemas.SubmitRequest) -> schemas.Job:
        return presenting.job(await actions.submit(who, _submission(body)))

    @router.get("/jobs/{job}", summary="Show a job")
    async def show(who: Who, job: JobId) -> schemas.Job:
        return presenting.job(await jobs.show(who, job))

    @router.get("/jobs/{job}/wait", summary="Wait for a job's end")
    async def wait(who: Who, job: JobId, seconds: WaitSeconds = 30) -> schemas.Job:
        """Answers when the job has ended, or, with its state of then, after `seconds`."""
        return presenting.job(await jobs.wait(who, job, seconds))

    @router.post("/jobs/{job}/cancel", summary="Cancel a job")
    async def cancel(who: Who, job: JobId) -> schemas.Job:
        """SIGTERM to all its processes; after its grace, SIGKILL."""
        return presenting.job(await actions.cancel(who, job))

    @router.post("/jobs/{job}/extend", summary="Give a job more time")
    async def extend(who: Who, job: JobId, body: schemas.ExtendRequest) -> schemas.Job:
        return presenting.job(await actions.extend(who, job, round(body.seconds * 1000)))

    @router.post("/jobs/{job}/rerun", status_code=201, summary="Run a job again, as a new one")
    async def rerun(who: Who, job: JobId, body: schemas.RerunRequest) -> schemas.Job:
        """The caller's environment, with what `-e` had set for the job put over it."""
        after = [each.model_dump() for each in body.after]
        caller = Caller(body.key.encode(), _environment(body), after, body.labels)
        return presenting.job(await actions.rerun(who, job, caller, failed=body.failed))

    @router.get("/jobs/{job}/tasks", summary="List an array's tasks")
    async def list_tasks(
        who: Who, job: JobId, after: After = -1, limit: Limit = 100
    ) -> list[schemas.Task]:
        """The last attempt of each task that has had one, by index.

        Tasks that wait for their first attempt are not among them.
        """
        return [presenting.task(row) for row in await jobs.tasks(who, job, after, limit)]

    @router.get("/jobs/{job}/tasks/{index}", summary="Show a task's attempts")
    async def show_task(who: Who, job: JobId, index: Index) -> list[schemas.Task]:
        """First to last; a task that waits for its first has none."""
        return [presenting.task(row) for row in await jobs.task(who, job, index)]

    @router.post("/jobs/{job}/tasks/{index}/cancel", summary="Cancel one task of an array")
    async def cancel_task(who: Who, job: JobId, index: Index) -> schemas.Job:
        return presenting.job(await actions.cancel_task(who, job, index))

    @router.post("/jobs/{job}/tasks/{index}/retry", summary="Queue an ended task of an array anew")
    async def retry_task(who: Who, job: JobId, index: Index) -> schemas.Job:
        """While the array has not ended; afterwards `rerun` makes a new job."""
        return presenting.job(await actions.retry_task(who, job, index))

    @router.get(
        "/jobs/{job}/events",
        summary="Follow a job's events",
        response_class=StreamingResponse,
        responses={200: {"content": {"application/x-ndjson": {}}, "model": schemas.Event}},
    )
    async def events(
        who: Who, job: JobId, after: Annotated[int, Query(ge=0)] = 0, follow: bool = False
    ) -> StreamingResponse:
        """One JSON object a line: old events, and if asked new ones until the job has ended."""
        found = await jobs.events(who, job, after, follow=follow)

        async def lines() -> AsyncIterator[bytes]:
            async for row in found:
                yield presenting.event(row).model_dump_json().encode() + b"\n"

        return StreamingResponse(lines(), media_type="application/x-ndjson")

    return router


def _labels(texts: list[str]) -> tuple[tuple[str, str], ...]:
    labels = []
    for text in texts:
        key, equals, value = text.partition("=")
        if not key or not equals or '"' in key:
            raise errors.BadRequest(f"label: {text!r} is no label; write it as KEY=VALUE")
        labels.append((key, value))
    return tuple(labels)


def _submission(body: schemas.SubmitRequest) -> dict[str, Any]:
    """Return the submission as raw clients send it."""
    set_environment = _entries(body.set_environment)
    environment = {**body.environment, **body.set_environment}
    limit = body.time_limit_seconds
    return {
        "key": body.key.encode(),
        "argv": [_bytes("argv", word) for word in body.argv],
        "attached": False,
        "directory": _bytes("directory", body.directory),
        "environment": b"\0".join(_entries(environment)),
        "set_environment": set_environment,
        "umask": body.umask,
        "fallback_directory": body.fallback_directory,
        "nice": 0,
        "rlimits": [],
        "ignored_signals": [],
        "stdin": False,
        "tty": None,
        "name": body.name,
        "labels": body.labels,
        "pool": body.pool,
        "cpus_milli": round(body.cpus * 1000),
        "memory_bytes": body.memory_bytes,
        "gpus": body.gpus,
        "time_limit_ms": None if limit is None else max(round(limit * 1000), 1),
        "retries": body.retries,
        "retry_on": body.retry_on,
        "backoff_ms": round(body.backoff_seconds * 1000),
        "not_before_ns": _moment(body.not_before),
        "deadline_ns": _moment(body.deadline),
        "after": [each.model_dump() for each in body.after],
        "tasks": _tasks(body),
        "priority": body.priority,
        "keep_alive_ms": 0,
        "grace_ms": round(body.grace_seconds * 1000),
    }


def _tasks(body: schemas.SubmitRequest) -> dict[str, Any] | None:
    if body.kind == "single":
        if body.tasks != 1 or body.max_parallel is not None:
            raise errors.BadRequest("tasks: a job of the kind single has one; choose kind array")
        return None
    return {"kind": body.kind, "count": body.tasks, "max_parallel": body.max_parallel}


def _moment(at: datetime | None) -> int | None:
    if at is None:
        return None
    if at.tzinfo is None:
        raise errors.BadRequest("a time needs a zone, as in 2026-01-31T12:00:00Z")
    return max(int(at.timestamp() * 1e6) * 1000, 0)


def _environment(body: schemas.RerunRequest) -> bytes:
    if body.environment_base64 is None:
        return b"\0".join(_entries(body.environment))
    try:
        return base64.b64decode(body.environment_base64, validate=True)
    except ValueError as error:  # also of letters that are none of it
        raise errors.BadRequest(f"environment_base64: not base64 ({error})") from error


def _entries(values: Mapping[str, str]) -> list[bytes]:
    for name in values:
        if not name or "=" in name:
            raise errors.BadRequest(f"environment: {name!r} cannot be a variable's name")
    return [_bytes("environment", f"{name}={value}") for name, value in values.items()]


def _bytes(field: str, text: str) -> bytes:
    if "\0" in text:
        raise errors.BadRequest(f"{field}: text without NUL characters is needed")
    try:
        return os.fsencode(text)
    except UnicodeEncodeError as error:
        raise errors.BadRequest(f"{field}: text is needed, and not half a character") from error

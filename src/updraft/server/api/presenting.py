"""Turns what services return into what the API says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from updraft.model import dependencies
from updraft.model.job import Outcome
from updraft.model.states import State
from updraft.server.services.jobs import JobView, Page
from updraft.wire import schemas

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Row = Mapping[Any, Any]


def summary(view: JobView) -> schemas.JobSummary:
    """Return a job as lists have it."""
    return schemas.JobSummary(**_summary(view))


def job(view: JobView) -> schemas.Job:
    """Return a job with its attempts."""
    attempts = [_attempt(row) for row in view.attempts]
    tasks = None if view.tasks is None else schemas.TaskCounts(**asdict(view.tasks))
    return schemas.Job(
        **_summary(view),
        attempts=attempts,
        linked=view.reruns,
        tasks=tasks,
        children=view.children,
        live_children=list(view.live_children),
    )


def task(row: Row) -> schemas.Task:
    """Return an attempt of one of a job's tasks."""
    attempt = _attempt(row).model_dump()
    return schemas.Task(**attempt, index=row["task_index"], outcome=row["outcome"])


def page(found: Page) -> schemas.JobPage:
    """Return part of a list."""
    return schemas.JobPage(jobs=[summary(view) for view in found.jobs], next_cursor=found.following)


def event(row: Row) -> schemas.Event:
    """Return an event."""
    return schemas.Event(
        serial=row["serial"],
        at=instant(row["at_ns"]),
        kind=row["kind"],
        attempt=row["attempt"],
        message=row["message"],
    )


def status(found: dict[str, Any]) -> schemas.Status:
    """Return the server's status."""
    server = dict(found["server"])
    server["started"] = instant(server.pop("started_ns"))
    return schemas.Status.model_validate({**found, "server": server})


def instant(time_ns: int) -> datetime:
    """Return a UTC time."""
    return _EPOCH + timedelta(microseconds=time_ns // 1000)


def text(data: bytes) -> str:
    """Return bytes as text that every reader takes; what is not UTF-8 shows as its escape."""
    return data.decode(errors="backslashreplace")


def _summary(view: JobView) -> dict[str, Any]:
    row, command = view.row, view.command
    state = State(row["state"])
    names = {entry.partition(b"=")[0] for entry in command["set_environment"]}
    limit_ms = row["time_limit_ms"]
    return {
        "id": row["id"],
        "name": row["name"],
        "owner": row["owner"],
        "project": row["project"],
        "pool": row["pool"],
        "state": state,
        "ok": Outcome(state, row["exit_code"], "").ok if state.terminal else None,
        "exit_code": row["exit_code"],
        "reason": view.reason,
        "wanted": row["wanted"],
        "command": [text(word) for word in command["argv"]],
        "directory": text(command["directory"]),
        "environment": sorted(text(name) for name in names),
        "labels": json.loads(row["labels"]),
        "attached": row["attached"],
        "terminal": command["tty"] is not None,
        "stdin": command["stdin"],
        "resources": schemas.Resources(
            cpus=row["cpus_milli"] / 1000,
            memory_bytes=row["memory_bytes"] or None,
            gpus=row["gpus"],
        ),
        "time_limit_seconds": None if limit_ms is None else limit_ms / 1000,
        "retries": row["retries"],
        "priority": row["priority"],
        "times": schemas.Times(
            submitted=instant(row["created_ns"]),
            started=_maybe(row["started_ns"]),
            ended=_maybe(row["ended_ns"]),
        ),
        "source": row["source"],
        "parent": row["parent"],
        "kind": row["kind"],
        "task_count": row["tasks"],
        "after": [
            schemas.Dependency(job=edge.job, task=edge.task, on=edge.on, waits=edge in view.unmet)
            for edge in dependencies.read(row["after"])
        ],
    }


def _attempt(row: Row) -> schemas.Attempt:
    cpu_ns = row["cpu_ns"]
    return schemas.Attempt(
        number=row["number"],
        state=row["state"],
        runner=row["runner"],
        pid=row["pid"],
        gpus=json.loads(row["gpu_ids"]),
        granted=instant(row["granted_ns"]),
        started=_maybe(row["started_ns"]),
        ended=_maybe(row["ended_ns"]),
        exit_code=row["exit_code"],
        message=row["message"],
        stdout_bytes=row["stdout_bytes"],
        stderr_bytes=row["stderr_bytes"],
        usage=schemas.Usage(
            cpu_seconds=None if cpu_ns is None else cpu_ns / 1e9,
            peak_memory_bytes=row["peak_memory_bytes"],
            read_bytes=row["read_bytes"],
            written_bytes=row["written_bytes"],
        ),
    )


def _maybe(time_ns: int | None) -> datetime | None:
    return None if time_ns is None else instant(time_ns)

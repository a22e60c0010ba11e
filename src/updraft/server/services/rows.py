"""The rows that the services write: jobs, attempts and events, from what is live."""

from __future__ import annotations

import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from updraft.model import dependencies
from updraft.model.job import Outcome, Resources, RetryOn, Submission
from updraft.model.ranges import Ranges
from updraft.model.states import AttemptState, State, Wanted
from updraft.server.services.live import LiveAttempt, LiveJob
from updraft.server.services.live_array import LiveArray
from updraft.store import jobs as queries
from updraft.store.database import Work
from updraft.store.jobs import StoredTasks


def event_row(job: LiveJob, kind: str, message: str, attempt: int | None = None) -> dict[str, Any]:
    """Return an event of now."""
    return {
        "job_serial": job.serial,
        "at_ns": time.time_ns(),
        "kind": str(kind),
        "attempt": attempt,
        "message": message,
    }


@dataclass(frozen=True, slots=True)
class Start:
    """What an attempt's start writes."""

    job: dict[str, Any]
    attempt: dict[str, Any]
    event: dict[str, Any]


def start_of(job: LiveJob, attempt: LiveAttempt) -> Start:
    """Return what an attempt's start writes."""
    said = event_row(job, State.RUNNING, "started", attempt.number)
    return Start(
        job={"state": State.RUNNING, "started_ns": job.started_ns},
        attempt={
            "state": AttemptState.RUNNING,
            "pid": attempt.pid,
            "started_ns": attempt.started_ns,
        },
        event={**said, "at_ns": attempt.started_ns},
    )


def start_writes(job: LiveJob, attempt: LiveAttempt) -> Work[None]:
    """Return the write that stores an attempt's start."""
    start = start_of(job, attempt)

    def store(connection: Connection) -> None:
        queries.move_attempt(connection, attempt.serial, ("GRANTED",), start.attempt)
        if queries.move_job(connection, job.serial, (State.IN_QUEUE,), start.job):
            queries.insert_events(connection, [start.event])

    return store


def ended_values(outcome: Outcome, at_ns: int) -> dict[str, Any]:
    """Return what a job's end writes to its row."""
    return {
        "state": outcome.state,
        "exit_code": outcome.exit_code,
        "message": outcome.message,
        "ended_ns": at_ns,
        "environment": None,
        "key_slot": None,
    }


def command_body(submission: Submission) -> dict[str, Any]:
    """Return the command as it is stored and sent to runners."""
    body = asdict(submission.command)
    body["tty"] = body.pop("terminal")
    return body


def job_row(
    job: LiveJob, submission: Submission, jurisdiction: str, command: bytes, environment: bytes
) -> dict[str, Any]:
    """Return the row of a new job; ``command`` is packed, ``environment`` encrypted."""
    return {
        "serial": job.serial,
        "id": job.id,
        "owner": job.owner,
        "project": job.project,
        "jurisdiction": jurisdiction,
        "submit_key": submission.key,
        "attached": submission.attached,
        "detached": False,
        "name": submission.name,
        "labels": json.dumps(submission.labels),
        "pool": job.pool,
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
        "parent": submission.parent,
        "kind": submission.tasks.kind,
        "tasks": submission.tasks.count,
        "max_parallel": submission.tasks.max_parallel,
        "queued": None if job.array is None else str(job.array.queued),
        "retry_on": ",".join(sorted(job.retry_on)),
        "backoff_ms": job.backoff_ms,
        "not_before_ns": job.not_before_ns,
        "deadline_ns": job.deadline_ns,
        "after": dependencies.written(job.after),
        "state": State.IN_QUEUE,
        "wanted": Wanted.RUN,
        "message": "",
        "created_ns": job.created_ns,
        "kept": True,
    }


def attempt_row(job: LiveJob, attempt: LiveAttempt) -> dict[str, Any]:
    """Return the row of a granted attempt."""
    return {
        "serial": attempt.serial,
        "job_serial": job.serial,
        "task_index": 0,
        "number": attempt.number,
        "state": AttemptState.GRANTED,
        "runner": attempt.runner,
        "gpu_ids": json.dumps(attempt.gpus),
        "granted_ns": attempt.granted_ns,
        "message": "",
    }


def ended_attempt_values(
    outcome: Outcome, end: dict[str, Any], lengths: tuple[int, int]
) -> dict[str, Any]:
    """Return what an attempt's end writes to its row."""
    return {
        "state": AttemptState.LOST if "lost" in end else AttemptState.ENDED,
        "ended_ns": end["at"],
        "exit_code": outcome.exit_code,
        "message": outcome.message,
        "stdout_bytes": lengths[0],
        "stderr_bytes": lengths[1],
        "cpu_ns": end.get("cpu_ns"),
        "peak_memory_bytes": end.get("peak_memory_bytes"),
        "read_bytes": end.get("read_bytes"),
        "written_bytes": end.get("written_bytes"),
    }


def live_job(row: RowMapping, attempts: int) -> LiveJob:
    """Return the live job of a stored row that has had so many attempts."""
    return LiveJob(
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
        attempts=attempts,
        key_slot=row["key_slot"],
        retry_on=frozenset(map(RetryOn, filter(None, row["retry_on"].split(",")))),
        backoff_ms=row["backoff_ms"],
        not_before_ns=row["not_before_ns"],
        deadline_ns=row["deadline_ns"],
        parent=row["parent"],
        after=dependencies.read(row["after"]),
    )


def live_array(row: RowMapping, stored: StoredTasks) -> LiveArray:
    """Return the live array of a stored row, as yet without the tasks that have a grant."""
    queued = Ranges.parse(row["queued"] or "")
    return LiveArray(
        count=row["tasks"],
        total=row["ended_tasks"] + len(queued),
        max_parallel=row["max_parallel"],
        queued=queued,
        ok=row["ok_tasks"],
        ended=row["ended_tasks"],
        not_ok=Counter(stored.not_ok),
        worst=stored.worst,
        tries=stored.tries,
    )


def live_attempt(row: RowMapping, job: LiveJob) -> LiveAttempt:
    """Return the live attempt of a stored row, which is ``job``'s."""
    return LiveAttempt(
        serial=row["serial"],
        number=row["number"],
        runner=row["runner"],
        holds=job.need,
        gpus=tuple(json.loads(row["gpu_ids"])),
        granted_ns=row["granted_ns"],
        started_ns=row["started_ns"],
        pid=row["pid"],
        stored=True,
        start_stored=row["state"] != AttemptState.GRANTED,
    )

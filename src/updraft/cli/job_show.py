"""``updraft job show``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from updraft.cli import options
from updraft.cli.output import json, table, text

if TYPE_CHECKING:
    from updraft.sdk.client import Client
    from updraft.wire.schemas import Attempt, Dependency, Job, Resources, TaskCounts


@click.command
@options.task_id
@options.as_json
def command(job_id: tuple[str, int | None], as_json: bool) -> None:
    """Show all about a job: state, exit code, reason, attempts, times, resources.

    Of an array its tasks by state, and with ID/INDEX the attempts of one of them.

    Of what -e set, names are shown and values never; of the forwarded environment nothing is.
    """
    name, index = job_id
    with options.client() as client:
        if index is not None:
            _show_task(client, name, index, as_json=as_json)
            return
        job = client.job(name)
    if as_json:
        json.show(job)
    else:
        table.show_pairs(_pairs(job))


def _show_task(client: Client, job_id: str, index: int, *, as_json: bool) -> None:
    attempts = client.task(job_id, index)
    if as_json:
        json.show(attempts)
        return
    pairs = [("task", f"{job_id}/{index}")]
    if not attempts:
        pairs.append(("state", "IN_QUEUE"))
    else:
        last = attempts[-1]
        pairs.append(("state", str(last.outcome or last.state)))
        pairs.append(("exit code", "-" if last.exit_code is None else str(last.exit_code)))
    pairs += [(f"attempt {attempt.number}", _attempt(attempt)) for attempt in attempts]
    table.show_pairs(pairs)


def _tasks(tasks: TaskCounts | None) -> list[tuple[str, str]]:
    if tasks is None:
        return []
    parts = [
        (tasks.queued, "queued"),
        (tasks.running, "running"),
        (tasks.ok, "ok"),
        (tasks.not_ok, "not ok"),
    ]
    shown = ", ".join(f"{count} {how}" for count, how in parts if count)
    return [("tasks", f"{tasks.total}: {shown}"), ("not ok", tasks.failed)]


def _pairs(job: Job) -> list[tuple[str, str]]:
    shown = text.printable
    pairs = [
        ("id", job.id),
        ("name", shown(job.name)),
        ("state", str(job.state)),
        ("ok", text.yes_no(job.ok)),
        ("exit code", "-" if job.exit_code is None else str(job.exit_code)),
        ("reason", shown(job.reason or "-")),
        ("command", text.command(job.command)),
        ("directory", shown(job.directory)),
        ("set by -e", shown(" ".join(job.environment))),
        ("labels", shown(" ".join(f"{key}={value}" for key, value in job.labels.items()))),
        ("pool", job.pool),
        ("resources", _resources(job.resources)),
        ("time limit", _limit(job.time_limit_seconds)),
        ("retries", str(job.retries)),
        ("submitted", text.clock(job.times.submitted)),
        ("started", text.clock(job.times.started)),
        ("ended", text.clock(job.times.ended)),
        ("reruns", job.source or ""),
        ("rerun as", " ".join(job.linked)),
        *(("runs after", _dependency(each)) for each in job.after),
        ("submitted by job", job.parent or ""),
        ("submitted jobs", _children(job)),
        *_tasks(job.tasks),
    ]
    pairs += [(f"attempt {attempt.number}", _attempt(attempt)) for attempt in job.attempts]
    return [(label, value) for label, value in pairs if value]


def _dependency(found: Dependency) -> str:
    task = "" if found.task is None else f"/{found.task}"
    how = {"any": "has ended", "ok": "is ok", "fail": "is not ok"}[found.on]
    return f"{found.job}{task} {how}" + (", which it waits for" if found.waits else "")


def _children(job: Job) -> str:
    if not job.children:
        return ""
    live = job.live_children
    return (
        f"{job.children}, of which {len(live)} have not ended: {' '.join(live)}"
        if live
        else (f"{job.children}, all ended")
    )


def _resources(found: Resources) -> str:
    parts = [f"{found.cpus:g} CPU" + ("" if found.cpus == 1 else "s")]
    if found.memory_bytes is not None:
        parts.append(f"{text.size(found.memory_bytes)} of memory")
    if found.gpus:
        parts.append(f"{found.gpus} GPU" + ("" if found.gpus == 1 else "s"))
    return ", ".join(parts)


def _limit(seconds: float | None) -> str:
    return "-" if seconds is None else text.duration(seconds)


def _attempt(attempt: Attempt) -> str:
    parts = [f"{attempt.state} on {attempt.runner}" if attempt.runner else str(attempt.state)]
    if attempt.pid is not None and attempt.ended is None:
        parts.append(f"pid {attempt.pid}")
    if attempt.message:
        parts.append(text.printable(attempt.message))
    if attempt.started is not None and attempt.ended is not None:
        parts.append(f"ran {text.duration((attempt.ended - attempt.started).total_seconds())}")
    usage = attempt.usage
    if usage.cpu_seconds is not None:
        parts.append(f"{text.duration(usage.cpu_seconds)} of CPU")
    if usage.peak_memory_bytes is not None:
        parts.append(f"{text.size(usage.peak_memory_bytes)} peak memory")
    if attempt.gpus:
        parts.append("GPUs " + " ".join(attempt.gpus))
    return ", ".join(parts)

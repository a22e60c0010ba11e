"""Named queries over the jobs that others wait for."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

from sqlalchemy import Connection, RowMapping, select

from updraft.model.access import Principal
from updraft.model.dependencies import PAIRED, Edge
from updraft.model.job import Outcome
from updraft.model.ranges import Ranges
from updraft.model.states import State
from updraft.store.jobs import failed_tasks, find_job
from updraft.store.tables import attempts, jobs

_MOST_AT_A_TIME = 500
_COLUMNS = (
    jobs.c.serial,
    jobs.c.id,
    jobs.c.kind,
    jobs.c.tasks,
    jobs.c.state,
    jobs.c.exit_code,
    jobs.c.queued,
)


@dataclass(frozen=True, slots=True)
class Ended:
    """What has ended of what an edge names."""

    ok: bool | None = None
    """Of a job or a task: how; None: it has not."""
    tasks_ok: Ranges = field(default_factory=Ranges)
    """Of pairs: those that ended so."""
    tasks_not_ok: Ranges = field(default_factory=Ranges)


def find_upstreams(
    connection: Connection, who: Principal, names: Collection[str]
) -> dict[str, RowMapping]:
    """Return the project's jobs with these ids, or whose ids uniquely begin so, by these names."""
    wanted = list(dict.fromkeys(names))
    found: dict[str, RowMapping] = {}
    for start in range(0, len(wanted), _MOST_AT_A_TIME):
        some = wanted[start : start + _MOST_AT_A_TIME]
        exact = select(*_COLUMNS).where(jobs.c.id.in_(some), jobs.c.project == who.project)
        found |= {row["id"]: row for row in connection.execute(exact).mappings()}
    for name in wanted:
        if name not in found and len(rows := find_job(connection, who, name)) == 1:
            found[name] = rows[0]
    return found


def ends_of(connection: Connection, edges: Iterable[Edge]) -> dict[Edge, Ended | None]:
    """Return what has ended of each edge's upstream; None: that is not stored any more."""
    wanted = list(dict.fromkeys(edges))
    names = list(dict.fromkeys(edge.job for edge in wanted))
    rows: dict[str, RowMapping] = {}
    for start in range(0, len(names), _MOST_AT_A_TIME):
        some = select(*_COLUMNS).where(jobs.c.id.in_(names[start : start + _MOST_AT_A_TIME]))
        rows |= {row["id"]: row for row in connection.execute(some).mappings()}
    return {
        edge: None if edge.job not in rows else _ended(connection, edge, rows[edge.job])
        for edge in wanted
    }


def _ended(connection: Connection, edge: Edge, job: RowMapping) -> Ended:
    state = State(job["state"])
    if edge.task == PAIRED:
        return _pairs(connection, job, over=state.terminal)
    if edge.task is not None:
        last = (
            select(attempts.c.outcome, attempts.c.exit_code)
            .where(attempts.c.job_serial == job["serial"], attempts.c.task_index == edge.task)
            .order_by(attempts.c.number.desc())
            .limit(1)
        )
        found = connection.execute(last).first()
        if found is not None and found[0] not in (None, State.IN_QUEUE):
            return Ended(Outcome(State(found[0]), found[1], "").ok)
        return Ended(False if state.terminal else None)  # it never came to run
    return Ended(Outcome(state, job["exit_code"], "").ok if state.terminal else None)


def _pairs(connection: Connection, job: RowMapping, *, over: bool) -> Ended:
    """Return which of an array's tasks have ended: all that neither wait nor run."""
    waiting = Ranges.parse(job["queued"] or "")
    running = select(attempts.c.task_index).where(
        attempts.c.job_serial == job["serial"],
        attempts.c.state.in_(("GRANTED", "RUNNING", "STOPPING")),
    )
    unended = Ranges.parse(job["queued"] or "")
    for index in connection.execute(running).scalars():
        unended.add(index)
    not_ok = Ranges(failed_tasks(connection, job["serial"], job["tasks"]))
    # One that is tried again was not ok, and is not over.
    not_ok = not_ok.without(unended)
    ok = Ranges.span(0, job["tasks"]).without(unended).without(not_ok)
    if over:
        for start, stop in waiting.spans():
            not_ok.update(start, stop)
    return Ended(None, ok, not_ok)

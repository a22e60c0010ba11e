"""Named queries over jobs, attempts and events.

Every function takes a connection, so that the caller decides what is one transaction.  Guarded
writes name the state that they expect and say whether a row matched: False means that what the
caller saw is stale, and nothing was written.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Connection,
    Row,
    RowMapping,
    Table,
    Update,
    bindparam,
    case,
    delete,
    exists,
    func,
    literal_column,
    select,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from updraft.model.access import DEFAULT_PROJECT, Principal
from updraft.model.job import ID_LENGTH, Kind
from updraft.model.states import TERMINAL, AttemptState, State
from updraft.store.tables import attempts, events, jobs

Values = dict[str, Any]

_MOST_AT_A_TIME = 500

LIVE = tuple(state for state in State if state not in TERMINAL)


def insert_job(
    connection: Connection, job: Values, attempt: Values | None, said: Sequence[Values]
) -> None:
    """Store a new job, its first attempt if it starts at once, and its events."""
    connection.execute(jobs.insert(), job)
    if attempt is not None:
        connection.execute(attempts.insert(), attempt)
    connection.execute(events.insert(), list(said))


def find_submitted(
    connection: Connection, owner: str, key: bytes, project: str = DEFAULT_PROJECT
) -> str | None:
    """Return the id of the job that ``owner`` submitted to ``project`` with ``key``, if any."""
    statement = select(jobs.c.id).where(
        jobs.c.project == project, jobs.c.owner == owner, jobs.c.submit_key == key
    )
    return connection.execute(statement).scalar_one_or_none()


def move_job(
    connection: Connection, serial: int, expected: Collection[State], values: Values
) -> bool:
    """Write ``values`` to a job that is in one of the ``expected`` states."""
    statement = _move(jobs, tuple(values), tuple(expected))
    return connection.execute(statement, {**values, "b_serial": serial}).rowcount == 1


def move_attempt(
    connection: Connection, serial: int, expected: Collection[str], values: Values
) -> bool:
    """Write ``values`` to an attempt that is in one of the ``expected`` states."""
    statement = _move(attempts, tuple(values), tuple(expected))
    return connection.execute(statement, {**values, "b_serial": serial}).rowcount == 1


@functools.cache
def _move(table: Table, columns: tuple[str, ...], expected: tuple[str, ...]) -> Update:
    """Return a guarded update; kept, since making one costs more than running it.

    There are as many as there are calls of the two above in the code.
    """
    return (
        update(table)
        .where(table.c.serial == bindparam("b_serial"))
        .where(table.c.state.in_([literal_column(f"'{state}'") for state in expected]))
        .values({name: bindparam(name) for name in columns})
    )


def insert_attempt(connection: Connection, values: Values) -> None:
    """Store a granted attempt."""
    connection.execute(attempts.insert(), values)


def insert_events(connection: Connection, said: Sequence[Values]) -> None:
    """Append events."""
    if said:
        connection.execute(events.insert(), list(said))


def live_jobs(connection: Connection) -> Sequence[RowMapping]:
    """Return all jobs that have not ended, oldest first, without command and environment."""
    columns = [c for c in jobs.c if c.name not in ("command", "environment", "labels")]
    statement = select(*columns).where(jobs.c.state.in_(LIVE)).order_by(jobs.c.serial)
    return connection.execute(statement).mappings().all()


def live_attempts(connection: Connection) -> Sequence[RowMapping]:
    """Return the attempts of live jobs that have not ended."""
    statement = (
        select(attempts)
        .join(jobs, jobs.c.serial == attempts.c.job_serial)
        .where(jobs.c.state.in_(LIVE), attempts.c.state.in_(("GRANTED", "RUNNING", "STOPPING")))
    )
    return connection.execute(statement).mappings().all()


def attempt_counts(connection: Connection) -> dict[int, int]:
    """Return how many attempts each live job has had that is no array."""
    statement = (
        select(attempts.c.job_serial, func.max(attempts.c.number))
        .join(jobs, jobs.c.serial == attempts.c.job_serial)
        .where(jobs.c.state.in_(LIVE), jobs.c.kind != Kind.ARRAY)
        .group_by(attempts.c.job_serial)
    )
    return dict(connection.execute(statement).tuples().all())


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A job that others came from."""

    id: str
    parent: str | None
    state: State


def ancestors(connection: Connection, of: Collection[str] | None = None) -> dict[str, Ancestor]:
    """Return the jobs with these ids, and all that they came from, by id; None: all live jobs'."""
    if of is None:
        submitted = select(jobs.c.parent).where(jobs.c.state.in_(LIVE), jobs.c.parent.is_not(None))
        of = {each for each in connection.execute(submitted.distinct()).scalars() if each}
    found: dict[str, Ancestor] = {}
    left = list(of)
    while left:
        some, left = left[:_MOST_AT_A_TIME], left[_MOST_AT_A_TIME:]
        columns = select(jobs.c.id, jobs.c.parent, jobs.c.state).where(jobs.c.id.in_(some))
        for job_id, parent, state in connection.execute(columns).all():
            found[job_id] = Ancestor(job_id, parent, State(state))
            if parent is not None and parent not in found:
                left.append(parent)
    return found


def children_of(connection: Connection, who: Principal, job_id: str) -> int:
    """Return how many of the project's jobs this one submitted."""
    statement = select(func.count()).where(jobs.c.parent == job_id, jobs.c.project == who.project)
    return int(connection.execute(statement).scalar_one())


def last_serials(connection: Connection) -> tuple[int, int]:
    """Return the highest job and attempt serials that were given out; crews have those too."""
    live = attempts.c.state.in_(("GRANTED", "RUNNING", "STOPPING"))
    crew = connection.execute(select(func.max(attempts.c.crew)).where(live)).scalar() or 0
    return (
        connection.execute(select(func.max(jobs.c.serial))).scalar() or 0,
        max(crew, connection.execute(select(func.max(attempts.c.serial))).scalar() or 0),
    )


def command_of(connection: Connection, serial: int) -> Row[tuple[bytes, bytes | None, int | None]]:
    """Return a job's packed command, encrypted environment and key slot."""
    columns = (jobs.c.command, jobs.c.environment, jobs.c.key_slot)
    return connection.execute(select(*columns).where(jobs.c.serial == serial)).one()


def used_key_slots(connection: Connection) -> set[int]:
    """Return the key slots that live jobs use."""
    statement = select(jobs.c.key_slot).where(jobs.c.state.in_(LIVE), jobs.c.key_slot.is_not(None))
    return {slot for slot in connection.execute(statement).scalars() if slot is not None}


@dataclass(frozen=True, slots=True)
class Filter:
    """Which jobs a list shows."""

    states: tuple[State, ...] = ()
    failed: bool = False
    labels: tuple[tuple[str, str], ...] = ()
    limit: int = 50
    owner: str | None = None
    """Only this user's; None: the whole project's."""
    parent: str | None = None
    """Only what this job submitted."""


SHOWN_COMMAND_BYTES = 16384
"""Lists carry packed commands up to this size; ``command_of`` has those that are longer."""

_SHOWN = [
    *(c for c in jobs.c if c.name not in ("command", "environment", "submit_key")),
    case((func.length(jobs.c.command) <= SHOWN_COMMAND_BYTES, jobs.c.command)).label("command"),
]


def find_jobs(
    connection: Connection, who: Principal, wanted: Filter, before: int | None = None
) -> Sequence[RowMapping]:
    """Return jobs of the project that match, newest first; only those below serial ``before``.

    ``command`` is None where it is longer than ``SHOWN_COMMAND_BYTES``.
    """
    statement = select(jobs.c.serial)
    if wanted.failed:
        ended_badly = jobs.c.state.in_((State.FAILURE, State.EXPIRED, State.CANCELLED))
        exited_badly = (jobs.c.state == State.SUCCESS) & (jobs.c.exit_code != 0)
        statement = statement.where(ended_badly | exited_badly)
    for key, value in wanted.labels:
        statement = statement.where(_has_label(connection, key, value))
    if wanted.parent is not None:
        statement = statement.where(jobs.c.parent == wanted.parent)
    if before is not None:
        statement = statement.where(jobs.c.serial < before)
    statement = statement.order_by(jobs.c.serial.desc()).limit(wanted.limit)
    if not wanted.states:
        page = statement.where(jobs.c.project == who.project)
        if wanted.owner is not None:
            page = page.where(jobs.c.owner == wanted.owner)
    else:
        # Each state's newest come straight from its index, however many jobs there are; an
        # expression keeps the planner from walking the whole project instead.
        theirs = statement.where(jobs.c.project + "" == who.project)
        if wanted.owner is not None:
            theirs = theirs.where(jobs.c.owner + "" == wanted.owner)
        page = select(
            union_all(
                *(
                    select(theirs.where(jobs.c.state == state).subquery().c.serial)
                    for state in wanted.states
                )
            ).subquery()
        )
    found = (
        select(*_SHOWN)
        .where(jobs.c.serial.in_(page))
        .order_by(jobs.c.serial.desc())
        .limit(wanted.limit)
    )
    return connection.execute(found).mappings().all()


def find_job(connection: Connection, who: Principal, job_id: str) -> Sequence[RowMapping]:
    """Return the project's job with this id, else up to two whose ids begin with it."""
    if "\0" in job_id:
        return []  # PostgreSQL takes no such text
    theirs = select(*_SHOWN).where(jobs.c.project == who.project)
    exact = connection.execute(theirs.where(jobs.c.id == job_id)).mappings().all()
    if exact or not job_id:
        return exact
    # A range, unlike LIKE, is read from the ids' index.
    last = job_id + "z" * ID_LENGTH
    statement = select(*_SHOWN).where(
        jobs.c.project + "" == who.project,
        jobs.c.id.between(job_id, last),
    )
    return connection.execute(statement.limit(2)).mappings().all()


def find_serials(connection: Connection, serials: Collection[int]) -> Sequence[RowMapping]:
    """Return jobs by serial; ``command`` as ``find_jobs`` has it."""
    statement = select(*_SHOWN).where(jobs.c.serial.in_(serials))
    return connection.execute(statement).mappings().all()


def reruns_of(connection: Connection, who: Principal, job_id: str) -> list[str]:
    """Return the ids of the project's jobs that ran this one again, oldest first."""
    statement = (
        select(jobs.c.id)
        .where(jobs.c.source == job_id)
        .where(jobs.c.project == who.project)
        .order_by(jobs.c.serial)
    )
    return list(connection.execute(statement).scalars())


def _has_label(connection: Connection, key: str, value: str) -> ColumnElement[bool]:
    if isinstance(connection.dialect, sqlite.dialect):
        # Not a JSON path: it is compared with the key as it is written, escapes and all.
        each = func.json_each(jobs.c.labels).table_valued("key", "value")
        return exists().where(each.c.key == key, each.c.value == value)
    label: ColumnElement[str] = jobs.c.labels.cast(postgresql.JSONB)[key].astext
    return label == value


def attempts_of(
    connection: Connection, job_serial: int, index: int | None = None
) -> Sequence[RowMapping]:
    """Return a job's attempts, first to last; with ``index`` only those of this task."""
    statement = (
        select(attempts)
        .where(attempts.c.job_serial == job_serial)
        .order_by(attempts.c.task_index, attempts.c.number)
    )
    if index is not None:
        statement = statement.where(attempts.c.task_index == index)
    return connection.execute(statement).mappings().all()


def attempts_behind(
    connection: Connection, job_serial: int, after: int, limit: int
) -> Sequence[RowMapping]:
    """Return a job's attempts behind serial ``after``, in the order of their grants."""
    first = select(func.min(attempts.c.serial)).where(attempts.c.job_serial == job_serial)
    at = after or (connection.execute(first).scalar() or 1) - 1
    statement = (
        select(attempts)
        .where(attempts.c.serial > at, attempts.c.job_serial + 0 == job_serial)
        .order_by(attempts.c.serial)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def last_attempts(
    connection: Connection, job_serial: int, after: int, limit: int
) -> Sequence[RowMapping]:
    """Return the last attempt of each of a job's tasks behind index ``after``, in their order."""
    newer = attempts.alias()
    statement = (
        select(attempts)
        .where(attempts.c.job_serial == job_serial, attempts.c.task_index > after)
        .where(
            ~exists().where(
                newer.c.job_serial == attempts.c.job_serial,
                newer.c.task_index == attempts.c.task_index,
                newer.c.number > attempts.c.number,
            )
        )
        .order_by(attempts.c.task_index)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def events_of(
    connection: Connection, job_serial: int, after: int = 0, limit: int = 500
) -> Sequence[RowMapping]:
    """Return a job's events behind the one with serial ``after``."""
    statement = (
        select(events)
        .where(events.c.job_serial == job_serial, events.c.serial > after)
        .order_by(events.c.serial)
        .limit(limit)
    )
    return connection.execute(statement).mappings().all()


def kept_bytes(quota_bytes: int) -> ColumnElement[int]:
    """Return the sum of what is kept of attempts' output, of which no stream is over its quota.

    How much a task wrote is its runner's word, and may be far more than what it was let store.
    """
    each = [
        case((length > quota_bytes, quota_bytes), else_=length)
        for length in (attempts.c.stdout_bytes, attempts.c.stderr_bytes)
    ]
    # PostgreSQL's sum of BIGINT is a NUMERIC.
    return func.coalesce(func.sum(each[0] + each[1]).cast(BigInteger), 0)


def ended_with_output(
    connection: Connection, before_ns: int | None, limit: int, quota_bytes: int
) -> Sequence[Row[tuple[int, str, int]]]:
    """Return (serial, id, stored_bytes) of ended jobs whose output is kept, oldest first."""
    statement = (
        select(jobs.c.serial, jobs.c.id, kept_bytes(quota_bytes).label("stored_bytes"))
        .join(attempts, attempts.c.job_serial == jobs.c.serial, isouter=True)
        .where(jobs.c.state.in_(tuple(TERMINAL)), jobs.c.kept)
        .group_by(jobs.c.serial, jobs.c.id)
    )
    if before_ns is not None:
        statement = statement.where(jobs.c.ended_ns < before_ns)
    return connection.execute(statement.order_by(jobs.c.serial).limit(limit)).all()


def stored_bytes(connection: Connection, quota_bytes: int) -> int:
    """Return how much output of ended jobs is kept."""
    statement = (
        select(kept_bytes(quota_bytes))
        .join(jobs, jobs.c.serial == attempts.c.job_serial)
        .where(jobs.c.state.in_(tuple(TERMINAL)), jobs.c.kept)
    )
    return int(connection.execute(statement).scalar_one())


def drop_output(connection: Connection, serials: Collection[int]) -> None:
    """Note that the output of these jobs is no longer stored."""
    connection.execute(update(jobs).where(jobs.c.serial.in_(serials)).values(kept=False))


def kept_among(connection: Connection, ids: Collection[str]) -> set[str]:
    """Return those of these job ids whose output is stored, or to come."""
    return set(
        connection.execute(select(jobs.c.id).where(jobs.c.id.in_(ids), jobs.c.kept)).scalars()
    )


def oldest_jobs(
    connection: Connection, after: int, limit: int
) -> Sequence[Row[tuple[int, str, int, int | None]]]:
    """Return (serial, id, created_ns, ended_ns) of all owners' jobs behind serial ``after``.

    Without those that hold the highest serials, of a job, an attempt or an event: SQLite gives a
    highest one that went out again, and whoever has read up to it would miss what it stands for.
    """
    newest_attempt = select(attempts.c.job_serial).order_by(attempts.c.serial.desc()).limit(1)
    newest_event = select(events.c.job_serial).order_by(events.c.serial.desc()).limit(1)
    statement = (
        select(jobs.c.serial, jobs.c.id, jobs.c.created_ns, jobs.c.ended_ns)
        .where(jobs.c.serial > after)
        .where(jobs.c.serial != select(func.max(jobs.c.serial)).scalar_subquery())
        .where(jobs.c.serial != func.coalesce(newest_attempt.scalar_subquery(), 0))
        .where(jobs.c.serial != func.coalesce(newest_event.scalar_subquery(), 0))
        .order_by(jobs.c.serial)
        .limit(limit)
    )
    return connection.execute(statement).all()


def delete_jobs(connection: Connection, serials: Collection[int]) -> None:
    """Delete ended jobs with their attempts and events; those that live stay."""
    ended = jobs.c.state.in_(tuple(TERMINAL))
    connection.execute(delete(jobs).where(jobs.c.serial.in_(serials), ended))


# -- arrays

_NOT_OK = (attempts.c.outcome != "SUCCESS") | (attempts.c.exit_code != 0)
"""As the index of such attempts has it."""


def insert_attempts(connection: Connection, rows: Sequence[Values]) -> None:
    """Store granted attempts, all with the same columns."""
    if rows:
        connection.execute(attempts.insert(), list(rows))


def move_attempts(connection: Connection, rows: Sequence[Values]) -> int:
    """Write to live attempts, each row with its ``b_serial``; return how many matched.

    All rows have the same columns.
    """
    if not rows:
        return 0
    columns = tuple(name for name in rows[0] if name != "b_serial")
    statement = _move(attempts, columns, ("GRANTED", "RUNNING", "STOPPING"))
    return connection.execute(statement, list(rows)).rowcount


@dataclass(frozen=True, slots=True)
class StoredTasks:
    """What is stored of a live array's tasks, beyond its own row."""

    tries: dict[int, tuple[int, int]]
    """Of tasks that were tried again: their last attempt's number, and how many counted."""
    not_ok: dict[State, int]
    """How many ended in which state without being ok."""
    worst: tuple[int, int | None] | None
    """The lowest of those, and its exit code."""


def tasks_of(connection: Connection, job_serial: int) -> StoredTasks:
    """Return what is stored of an array's tasks; what went well is not looked at."""
    mine = (attempts.c.job_serial == job_serial) & _NOT_OK
    again = attempts.c.outcome == State.IN_QUEUE
    tries = (
        select(
            attempts.c.task_index,
            func.max(attempts.c.number),
            func.sum(case((attempts.c.state == AttemptState.RECALLED, 0), else_=1)),
        )
        .where(mine, again)
        .group_by(attempts.c.task_index)
    )
    counts = (
        select(attempts.c.outcome, func.count()).where(mine, ~again).group_by(attempts.c.outcome)
    )
    lowest = (
        select(attempts.c.task_index, attempts.c.exit_code)
        .where(mine, ~again)
        .order_by(attempts.c.task_index)
        .limit(1)
    )
    found = connection.execute(lowest).first()
    return StoredTasks(
        {index: (last, counted) for index, last, counted in connection.execute(tries).tuples()},
        {State(state): count for state, count in connection.execute(counts).tuples()},
        None if found is None else (found[0], found[1]),
    )


def next_not_ok(
    connection: Connection, job_serial: int, index: int
) -> tuple[int, int | None] | None:
    """Return the lowest task behind ``index`` that ended without being ok, and its exit code."""
    statement = (
        select(attempts.c.task_index, attempts.c.exit_code)
        .where(attempts.c.job_serial == job_serial, _NOT_OK, attempts.c.outcome != State.IN_QUEUE)
        .where(attempts.c.task_index > index)
        .order_by(attempts.c.task_index)
        .limit(1)
    )
    found = connection.execute(statement).first()
    return None if found is None else (found[0], found[1])


def tried_again(connection: Connection, serials: Collection[int]) -> None:
    """Note that the tasks of these ended attempts are queued anew."""
    if serials:
        again = update(attempts).where(attempts.c.serial.in_(serials))
        connection.execute(again.values(outcome=State.IN_QUEUE))


def failed_tasks(connection: Connection, job_serial: int, limit: int) -> Sequence[int]:
    """Return the lowest indices of an array's tasks whose last attempt was not ok."""
    newer = attempts.alias()
    statement = (
        select(attempts.c.task_index)
        .where(attempts.c.job_serial == job_serial, _NOT_OK, attempts.c.outcome != State.IN_QUEUE)
        .where(
            ~exists().where(
                newer.c.job_serial == attempts.c.job_serial,
                newer.c.task_index == attempts.c.task_index,
                newer.c.number > attempts.c.number,
            )
        )
        .order_by(attempts.c.task_index)
        .limit(limit)
    )
    return connection.execute(statement).scalars().all()

"""Named queries for notifications: how far each receiver has read the events.

The events are the outbox: each is written in the transaction of the change that it tells of, in
the order of their serials (there is one writer), and is kept as long as its job.  So a receiver
needs no more than the serial up to which it has been told.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, RowMapping, delete, func, or_, select, update

from updraft.model.states import TERMINAL, State
from updraft.store.tables import events, jobs, notification_cursors


def last_event(connection: Connection) -> int:
    """Return the serial of the newest event."""
    return connection.execute(select(func.max(events.c.serial))).scalar() or 0


def cursors(connection: Connection) -> dict[str, int]:
    """Return how far each receiver has been told."""
    columns = (notification_cursors.c.receiver, notification_cursors.c.event_serial)
    return dict(connection.execute(select(*columns)).tuples().all())


def begin(connection: Connection, receivers: Collection[str]) -> None:
    """Let new receivers begin with the next event, and forget those that are not there any more.

    One that has read further than there are events begins anew: releases that let the newest event
    go gave its serial out again.
    """
    newest = last_event(connection)
    known = {name: told for name, told in cursors(connection).items() if told <= newest}
    staying = known.keys() & set(receivers)
    connection.execute(
        delete(notification_cursors).where(notification_cursors.c.receiver.not_in(staying))
    )
    new = [name for name in receivers if name not in known]
    if new:
        rows = [{"receiver": name, "event_serial": newest} for name in new]
        connection.execute(notification_cursors.insert(), rows)


def advance(connection: Connection, receiver: str, serial: int) -> None:
    """Note that a receiver has been told up to this event; never backwards."""
    connection.execute(
        update(notification_cursors)
        .where(notification_cursors.c.receiver == receiver)
        .where(notification_cursors.c.event_serial < serial)
        .values(event_serial=serial)
    )


_JOB = (
    "id", "name", "project", "owner", "pool", "labels", "state", "exit_code", "message",
    "created_ns", "started_ns", "ended_ns",
)  # fmt: skip


def pending(
    connection: Connection,
    after: int,
    upto: int,
    *,
    notices: Collection[str],
    projects: Collection[str],
    limit: int,
) -> Sequence[RowMapping]:
    """Return events behind ``after``, at most ``upto``, that a receiver wants, with their jobs.

    ``projects``: only of these; empty: of all.
    """
    ended = events.c.kind.in_(tuple(TERMINAL))
    succeeded = (events.c.kind == State.SUCCESS) & (jobs.c.exit_code == 0)
    wanted = {
        "submitted": (events.c.kind == State.IN_QUEUE) & events.c.attempt.is_(None),
        "retried": (events.c.kind == State.IN_QUEUE) & events.c.attempt.is_not(None),
        "started": events.c.kind == State.RUNNING,
        "ok": succeeded,
        "not_ok": ended & ~func.coalesce(succeeded, False),
    }
    columns: list[Any] = [
        events.c.serial,
        events.c.at_ns,
        events.c.kind,
        events.c.attempt,
        events.c.message.label("event_message"),
        *(jobs.c[name].label(f"job_{name}") for name in _JOB),
    ]
    statement = (
        select(*columns)
        .join(jobs, jobs.c.serial == events.c.job_serial)
        .where(events.c.serial > after, events.c.serial <= upto)
        .where(or_(*(wanted[notice] for notice in notices)))
        .order_by(events.c.serial)
        .limit(limit)
    )
    if projects:
        statement = statement.where(jobs.c.project.in_(projects))
    return connection.execute(statement).mappings().all()

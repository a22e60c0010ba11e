"""Looking jobs up, always within the principal's project.

All of a project's members see all of its jobs.  A server admin who is not in the project sees them
too, and that is in the audit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.access import Principal
from updraft.model.dependencies import Edge
from updraft.model.job import Kind, Outcome
from updraft.model.ranges import Ranges
from updraft.model.states import State, Wanted
from updraft.server.services.audit import looks_in, note, note_about_job
from updraft.server.services.authority import need_change
from updraft.server.services.dependencies import unmet_of
from updraft.server.services.execution import Execution
from updraft.server.services.families import lineage_of
from updraft.server.services.live import LiveJob
from updraft.store import jobs as queries
from updraft.store.database import Database, Work
from updraft.wire.packing import unpack_dict

T = TypeVar("T")

MAX_PAGE = 500
_SHOWN_WORDS_BYTES = 4096
_EVENT_BATCH = 500
_SHOWN_CHILDREN = 100
_MOST_FAILED = 1000


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What a client that comes late needs of a job that has ended."""

    id: str
    attempt_number: int
    outcome: Outcome
    lengths: tuple[int, int]


@dataclass(frozen=True, slots=True)
class JobView:
    """A job as those see it who are in its project."""

    row: RowMapping
    command: dict[str, Any]
    """As packed in the store; its argv may be cut short in lists."""
    reason: str | None
    attempts: Sequence[RowMapping] = ()
    """An array's are not among them: see ``Jobs.tasks``."""
    reruns: list[str] = field(default_factory=list)
    tasks: TaskCounts | None = None
    """Of an array."""
    children: int = 0
    """How many jobs it submitted."""
    live_children: Sequence[str] = ()
    """Those of them that have not ended, the oldest ones."""
    unmet: Sequence[Edge] = ()
    """What it waits for of what it is to run after."""


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """How an array's tasks fare."""

    total: int
    queued: int
    running: int
    ok: int
    not_ok: int
    failed: str = ""
    """The indices of those that ended without being ok, as ranges; cut short when many."""


@dataclass(frozen=True, slots=True)
class Page:
    """Part of a list; ``following`` is the cursor of the next part, None at the end."""

    jobs: list[JobView]
    following: str | None


class Jobs:
    """Reads about jobs, live and ended."""

    def __init__(self, database: Database, execution: Execution) -> None:
        self._database = database
        self._execution = execution

    # -- one job

    async def row(self, who: Principal, job_id: str) -> RowMapping:
        """Return the job whose id is, or uniquely begins with, ``job_id``.

        Raises ``errors.NotFound``, for another project's job too, ``errors.NotAllowed``, and
        ``errors.BadRequest`` when the beginning fits several.
        """
        row = await self._row(who, job_id)
        if looks_in(who):
            await note_about_job(self._database, who, "see job", row["id"], row["owner"])
        return row

    async def changeable(self, who: Principal, job_id: str, action: str) -> RowMapping:
        """Return the job if the principal may end and change it; an admin's ``action`` is noted.

        Raises as ``row`` does, and ``errors.NotAllowed`` when it is another's.
        """
        row = await self._row(who, job_id)
        need_change(who, row["owner"], row["id"], await self._lineage(who, row))
        await note_about_job(self._database, who, action, row["id"], row["owner"])
        return row

    async def _lineage(self, who: Principal, row: RowMapping) -> tuple[str, ...]:
        """Return the jobs that a job came from, where that decides who may change it."""
        if not who.descendants_only or row["parent"] is None:
            return ()
        live = self._execution.live.find_serial(row["serial"])
        if live is not None:
            return live.lineage
        parent = row["parent"]
        found = await self._database.read(lambda c: queries.ancestors(c, {parent}))
        return lineage_of(parent, {each.id: each.parent for each in found.values()})

    async def _row(self, who: Principal, job_id: str) -> RowMapping:
        rows = await self._database.read(lambda c: queries.find_job(c, who, job_id))
        if not rows:
            raise errors.NotFound(f"there is no job {job_id!r}; see: updraft job list --all")
        if len(rows) > 1:
            raise errors.BadRequest(f"several jobs begin with {job_id!r}; give more of the id")
        return rows[0]

    async def read(self, look: Work[T]) -> T:
        """Read what a caller who looked a job up before needs of it."""
        return await self._database.read(look)

    async def show(self, who: Principal, job_id: str) -> JobView:
        """Return all there is to see of one job.  Raises as ``row`` does."""
        found = await self.row(who, job_id)
        return await self.shown(who, found)

    async def shown(self, who: Principal, found: RowMapping) -> JobView:
        """Return all there is to see of a job that was looked up before."""
        serial = found["serial"]

        array = found["kind"] == Kind.ARRAY

        def read(connection: Connection) -> tuple[Any, ...]:
            # One transaction: attempts and state belong together.
            return (
                queries.find_serials(connection, [serial])[0],
                queries.command_of(connection, serial).command,
                () if array else queries.attempts_of(connection, serial),
                queries.reruns_of(connection, who, found["id"]),
                queries.failed_tasks(connection, serial, _MOST_FAILED) if array else (),
                queries.children_of(connection, who, found["id"]),
            )

        row, command, attempts, reruns, failed, children = await self._database.read(read)
        if not State(row["state"]).terminal and self._execution.live.find_serial(serial) is None:
            # It ended meanwhile.
            row, command, attempts, reruns, failed, children = await self._database.read(read)
        tasks = self._counts(row, failed) if array else None
        live = self._execution.live.families.children(found["id"]) if children else []
        return JobView(
            row,
            unpack_dict(command),
            self._reason(row),
            attempts,
            reruns,
            tasks,
            children,
            [child.id for child in live[:_SHOWN_CHILDREN]],
            self._unmet(row),
        )

    def _counts(self, row: RowMapping, failed: Sequence[int]) -> TaskCounts:
        job = self._execution.live.find_serial(row["serial"])
        shown = str(Ranges(failed))
        if len(failed) == _MOST_FAILED:
            shown += ",…"
        if job is not None and job.array is not None:
            array = job.array
            return TaskCounts(
                total=array.total,
                queued=array.total - array.ended - array.running(),
                running=array.running(),
                ok=array.ok,
                not_ok=array.ended - array.ok,
                failed=shown,
            )
        unstarted = len(Ranges.parse(row["queued"] or ""))
        ended = row["ended_tasks"]
        return TaskCounts(
            total=ended + unstarted,
            queued=0,
            running=0,
            ok=row["ok_tasks"],
            not_ok=ended + unstarted - row["ok_tasks"],
            failed=shown,
        )

    async def tasks(
        self, who: Principal, job_id: str, after: int, limit: int
    ) -> Sequence[RowMapping]:
        """Return the last attempts of a job's tasks behind the index ``after``, in their order.

        Tasks that have had none are not among them.  Raises as ``row`` does.
        """
        row = await self.row(who, job_id)
        return await self._database.read(
            lambda c: queries.last_attempts(c, row["serial"], after, limit)
        )

    async def task(self, who: Principal, job_id: str, index: int) -> Sequence[RowMapping]:
        """Return the attempts of one task.  Raises as ``row`` does, and for an index that is none.

        A task that still waits has no attempt.
        """
        row = await self.row(who, job_id)
        check_index(row, index)
        return await self._database.read(lambda c: queries.attempts_of(c, row["serial"], index))

    async def wait(self, who: Principal, job_id: str, seconds: float) -> JobView:
        """Return the job once it has ended, or as it is after ``seconds``."""
        row = await self.row(who, job_id)
        serial = row["serial"]
        with self._execution.changes.follow(serial) as changed:
            try:
                async with asyncio.timeout(seconds):
                    while self._execution.live.find_serial(serial) is not None:
                        changed.clear()
                        await changed.wait()
            except TimeoutError:
                pass
        return await self.shown(who, row)

    async def resolve(self, who: Principal, job_id: str) -> LiveJob | EndedJob:
        """Return the live job, whose streams the caller may take over, or how it ended.

        Raises as ``row`` does, and ``errors.NotAllowed`` for another's live job.
        """
        live = self._execution.live.find(job_id)
        if live is not None and live.owner == who.owner and live.project == who.project:
            need_change(who, live.owner, live.id, live.lineage)
            return live
        row = await self.row(who, job_id)
        live = self._execution.live.find_serial(row["serial"])
        if live is not None:
            need_change(who, live.owner, live.id, live.lineage)
            await note_about_job(self._database, who, "attach to job", live.id, live.owner)
            return live
        state = State(row["state"])
        if not state.terminal:  # its end was stored while we looked
            row = await self._row(who, row["id"])
        attempts = await self._database.read(lambda c: queries.attempts_of(c, row["serial"], 0))
        last = attempts[-1] if attempts else None
        outcome = Outcome(State(row["state"]), row["exit_code"], row["message"])
        if last is None:
            return EndedJob(row["id"], 1, outcome, (0, 0))
        lengths = (last["stdout_bytes"] or 0, last["stderr_bytes"] or 0)
        return EndedJob(row["id"], last["number"], outcome, lengths)

    # -- lists

    async def list(self, who: Principal, wanted: queries.Filter, cursor: str | None = None) -> Page:
        """Return the project's jobs that match, newest first; ``cursor`` is an earlier page's.

        Raises ``errors.BadRequest`` for a cursor that is none, and ``errors.NotFound`` for a parent
        that is none.
        """

        def read(connection: Connection) -> tuple[Sequence[RowMapping], dict[int, dict[str, Any]]]:
            before = None
            if cursor is not None:
                last = queries.find_job(connection, who, cursor)
                if not last or last[0]["id"] != cursor:
                    raise errors.BadRequest(f"{cursor!r} is no cursor; use an earlier page's")
                before = last[0]["serial"]
            rows = queries.find_jobs(connection, who, wanted, before)
            # Long command lines are read one by one, and only their beginning is kept.
            long = {
                row["serial"]: _beginning(queries.command_of(connection, row["serial"]).command)
                for row in rows
                if row["command"] is None
            }
            return rows, long

        if wanted.parent is not None:
            parent = await self._row(who, wanted.parent)
            wanted = replace(wanted, parent=parent["id"])
        rows, long = await self._database.read(read)
        others = any(row["owner"] != who.owner for row in rows)
        if not who.member or (others and looks_in(who)):
            await self._database.write(lambda c: note(c, who, "list jobs", who.project))
        ended = [
            row["serial"]
            for row in rows
            if not State(row["state"]).terminal
            and self._execution.live.find_serial(row["serial"]) is None
        ]
        if ended:  # between our read and now; what has ended has no reason to wait
            newer = await self._database.read(lambda c: queries.find_serials(c, ended))
            changed = {row["serial"]: row for row in newer}
            rows = [changed.get(row["serial"], row) for row in rows]
        views = [
            JobView(
                row,
                long.get(row["serial"]) or unpack_dict(row["command"]),
                self._reason(row),
                unmet=self._unmet(row),
            )
            for row in rows
        ]
        following = rows[-1]["id"] if len(rows) == wanted.limit else None
        return Page(views, following)

    def _unmet(self, row: RowMapping) -> Sequence[Edge]:
        job = self._execution.live.find_serial(row["serial"]) if row["after"] else None
        return [] if job is None else unmet_of(job)

    def _reason(self, row: RowMapping) -> str | None:
        state = State(row["state"])
        if state.terminal:
            return str(row["message"])
        job = self._execution.live.find_serial(row["serial"])
        if job is None:
            return None
        if job.wanted is Wanted.CANCEL:
            return "it is being cancelled"
        if state is State.IN_QUEUE:
            return self._execution.live.reason(job)
        if job.array is not None:
            return self._execution.live.array_reason(job)
        runner = self._execution.live.runners.get(job.attempt.runner) if job.attempt else None
        if runner is None or runner.control is None:
            return "its runner is away; the job goes on without it"
        if job.attempt is not None and job.attempt.stopped:
            return "it is stopped by job control"
        return None

    # -- events

    async def events(
        self, who: Principal, job_id: str, after: int, *, follow: bool
    ) -> AsyncIterator[RowMapping]:
        """Return the job's events behind the one with serial ``after``, and if asked those to come.

        Following ends once the job has ended and all was told.  Raises as ``row`` does.
        """
        row = await self.row(who, job_id)
        return self._events(row["serial"], after, follow=follow)

    async def _events(self, serial: int, after: int, *, follow: bool) -> AsyncIterator[RowMapping]:
        with self._execution.changes.follow(serial) as changed:
            while True:
                changed.clear()
                ended = self._execution.live.find_serial(serial) is None
                batch = await self._database.read(
                    lambda c, after=after: queries.events_of(c, serial, after, _EVENT_BATCH)  # type: ignore[misc]
                )
                for event in batch:
                    after = event["serial"]
                    yield event
                if len(batch) == _EVENT_BATCH:
                    continue
                if ended or not follow:
                    return
                await changed.wait()


def check_index(row: RowMapping, index: int) -> None:
    """Let indices of the job's tasks pass.  Raises ``errors.NotFound``."""
    if not 0 <= index < row["tasks"]:
        raise errors.NotFound(
            f"job {row['id']} has no task {index}; its tasks are 0 to {row['tasks'] - 1}"
            if row["tasks"] > 1
            else f"job {row['id']} has one task, 0"
        )


def _beginning(packed: bytes) -> dict[str, Any]:
    """Return a long command with only the first words of its argv."""
    command = unpack_dict(packed)
    shown: list[bytes] = []
    room = _SHOWN_WORDS_BYTES
    for word in command["argv"]:
        if room <= 0:
            shown.append("…".encode())
            break
        shown.append(word if len(word) <= room else word[:room] + "…".encode())
        room -= len(word)
    return {**command, "argv": shown, "rlimits": []}

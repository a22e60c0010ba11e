"""Looking jobs up, always within what the principal may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, RowMapping

from updraft import errors
from updraft.model.job import Outcome, Principal
from updraft.model.states import State
from updraft.server.services.execution import Execution
from updraft.server.services.live import LiveJob
from updraft.store import jobs as queries
from updraft.store.database import Database


@dataclass(frozen=True, slots=True)
class EndedJob:
    """What a client that comes late needs of a job that has ended."""

    id: str
    attempt_number: int
    outcome: Outcome
    lengths: tuple[int, int]


class Jobs:
    """Reads about jobs, live and ended."""

    def __init__(self, database: Database, execution: Execution) -> None:
        self._database = database
        self._execution = execution

    async def row(self, who: Principal, job_id: str) -> RowMapping:
        """Return the job whose id is, or uniquely begins with, ``job_id``.

        Raises ``errors.NotFound``, for another owner's job too, and ``errors.BadRequest`` when the
        beginning fits several.
        """
        wanted = queries.Filter(id_prefix=job_id, limit=3)
        rows = await self._database.read(lambda c: queries.find_jobs(c, who, wanted))
        exact = [row for row in rows if row["id"] == job_id]
        if exact:
            return exact[0]
        if not rows or not job_id:
            raise errors.NotFound(f"there is no job {job_id!r}; see: updraft job list --all")
        if len(rows) > 1:
            raise errors.BadRequest(f"several jobs begin with {job_id!r}; give more of the id")
        return rows[0]

    async def resolve(self, who: Principal, job_id: str) -> LiveJob | EndedJob:
        """Return the live job, or how it ended."""
        live = self._execution.find(job_id)
        if live is not None and live.owner == who.owner and live.project == who.project:
            return live
        row = await self.row(who, job_id)
        live = self._execution.find_serial(row["serial"])
        if live is not None:
            return live
        state = State(row["state"])
        if not state.terminal:  # its end was stored while we looked
            row = await self.row(who, row["id"])
        attempts = await self._attempts(row["serial"])
        last = attempts[-1] if attempts else None
        outcome = Outcome(State(row["state"]), row["exit_code"], row["message"])
        if last is None:
            return EndedJob(row["id"], 1, outcome, (0, 0))
        lengths = (last["stdout_bytes"] or 0, last["stderr_bytes"] or 0)
        return EndedJob(row["id"], last["number"], outcome, lengths)

    async def _attempts(self, serial: int) -> Any:
        def read(connection: Connection) -> Any:
            return queries.attempts_of(connection, serial)

        return await self._database.read(read)

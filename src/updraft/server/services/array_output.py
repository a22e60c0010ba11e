"""What all tasks of an array wrote: attempt by attempt, those that run beside each other."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from sqlalchemy import RowMapping

from updraft.server.services.attempt_output import AttemptOutput, Begins, Piece, Window
from updraft.server.services.execution import Execution
from updraft.store import jobs as queries
from updraft.store.database import Database

_BATCH = 500


class ArrayOutput:
    """The output of one array, as its attempts were granted; ``row`` is its job's."""

    def __init__(self, database: Database, execution: Execution, row: RowMapping) -> None:
        self._database = database
        self._execution = execution
        self._serial: int = row["serial"]
        self._id: str = row["id"]
        self._open: dict[int, AttemptOutput] = {}
        self._labels: dict[int, str] = {}

    async def read(self, window: Window) -> AsyncIterator[Piece]:
        """Yield what there is, and with ``follow`` what comes until the array has ended.

        Pieces name attempts by their serials; what begins says of which task it is.
        """
        after = 0
        with self._execution.changes.follow(self._serial, output=True) as changed:
            try:
                while True:
                    changed.clear()
                    # In this order: what was written before an end is there when we read.
                    ended = self._execution.live.find_serial(self._serial) is None
                    last = ended or not window.follow
                    over = [serial for serial in self._open if last or self._is_over(serial)]
                    rows = await self._granted_behind(after)
                    for row in rows:
                        after = row["serial"]
                        over += self._begin(row, window, last=last)
                    async for piece in self._tell(over):
                        yield piece
                    if len(rows) < _BATCH:
                        if last:
                            return
                        await changed.wait()
            finally:
                for each in self._open.values():
                    each.__exit__()

    def _is_over(self, serial: int) -> bool:
        return serial not in self._execution.live.tasks

    async def _granted_behind(self, after: int) -> Sequence[RowMapping]:
        return await self._database.read(
            lambda c: queries.attempts_behind(c, self._serial, after, _BATCH)
        )

    def _begin(self, row: RowMapping, window: Window, *, last: bool) -> list[int]:
        """Take an attempt up; return it if it is over already."""
        serial = row["serial"]
        if row["ended_ns"] is not None and not (row["stdout_bytes"] or row["stderr_bytes"]):
            return []
        folder = self._execution.live.folder_of(self._id, row["number"], row["task_index"])
        self._open[serial] = AttemptOutput(folder, serial, window)
        self._labels[serial] = f"{row['task_index']}.{row['number']}"
        return [serial] if last or row["ended_ns"] is not None else []

    async def _tell(self, over: Sequence[int]) -> AsyncIterator[Piece]:
        for serial, output in list(self._open.items()):
            if serial in self._labels:
                label = self._labels.pop(serial)
                for piece in await asyncio.to_thread(output.begin):
                    assert isinstance(piece, Begins)  # noqa: S101 - what begins, begins
                    yield Begins(piece.attempt, piece.stream, piece.offset, label)
            output.look()
            while batch := await asyncio.to_thread(output.some):
                for piece in batch:
                    yield piece
        for serial in over:
            output = self._open.pop(serial)
            for piece in output.ends():
                yield piece
            output.__exit__()

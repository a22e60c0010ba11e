"""Reading what tasks wrote: from a position, the last lines, since a moment, and as it comes."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from updraft import errors
from updraft.model.access import Principal
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import Jobs
from updraft.storage import times
from updraft.storage.lines import last_lines
from updraft.storage.segments import SegmentReader
from updraft.store import jobs as queries
from updraft.store.database import Database
from updraft.wire import frames

NAMES = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}
MAX_TAIL = 1_000_000

_INDEX_TRIES = 50
_INDEX_WAIT_SECONDS = 0.002
_CLOCK_STEP_NS = 10_000_000


@dataclass(frozen=True, slots=True)
class Window:
    """Which part of a job's output is wanted."""

    streams: tuple[int, ...] = tuple(NAMES)
    attempt: int | None = None
    """Where to begin; None: with the last one.  Following goes on with those that come."""
    offsets: tuple[int, int] = (0, 0)
    """Where to begin in stdout and in stderr of that first attempt."""
    tail: int | None = None
    since_ns: int | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Begins:
    """What follows is of this attempt, and of this stream begins at ``offset``."""

    attempt: int
    stream: int
    offset: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Bytes of a stream.  A gap before ``offset`` was cut: the stored stream was over its quota."""

    attempt: int
    stream: int
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Ends:
    """All that is stored of the stream so far was told; ``offset`` is its length."""

    attempt: int
    stream: int
    offset: int


Piece = Begins | Chunk | Ends


class Logs:
    """The stored output of jobs."""

    def __init__(self, database: Database, execution: Execution, jobs: Jobs) -> None:
        self._database = database
        self._execution = execution
        self._jobs = jobs

    async def read(self, who: Principal, job_id: str, window: Window) -> AsyncIterator[Piece]:
        """Return the output in the order in which it was written.

        Raises as ``Jobs.row`` does, ``errors.NotFound`` for output that retention has removed and
        for an attempt that was not made.
        """
        row = await self._jobs.row(who, job_id)
        if not row["kept"]:
            raise errors.NotFound(
                f"the output of job {row['id']} is no longer stored; raise server.retention"
            )
        attempts = await self._database.read(lambda c: queries.attempts_of(c, row["serial"]))
        last = attempts[-1]["number"] if attempts else 0
        if window.attempt is not None and not 1 <= window.attempt <= last:
            raise errors.NotFound(f"job {row['id']} has no attempt {window.attempt}")
        return self._read(row["serial"], row["id"], window.attempt or last, window)

    async def _read(
        self, serial: int, job_id: str, first: int, window: Window
    ) -> AsyncIterator[Piece]:
        number: int | None = first
        with self._execution.changes.follow(serial, output=True) as changed:
            while number is not None:
                if number:
                    part = window if number == first else _whole(window)
                    folder = self._execution.live.folder_of(job_id, number)
                    with _Attempt(folder, number, part) as attempt:
                        for piece in await asyncio.to_thread(attempt.begin):
                            yield piece
                        over = False
                        while not over:
                            changed.clear()
                            # In this order: what was written before the end is there when we read.
                            over = not window.follow or self._over(serial, number)
                            attempt.look()
                            while batch := await asyncio.to_thread(attempt.some):
                                for piece in batch:
                                    yield piece
                            if not over:
                                await changed.wait()
                        for piece in attempt.ends():
                            yield piece
                if not window.follow:
                    return
                number = await self._next(serial, number, changed)

    def _over(self, serial: int, number: int) -> bool:
        """Whether the attempt writes no more."""
        job = self._execution.live.find_serial(serial)
        return job is None or job.attempt is None or job.attempt.number != number

    async def _next(self, serial: int, number: int, changed: asyncio.Event) -> int | None:
        """Wait for the attempt behind ``number``; None when the job ends without one."""
        while True:
            changed.clear()
            job = self._execution.live.find_serial(serial)
            if job is None:
                made = await self._database.read(lambda c: queries.attempts_of(c, serial))
                return number + 1 if made and made[-1]["number"] > number else None
            if job.attempts > number:
                return number + 1
            await changed.wait()


def _whole(window: Window) -> Window:
    """Only the first attempt is shown in part."""
    return Window(window.streams, follow=window.follow)


class _Attempt:
    """The stored output of one attempt, while it is being told.  Blocking, but for ``look``."""

    def __init__(self, folder: Path, number: int, window: Window) -> None:
        self._folder = str(folder)
        self._number = number
        self._window = window
        self._readers = {
            stream: SegmentReader(self._folder, NAMES[stream]) for stream in window.streams
        }
        self._merge = times.Merge(self._folder, {})
        self._ranges: Iterator[times.Range] = iter(())
        self._range: times.Range | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._readers.values():
            reader.close()

    def begin(self) -> list[Piece]:
        """Find where the wanted part begins."""
        window = self._window
        starts = {stream: window.offsets[stream - 1] for stream in window.streams}
        if window.since_ns is not None:
            for stream, offset in self._since(window.since_ns).items():
                starts[stream] = max(starts[stream], offset)
        if window.tail is not None:
            lengths = self._lengths()
            lines = {
                stream: last_lines(reader, starts[stream], lengths[stream], window.tail)
                for stream, reader in self._readers.items()
            }
            marks = times.last_marks(self._folder, lines, window.tail)
            for stream, mark in marks.items():
                starts[stream] = max(starts[stream], lengths[stream]) if mark is None else mark
        self._merge = times.Merge(self._folder, starts)
        return [Begins(self._number, stream, offset) for stream, offset in starts.items()]

    def look(self) -> None:
        """Take what is there now as what ``some`` is to tell."""
        self._ranges = self._merge.advance(self._lengths())

    def some(self) -> list[Piece]:
        """Return the next pieces, about a chunk's worth; nothing when all was told."""
        batch: list[Piece] = []
        room = frames.CHUNK_BYTES
        while room > 0:
            self._range = self._range or next(self._ranges, None)
            if self._range is None:
                break
            stream, at, end = self._range
            found, data = self._readers[stream].read(at, min(room, end - at))
            data = data[: max(end - found, 0)]
            self._range = None
            if data:
                batch.append(Chunk(self._number, stream, found, data))
                room -= len(data)
                if found + len(data) < end:
                    self._range = (stream, found + len(data), end)
        return batch

    def ends(self) -> list[Piece]:
        """Return up to where the streams were told."""
        return [Ends(self._number, *position) for position in self._merge.positions.items()]

    def _lengths(self) -> dict[int, int]:
        return {stream: reader.length() for stream, reader in self._readers.items()}

    def _since(self, time_ns: int) -> dict[int, int]:
        left = _INDEX_TRIES
        while True:
            lengths = self._lengths()
            found = times.since(self._folder, time_ns, lengths)
            behind = any(
                found[stream] == lengths[stream] and self._written_ns(stream) >= time_ns
                for stream in found
            )
            left -= 1
            if not behind or not left:
                return found
            # Written, but not yet in the index: the keeper is between the two.
            time.sleep(_INDEX_WAIT_SECONDS)

    def _written_ns(self, stream: int) -> int:
        """Return when the stream was last written to; files' times lag by a step of the clock."""
        name = NAMES[stream]
        try:
            written = [
                entry.stat().st_mtime_ns
                for entry in os.scandir(self._folder)
                if entry.name == name or entry.name.startswith(name + ".")
            ]
        except FileNotFoundError:
            return 0
        return max(written, default=0) + _CLOCK_STEP_NS

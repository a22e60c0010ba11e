"""What one attempt wrote, read from its files: which part, in which order, piece by piece."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from updraft.storage import times
from updraft.storage.lines import last_lines
from updraft.storage.segments import SegmentReader
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
    task: int | None = None
    """Of an array, only this one's; None: all of them, as they were granted."""
    tail: int | None = None
    since_ns: int | None = None
    follow: bool = False


@dataclass(frozen=True, slots=True)
class Begins:
    """What follows is of this attempt, and of this stream begins at ``offset``."""

    attempt: int
    stream: int
    offset: int
    label: str = ""
    """Of an array's task, whose ``attempt`` is then a serial: its index and the attempt's number,
    as ``17.1``."""


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


class AttemptOutput:
    """The stored output of one attempt, while it is being told.  Blocking, but for ``look``.

    ``number``: what its pieces name it by.
    """

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

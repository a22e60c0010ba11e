"""The time index beside a task's output: when which part of which stream was written.

A stream gets a record at its first bytes, and then at most every tenth of a second, or every 5 ms
where the streams take turns.  A record says *from this offset on, the stream was written at this
time or later*.  Readers use it to put the two streams into one order, right to 5 ms, and to find
where a moment lies, to a tenth of a second.

Standard library only: the keeper writes the file, the server reads it.
"""

from __future__ import annotations

import os
from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

NAME = "times"
RECORD = Struct("<QBQ")
"""(unix time in ns, stream, offset of the stream then)."""

GAP_NS = 100_000_000
"""A stream that goes on is noted this often."""
SWITCH_NS = 5_000_000
"""… and this often where the streams take turns."""

_BLOCK_RECORDS = 4096

Range = tuple[int, int, int]
"""(stream, from, to)."""


class TimesWriter:
    """Appends to the index of one folder."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, NAME)
        self._noted_ns: dict[int, int] = {}
        self._last = -1

    def note(self, now_ns: int, stream: int, offset: int) -> None:
        """Note that ``stream`` goes on from ``offset``; what cannot be written is left out."""
        since = now_ns - self._noted_ns.get(stream, -GAP_NS)
        if 0 <= since < (GAP_NS if stream == self._last else SWITCH_NS):
            return
        self._noted_ns[stream], self._last = now_ns, stream
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        try:
            fd = os.open(self._path, flags, 0o600)
        except OSError:
            return
        try:
            if os.write(fd, RECORD.pack(now_ns, stream, offset)) < RECORD.size:
                # Readers count in whole records.
                os.ftruncate(fd, os.fstat(fd).st_size // RECORD.size * RECORD.size)
        except OSError:
            pass  # a full disk; output itself waits for room, its times need not
        finally:
            os.close(fd)


def records(folder: str, start: int = 0) -> Iterator[tuple[int, int, int]]:
    """Yield ``(time_ns, stream, offset)`` from record number ``start`` to the last one."""
    try:
        fd = os.open(os.path.join(folder, NAME), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        at = start * RECORD.size
        while block := os.pread(fd, _BLOCK_RECORDS * RECORD.size, at):
            whole = len(block) // RECORD.size * RECORD.size
            if not whole:
                return  # one that is being written
            yield from RECORD.iter_unpack(block[:whole])
            at += whole
    finally:
        os.close(fd)


class Merge:
    """Puts streams that grow into the one order in which they were written."""

    def __init__(self, folder: str, positions: dict[int, int]) -> None:
        self._folder = folder
        self.positions = dict(positions)
        """Up to where each stream was handed out."""
        self._heads = {stream: _Head() for stream in positions}
        self._read = 0

    def advance(self, lengths: dict[int, int]) -> Iterator[Range]:
        """Yield the ranges up to ``lengths``, oldest first; each is handed out once."""
        cursors = {
            stream: _Cursor(self._folder, stream, head) for stream, head in self._heads.items()
        }
        ends = {
            stream: cursors[stream].settle(self.positions[stream], length)
            for stream, length in lengths.items()
        }
        while ready := [stream for stream in lengths if self.positions[stream] < ends[stream]]:
            stream = min(ready, key=lambda each: self._heads[each].next_record)
            start, end = self.positions[stream], ends[stream]
            self.positions[stream] = end
            yield stream, start, end
            ends[stream] = cursors[stream].settle(end, lengths[stream])


class _Head:
    """Where a stream stands in the index: behind the record that covers its position."""

    def __init__(self) -> None:
        self.next_record = 0


class _Cursor:
    """Moves a head along its stream's records; the record behind the head is read ahead."""

    def __init__(self, folder: str, stream: int, head: _Head) -> None:
        self._head = head
        self._number = head.next_record
        self._records = records(folder, head.next_record)
        self._stream = stream
        self._following: int | None = None
        self._next()

    def settle(self, position: int, length: int) -> int:
        """Move to the record that covers ``position``; return where its bytes end."""
        while self._following is not None and self._following <= position:
            self._head.next_record = self._number
            self._next()
        return length if self._following is None else min(length, self._following)

    def _next(self) -> None:
        self._following = None
        for _, stream, offset in self._records:
            self._number += 1
            if stream == self._stream:
                self._following = offset
                return


def since(folder: str, time_ns: int, lengths: dict[int, int]) -> dict[int, int]:
    """Return where in each stream the bytes written at ``time_ns`` or later begin.

    Precise to about a tenth of a second, in favour of showing more.
    """
    found: dict[int, int] = {}
    last: dict[int, tuple[int, int]] = {}
    for noted_ns, stream, offset in records(folder):
        if noted_ns < time_ns:
            last[stream] = (noted_ns, offset)
            found.pop(stream, None)  # the clock was set back: what counts is its last passing
        else:
            found.setdefault(stream, offset)
    for stream, (noted_ns, offset) in last.items():
        if time_ns - noted_ns < GAP_NS:
            # What followed this record within its gap has none of its own.
            found[stream] = min(found.get(stream, offset), offset)
    return {stream: found.get(stream, length) for stream, length in lengths.items()}


def last_marks(folder: str, marks: dict[int, list[int]], count: int) -> dict[int, int | None]:
    """Return the first of the last ``count`` marks of all streams, for each stream.

    ``marks``: ascending offsets in each stream, as where its lines begin.  None: none of the stream
    is among the last.
    """
    order: list[tuple[int, int, int]] = []
    for stream, offsets in marks.items():
        order += ((record, stream, offset) for record, offset in _placed(folder, stream, offsets))
    order.sort()
    shown = order[-count:] if count else []
    nothing: dict[int, int | None] = dict.fromkeys(marks)
    return nothing | {stream: offset for _, stream, offset in reversed(shown)}


def _placed(folder: str, stream: int, offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    head = _Head()
    cursor = _Cursor(folder, stream, head)
    for offset in offsets:
        cursor.settle(offset, offset)
        yield head.next_record, offset

"""The time index beside a task's output: when which part of which stream was written.

A stream gets a record at its first bytes, and then at most every tenth of a second, or every 5 ms
where the streams take turns.  A record says *from this offset on, the stream was written at this
time or later*.  Readers use it to put the two streams into one order, right to 5 ms, and to find
where a moment lies, to a tenth of a second.

An index that is full (about 1 MiB) is thinned: of what was written long ago, a record is left for
each thousandth of its age.  So the index stays small however long a task writes, and what is old is
found, and put in order, to a thousandth of how long ago it was.  A first record of stream 0 tells
when the index was thinned, and into which part of the age.

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

MAX_RECORDS = 1 << 16
"""An index that has grown to so many is thinned."""
AGE_DIVISOR = 1024
"""Thinning leaves a record for each so great a part of the age …"""
_THINNED_RECORDS = MAX_RECORDS * 3 // 4
"""… and coarser ones until there are no more than these."""
_THIN_AGAIN_NS = 60 * 10**9
_MARK = 0
"""The stream of a thinned index's first record: (when, 0, the divisor)."""

_BLOCK_RECORDS = 4096

Range = tuple[int, int, int]
"""(stream, from, to)."""


class TimesWriter:
    """Appends to the index of one folder."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, NAME)
        self._noted_ns: dict[int, int] = {}
        self._last = -1
        self._count = 0
        self._thin_at_ns = 0

    def note(self, now_ns: int, stream: int, offset: int) -> None:
        """Note that ``stream`` goes on from ``offset``; what cannot be written is left out."""
        since = now_ns - self._noted_ns.get(stream, -GAP_NS)
        if 0 <= since < (GAP_NS if stream == self._last else SWITCH_NS):
            return
        if self._count >= MAX_RECORDS and not self._thin(now_ns):
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
            else:
                self._count += 1
        except OSError:
            pass  # a full disk; output itself waits for room, its times need not
        finally:
            os.close(fd)

    def _thin(self, now_ns: int) -> bool:
        """Put a thinned index in the full one's place; False when there is no room for it now."""
        if 0 <= self._thin_at_ns - now_ns <= _THIN_AGAIN_NS:
            return False
        new = self._path + ".new"
        try:
            with open(self._path, "rb") as file:
                found = thinned(file.read(), now_ns)
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with open(fd, "wb") as file:
                file.write(found)
            os.replace(new, self._path)
        except OSError:
            self._thin_at_ns = now_ns + _THIN_AGAIN_NS
            return False
        self._count = len(found) // RECORD.size
        return True


def thinned(index: bytes, now_ns: int) -> bytes:
    """Return a full index with a mark before it, and of each stream one record for each cell.

    Cells are as long as a part of their age, in powers of two: so those of a later, coarser
    thinning are made of whole ones of this, and what is left out adds up to no more than a cell.
    """
    before = next(RECORD.iter_unpack(index[: RECORD.size]), None)
    divisor = before[2] if before is not None and before[1] == _MARK else AGE_DIVISOR
    while True:
        kept = [RECORD.pack(now_ns, _MARK, divisor)]
        last: dict[int, tuple[int, int]] = {}
        for noted_ns, stream, offset in RECORD.iter_unpack(index):
            # What a clock that was set back says of the future has a cell of its own.
            length = 1 << max(0, ((now_ns - noted_ns) // divisor).bit_length() - 1)
            cell = (length, noted_ns // length)
            if stream != _MARK and last.get(stream) != cell:
                last[stream] = cell
                kept.append(RECORD.pack(noted_ns, stream, offset))
        if len(kept) <= _THINNED_RECORDS or divisor == 1:
            break
        divisor //= 2
    if len(kept) > _THINNED_RECORDS:
        # A clock that jumps to and fro: where the streams begin, and the newest, tell most.
        firsts = {RECORD.unpack(record)[1]: record for record in reversed(kept[1:])}
        newest = kept[1 + len(firsts) - _THINNED_RECORDS :]
        kept[1:] = [*(record for record in firsts.values() if record not in newest), *newest]
    return b"".join(kept)


def records(folder: str) -> Iterator[tuple[int, int, int]]:
    """Yield ``(time_ns, stream, offset)`` from the first record to the last one."""
    with _Index(folder) as index:
        yield from index.records()


class _Index:
    """The index of one folder as it is now, also when a thinned one takes its place meanwhile."""

    def __init__(self, folder: str) -> None:
        try:
            self._fd = os.open(os.path.join(folder, NAME), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._fd = -1

    def __enter__(self) -> _Index:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def records(self, start: int = 0) -> Iterator[tuple[int, int, int]]:
        """Yield the records from number ``start`` on."""
        at = start * RECORD.size
        while self._fd >= 0 and (block := os.pread(self._fd, _BLOCK_RECORDS * RECORD.size, at)):
            whole = len(block) // RECORD.size * RECORD.size
            if not whole:
                return  # one that is being written
            yield from RECORD.iter_unpack(block[:whole])
            at += whole

    def mark(self) -> tuple[int, int, int] | None:
        """Return the mark of the last thinning, None if there was none."""
        first = next(self.records(), None)
        return first if first is not None and first[1] == _MARK else None


class Merge:
    """Puts streams that grow into the one order in which they were written."""

    def __init__(self, folder: str, positions: dict[int, int]) -> None:
        self._folder = folder
        self.positions = dict(positions)
        """Up to where each stream was handed out."""
        self._heads = {stream: _Head() for stream in positions}
        self._mark: tuple[int, int, int] | None = None

    def advance(self, lengths: dict[int, int]) -> Iterator[Range]:
        """Yield the ranges up to ``lengths``, oldest first; each is handed out once."""
        with _Index(self._folder) as index:
            yield from self._advance(index, lengths)

    def _advance(self, index: _Index, lengths: dict[int, int]) -> Iterator[Range]:
        if (mark := index.mark()) != self._mark:  # its records have new numbers
            self._mark = mark
            self._heads = {stream: _Head() for stream in self._heads}
        cursors = {stream: _Cursor(index, stream, head) for stream, head in self._heads.items()}
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

    def __init__(self, index: _Index, stream: int, head: _Head) -> None:
        self._head = head
        self._number = head.next_record
        self._records = index.records(head.next_record)
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

    Precise to about a tenth of a second, and in a thinned index to a thousandth of how long ago it
    was, in favour of showing more.
    """
    found: dict[int, int] = {}
    last: dict[int, tuple[int, int]] = {}
    thinned_ns, divisor = 0, 1
    for noted_ns, stream, offset in records(folder):
        if stream == _MARK:
            thinned_ns, divisor = noted_ns, offset
        elif noted_ns < time_ns:
            last[stream] = (noted_ns, offset)
            found.pop(stream, None)  # the clock was set back: what counts is its last passing
        else:
            found.setdefault(stream, offset)
    for stream, (noted_ns, offset) in last.items():
        if time_ns - noted_ns < GAP_NS + max(0, thinned_ns - noted_ns) // divisor:
            # What followed this record within its gap has none of its own.
            found[stream] = min(found.get(stream, offset), offset)
    return {stream: found.get(stream, length) for stream, length in lengths.items()}


def last_marks(folder: str, marks: dict[int, list[int]], count: int) -> dict[int, int | None]:
    """Return the first of the last ``count`` marks of all streams, for each stream.

    ``marks``: ascending offsets in each stream, as where its lines begin.  None: none of the stream
    is among the last.
    """
    order: list[tuple[int, int, int]] = []
    with _Index(folder) as index:
        for stream, offsets in marks.items():
            placed = _placed(index, stream, offsets)
            order += ((record, stream, offset) for record, offset in placed)
    order.sort()
    shown = order[-count:] if count else []
    nothing: dict[int, int | None] = dict.fromkeys(marks)
    return nothing | {stream: offset for _, stream, offset in reversed(shown)}


def _placed(index: _Index, stream: int, offsets: Iterable[int]) -> Iterator[tuple[int, int]]:
    head = _Head()
    cursor = _Cursor(index, stream, head)
    for offset in offsets:
        cursor.settle(offset, offset)
        yield head.next_record, offset

"""Finds where the last lines of a stored stream begin, reading backwards from its end."""

from __future__ import annotations

from updraft.storage.segments import SegmentReader

_BLOCK_BYTES = 256 * 1024
_NEWLINE = 10


def last_lines(reader: SegmentReader, start: int, end: int, count: int) -> list[int]:
    """Return where the last ``count`` lines between ``start`` and ``end`` begin, ascending.

    A last line without its newline counts.  What follows a cut begins a line.
    """
    found: list[int] = []
    block_end = end
    behind = -1  # where what is stored behind the piece begins
    while block_end > start and len(found) < count:
        block_start = max(start, block_end - _BLOCK_BYTES)
        for at, data in reversed(_pieces(reader, block_start, block_end)):
            index = len(data)
            while len(found) < count and (index := data.rfind(b"\n", 0, index)) >= 0:
                # One that ends the stream, or that a cut follows, begins no line.
                if index + 1 < len(data) or at + index + 1 == behind:
                    found.append(at + index + 1)
            cut_before = at > block_start or (at > start and reader.read(at - 1, 1)[0] != at - 1)
            if cut_before and len(found) < count:
                found.append(at)
            behind = at
        block_end = block_start
    if len(found) < count and end > start:
        at, data = reader.read(start, 1)
        if data and at < end and at not in found[-1:]:
            found.append(at)  # the first line
    return found[::-1]


def _pieces(reader: SegmentReader, start: int, end: int) -> list[tuple[int, bytes]]:
    """Return what is stored between two offsets: one piece, or several around cuts."""
    pieces: list[tuple[int, bytes]] = []
    while start < end:
        at, data = reader.read(start, end - start)
        data = data[: max(end - at, 0)]
        if not data:
            break
        if pieces and pieces[-1][0] + len(pieces[-1][1]) == at:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + data)
        else:
            pieces.append((at, data))
        start = at + len(data)
    return pieces

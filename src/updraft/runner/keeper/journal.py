"""What a keeper must know of a crew worker's tasks after a crash: a few bytes appended for each.

Two files take turns: the one that is older is begun anew when the other is full.  What is then gone
was forgotten by the server long ago, which grants a crew no more than a few hundred attempts ahead
of what it has stored.  A note is there before the task starts, and another once it has ended.

Frames: CREW (whose they are) at the beginning, SPAWN (channel: the attempt; offset: index and
number), EXITED (its end, packed).
"""

from __future__ import annotations

import errno
import os
import time

from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.packing import PackingError, pack, unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

_FULL_BYTES = 1 << 20
_SIDES = ("a", "b")


class Journal:
    """The notes of one worker, which appends them itself.  Raises ``OSError`` (a full disk)."""

    def __init__(self, path: str, whose: dict[str, Any]) -> None:
        self._path = path
        self._head = frames.message(frames.CREW, whose)
        self._fd = -1
        self._open(0)

    def _open(self, side: int) -> None:
        """Begin a side anew.  The other one stays what it is if there is no room for that."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(f"{self._path}.{_SIDES[side]}", flags, 0o600)
        try:
            if os.write(fd, self._head) < len(self._head):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.close(fd)
            raise
        if self._fd >= 0:
            os.close(self._fd)
        self._side, self._fd, self._size = side, fd, len(self._head)

    def note(self, notes: bytes) -> None:
        """Append notes: whole ones, or none where there is no room."""
        if self._size >= _FULL_BYTES:
            self._open(self._side ^ 1)
        count = os.write(self._fd, notes)
        if count < len(notes):
            os.ftruncate(self._fd, self._size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._size += count


def start_note(attempt: int, index: int, number: int) -> bytes:
    """Return the note that an attempt is about to start."""
    return frames.frame(frames.SPAWN, attempt << 2, index << 32 | number)


def end_note(attempt: int, end: bytes) -> bytes:
    """Return the note of an attempt's packed end."""
    return frames.frame(frames.EXITED, attempt << 2, 0, end)


def read(path: str) -> tuple[dict[str, Any], dict[int, tuple[int, int, bytes | None]]]:
    """Return whose the notes of one file are, and (index, number, end or None) by attempt."""
    whose: dict[str, Any] = {}
    found: dict[int, tuple[int, int, bytes | None]] = {}
    try:
        with open(path, "rb") as file:
            notes = list(frames.FrameReader().feed(file.read()))
        for kind, channel, offset, payload in notes:
            attempt = channel >> 2
            if kind == frames.CREW:
                whose = unpack_dict(bytes(payload))
            elif kind == frames.SPAWN:
                found[attempt] = (offset >> 32, offset & 0xFFFFFFFF, None)
            elif kind == frames.EXITED and attempt in found:
                index, number, _ = found[attempt]
                found[attempt] = (index, number, bytes(payload))
    except (OSError, PackingError, frames.FrameError):
        pass  # what could be read of it counts
    return whose, found


def read_both(path: str) -> tuple[dict[str, Any], dict[int, tuple[int, int, bytes | None]]]:
    """Return what the two files of a worker tell together."""
    whose: dict[str, Any] = {}
    found: dict[int, tuple[int, int, bytes | None]] = {}
    for side in _SIDES:
        theirs, notes = read(f"{path}.{side}")
        whose = whose or theirs
        for attempt, note in notes.items():
            if note[2] is not None or attempt not in found:
                found[attempt] = note
    return whose, found


def remove(path: str) -> None:
    """Remove a worker's notes."""
    for side in _SIDES:
        try:
            os.unlink(f"{path}.{side}")
        except FileNotFoundError:
            continue


def left_in(folder: str) -> Iterator[str]:
    """Yield the paths of the notes that an earlier keeper's workers left."""
    names = {name.rpartition(".")[0] for name in os.listdir(folder)}
    for name in sorted(filter(None, names)):
        yield os.path.join(folder, name)


def lost_end(why: str, folder: bytes) -> bytes:
    """Return the packed end, of now, of an attempt that was started and is not there any more."""
    where = os.fsdecode(folder)
    lengths = {name: SegmentReader(where, name).length() for name in ("stdout", "stderr")}
    return pack({"lost": why, "at": time.time_ns(), **lengths})

"""A stream of bytes kept in segment files, with a quota that spares its head and its tail.

A stream ``stdout`` lies in ``stdout`` (its head, from offset 0) and in ``stdout.<offset>``
(hexadecimal) files after it.  When more than the quota is kept, the oldest segments behind the head
go, and a reader finds a *cut*: a range that was written but is no longer there.  Positions always
count from the stream's first byte, cut or not.

Every byte is written at its position, whatever a file holds already.  On a folder that servers
share, one that was succeeded and does not know it yet may still write what its runner sent: that is
the same bytes to the same places, and the successor's stream is what it would be without.

Standard library only: the keeper writes these files, agent and server read them.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

DEFAULT_QUOTA_BYTES = 1 << 30
_TAIL_SEGMENTS = 8


class SegmentWriter:
    """Appends to a stream.  No file is made before the first byte."""

    def __init__(self, folder: str, name: str, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self._path = os.path.join(folder, name)
        self._head_bytes = max(quota_bytes // 2, 1)
        self._segment_bytes = max(quota_bytes // 2 // _TAIL_SEGMENTS, 1)
        self._fd: int | None = None
        self._segment_start = 0
        self._segment_end = self._head_bytes
        self._tail: list[int] = []  # where the segments behind the head start
        self._flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self.length = 0
        self.kept_bytes = 0
        """How much of it lies in files."""

    @classmethod
    def resume(
        cls, folder: str, name: str, quota_bytes: int = DEFAULT_QUOTA_BYTES
    ) -> SegmentWriter:
        """Return a writer that goes on behind what an earlier one stored.

        Raises ``OSError``.
        """
        os.makedirs(folder, mode=0o700, exist_ok=True)
        writer = cls(folder, name, quota_bytes)
        writer._flags &= ~os.O_EXCL  # the earlier one may make a file of the same stream once more
        with SegmentReader(folder, name) as reader:
            starts, writer.length = reader.starts(), reader.length()
            writer.kept_bytes = sum(os.stat(reader.file(start)).st_size for start in starts)
        if not starts:
            return writer
        last = starts[-1]
        writer._fd = os.open(reader.file(last), os.O_WRONLY | os.O_CLOEXEC)
        writer._tail = [start for start in starts if start]
        writer._segment_start = last
        writer._segment_end = last + writer._segment_bytes if last else writer._head_bytes
        return writer

    def skip(self, offset: int, keep_from: int | None = None) -> None:
        """Go on at ``offset``: what lies between was cut where it came from.

        ``keep_from`` is as of ``append``.  Raises ``OSError``.
        """
        if offset <= self.length:
            return
        fd = self._open(f"{self._path}.{offset:016x}")
        if self._fd is not None:
            os.close(self._fd)
        self._fd = fd
        self._tail.append(offset)
        self.length = self._segment_start = offset
        self._segment_end = offset + self._segment_bytes
        self._trim(keep_from)

    def append(self, data: bytes | memoryview, keep_from: int | None = None) -> int:
        """Write what fits the current segment and return its count, at least 1 for any data.

        ``keep_from``: an offset from which nothing may be cut, for a reader that is attached.
        Raises ``OSError`` (a full disk); what was counted before stays.
        """
        if self._fd is None:
            self._fd = self._open(self._path)
        elif self.length >= self._segment_end:
            fd = self._open(f"{self._path}.{self.length:016x}")
            os.close(self._fd)
            self._fd = fd
            self._tail.append(self.length)
            self._segment_start = self.length
            self._segment_end = self.length + self._segment_bytes
            self._trim(keep_from)
        part = memoryview(data)[: self._segment_end - self.length]
        count = os.pwrite(self._fd, part, self.length - self._segment_start)
        self.length += count
        self.kept_bytes += count
        return count

    def close(self) -> None:
        """Close the file; the stream stays readable."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def _trim(self, keep_from: int | None) -> None:
        # One segment is being filled, so the quota's tail is the others.
        while len(self._tail) > _TAIL_SEGMENTS:
            start, end = self._tail[0], self._tail[1]
            if keep_from is not None and end > keep_from:
                return
            path = f"{self._path}.{start:016x}"
            try:
                self.kept_bytes -= os.stat(path).st_size
                os.unlink(path)
            except FileNotFoundError:
                pass  # a server that was succeeded was here first
            del self._tail[0]

    def _open(self, path: str) -> int:
        # The mode is ours, whatever umask the keeper was born with.
        try:
            fd = os.open(path, self._flags, 0o600)
        except FileNotFoundError:  # the folder is made for the first byte
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, self._flags, 0o600)
        os.fchmod(fd, 0o600)
        return fd


class SegmentReader:
    """Reads a stream at any offset, while it grows too."""

    def __init__(self, folder: str, name: str) -> None:
        self._folder = folder
        self._name = name
        self._fd: int | None = None
        self._start = 0  # of the open segment

    def read(self, offset: int, size: int) -> tuple[int, bytes]:
        """Return ``(at, data)`` with at most ``size`` bytes.

        ``at`` is ``offset``, or behind it where the bytes between were cut.  Empty data: there is
        nothing (more) to read yet.
        """
        if self._fd is not None and offset >= self._start:
            data = os.pread(self._fd, size, offset - self._start)
            if data:
                return offset, data
        starts = self.starts()
        at = offset
        for index, start in enumerate(starts):
            following = starts[index + 1] if index + 1 < len(starts) else None
            if following is not None and at >= following:
                continue
            at = max(at, start)
            self._open(start)
            data = os.pread(self._fd, size, at - start) if self._fd is not None else b""
            if data or following is None:
                return at, data
            at = following  # this segment ends before ``at``: a cut lies between
        return at, b""

    def length(self) -> int:
        """Return how many bytes the stream has had so far."""
        starts = self.starts()
        if not starts:
            return 0
        try:
            return starts[-1] + os.stat(self.file(starts[-1])).st_size
        except FileNotFoundError:
            return starts[-1]

    def close(self) -> None:
        """Close the open segment."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, start: int) -> None:
        self.close()
        try:
            self._fd = os.open(self.file(start), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:  # cut since it was listed
            return
        self._start = start

    def file(self, start: int) -> str:
        """Return the path of the file that begins at ``start``."""
        name = f"{self._name}.{start:016x}" if start else self._name
        return os.path.join(self._folder, name)

    def starts(self) -> list[int]:
        """Return the offsets at which the files begin that there are now."""
        try:
            names = os.listdir(self._folder)
        except FileNotFoundError:
            return []
        starts = []
        for name in names:
            if name == self._name:
                starts.append(0)
            elif name.startswith(self._name + "."):
                starts.append(int(name[len(self._name) + 1 :], 16))
        return sorted(starts)

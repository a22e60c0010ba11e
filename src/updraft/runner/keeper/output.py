"""A task's output: read from its descriptor into its spool, as far as its reader allows."""

from __future__ import annotations

import fcntl
import os
import selectors
import time

from updraft.storage.segments import SegmentWriter
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Final, Protocol

    class Owner(Protocol):
        """The task, as its outputs see it."""

        retry_disk_at: float | None

        @property
        def selector(self) -> selectors.BaseSelector: ...
        @property
        def over(self) -> bool: ...
        def spooled(self, output: Output) -> None: ...
        def output_closed(self) -> None: ...


_F_SETPIPE_SZ = 1031
_F_GETPIPE_SZ = 1032
_PIPE_BYTES = 1 << 20
_BUFFER: Final = memoryview(bytearray(1 << 20))
"""What is read lies here until it is spooled: one buffer for all, as the keeper has one thread."""

_DISK_RETRY_SECONDS = 1.0


class Output:
    """One output stream.

    On a full disk it keeps the one chunk that could not be spooled, and reads no more.
    """

    def __init__(self, task: Owner, stream: int, spool: SegmentWriter, limit: int) -> None:
        self._task = task
        self.stream = stream
        self.fd: int | None = None
        self.closed = False
        self.told = 0
        self.limit = limit
        self.spool = spool
        self._unspooled: bytes | memoryview = b""
        self._left: int | None = None  # of what may be in its pipe once the task is over
        self._watched = False
        self._grown = False

    def open(self, fd: int | None) -> None:
        """Read ``fd`` from now on; None: what is written goes to another stream's place."""
        self.fd = fd
        self.closed = fd is None

    def resume(self) -> None:
        """Go on reading if the limit allows; once the task is over, read all that is left."""
        while not self.closed:
            if self._unspooled and not self._spool(self._unspooled):
                return
            if self.fd is None:
                self.close()
                return
            if self.spool.length >= self.limit and not self._task.over:
                self._set_watched(False)
                return
            if not self._task.over:
                self._set_watched(True)
                return
            if not self._read():
                return

    def readable(self) -> None:
        """The descriptor has bytes, or its end."""
        self._read()
        if self.spool.length >= self.limit or self._unspooled:
            self._set_watched(False)

    def read_what_is_there(self) -> None:
        """Read what may be in its pipe without waiting, as far as the limit allows.

        No more, since who goes on writing would hold up all others.
        """
        end = 0 if self.fd is None else min(self.limit, self.spool.length + _capacity(self.fd))
        while not self.closed and not self._unspooled and self.spool.length < end:
            if not self._read():
                return

    def close(self) -> None:
        """Close the descriptor: the stream ends here, once all that was read of it is stored."""
        if self.closed:
            return
        self._set_watched(False)
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None
        if self._unspooled:
            return
        self.closed = True
        self._task.output_closed()

    def _read(self) -> bool:
        assert self.fd is not None  # noqa: S101 - only called while it is open
        room = max(self.limit - self.spool.length, 0)
        if self._task.over:
            # The task writes no more: what its pipe holds is little, and all that its end waits
            # for.  Somebody outside its tree may have the other side, and is not waited for.
            if self._left is None:
                self._left = _capacity(self.fd)
            room = min(len(_BUFFER), self._left)
        try:
            count = os.readv(self.fd, [_BUFFER[:room]])
        except BlockingIOError:
            # After the end this means that somebody outside the tree still holds the other side.
            if self._task.over:
                self.close()
            return False
        except OSError:  # EIO: the last holder of the pty's other side is gone
            count = 0
        if count == 0:
            self.close()
            return False
        if self._left is not None:
            self._left -= count
        return self._spool(_BUFFER[:count])

    def _spool(self, data: bytes | memoryview) -> bool:
        """Store ``data``; on a full disk keep it and try again later.  Returns whether all went."""
        left = memoryview(data)
        keep_from = None
        if self.limit != frames.NO_LIMIT:
            keep_from = self.limit - frames.OUTPUT_WINDOW_BYTES
        try:
            while left:
                left = left[self.spool.append(left, keep_from) :]
        except OSError:
            # Nothing is lost: the task is held back by its full pipe until there is room again.
            self._unspooled = bytes(left)  # the buffer is every stream's
            self._set_watched(False)
            self._task.retry_disk_at = time.monotonic() + _DISK_RETRY_SECONDS
            self._task.spooled(self)
            return False
        self._unspooled = b""
        self._task.spooled(self)
        if not self._grown and len(data) >= 65536 and self.fd is not None:
            # A large writer gets a large pipe: fewer turns between it and us.
            self._grown = True
            try:
                fcntl.fcntl(self.fd, _F_SETPIPE_SZ, _PIPE_BYTES)
            except OSError:
                pass
        return True

    def _set_watched(self, watched: bool) -> None:
        if watched == self._watched or self.fd is None:
            return
        self._watched = watched
        if watched:
            self._task.selector.register(self.fd, selectors.EVENT_READ, self.readable)
        else:
            self._task.selector.unregister(self.fd)


def _capacity(fd: int) -> int:
    """Return how much can lie between a stream's writer and us."""
    try:
        return fcntl.fcntl(fd, _F_GETPIPE_SZ)
    except OSError:  # a terminal
        return _PIPE_BYTES

"""Sends a task's output from its spool to the server, as far as the server's limit allows."""

from __future__ import annotations

from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.transport import FrameConnection


class OutputStream:
    """One output stream of one attempt: what is spooled, what is sent, what may be sent."""

    def __init__(self, channel: int, folder: str, name: str) -> None:
        self.channel = channel
        self.length = 0
        self.limit: int | None = None  # nobody is attached
        self._sent = 0
        self._reader = SegmentReader(folder, name)

    def attach(self, offset: int, limit: int) -> None:
        """Send from ``offset`` on."""
        self._sent, self.limit = offset, limit

    def allow(self, limit: int) -> None:
        """More may be sent, up to ``limit``; an older word that comes late takes nothing back."""
        if self.limit is not None:
            self.limit = max(self.limit, limit)

    def detach(self) -> None:
        """Send no more."""
        self.limit = None
        self._reader.close()

    @property
    def due(self) -> bool:
        """Whether there is something that may be sent now."""
        return self.limit is not None and self._sent < min(self.length, self.limit)

    @property
    def owed(self) -> bool:
        """Whether a reader is attached that has not been sent all."""
        return self.limit is not None and self._sent < self.length

    def send_some(self, connection: FrameConnection, *, tell_cuts: bool) -> None:
        """Send one chunk; ``tell_cuts``: or that there is none before a later offset any more."""
        if self.limit is None:
            return
        size = min(frames.CHUNK_BYTES, self.limit - self._sent, self.length - self._sent)
        at, data = self._reader.read(self._sent, size)
        if not data:  # told of, but not there: a cut reaches to the end of what was told
            self._sent = max(at, self.length)
            if tell_cuts:
                connection.send_stream(frames.EOF, self.channel, self._sent)
            return
        connection.send_stream(frames.DATA, self.channel, at, data)
        self._sent = at + len(data)

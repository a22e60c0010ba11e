"""A task's input: what was sent, on its way into the command's stdin."""

from __future__ import annotations

import os
import selectors

from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Events(Protocol):
        """What an input tells its keeper."""

        def took(self, channel: int, offset: int) -> None: ...
        def input_closed(self, channel: int) -> None: ...


class Input:
    """Takes bytes by their offset, each once and in order; holds no more than the input window."""

    def __init__(
        self, attempt: int, selector: selectors.BaseSelector, events: Events, *, tty: bool
    ) -> None:
        self._channel = frames.stream_channel(attempt, frames.STDIN)
        self._selector = selector
        self._events = events
        self._tty = tty
        self._fd: int | None = None
        self._held = bytearray()
        self._end: int | None = None
        self._watched = False
        self.written = 0
        """How much the kernel has of it."""

    def open(self, fd: int | None) -> None:
        """Write into ``fd`` from now on; None: the command has no input."""
        self._fd = fd

    def receive(self, offset: int, data: bytes | memoryview) -> None:
        """Take input that starts at ``offset``; what was taken before is passed over."""
        have = self.written + len(self._held)
        if self._fd is None or offset > have:
            return  # a gap: the sender starts again from our ACK
        fresh = data[have - offset :]
        room = frames.INPUT_WINDOW_BYTES - len(self._held)
        self._held += fresh[: max(room, 0)]
        self._write()

    def end(self, length: int) -> None:
        """The input ends at ``length``: close it there."""
        self._end = length
        self._write()

    def close(self) -> None:
        """Close it here and now."""
        if self._fd is None:
            return
        self._set_watched(False)
        os.close(self._fd)
        self._fd = None
        self._held.clear()

    def _write(self) -> None:
        if self._fd is None:
            return
        before = self.written
        full = False
        try:
            while self._held:
                count = os.write(self._fd, memoryview(self._held)[:65536])
                del self._held[:count]
                self.written += count
            if self._tty and self._ended:
                # The end of piped input on a terminal is the character that means it.
                os.write(self._fd, b"\x04")
                self._end = None
        except BlockingIOError:
            full = True
        except OSError:  # the command closed its stdin, or hung up its terminal
            self.close()
            self._events.input_closed(self._channel)
            return
        if self.written != before:
            self._events.took(self._channel, self.written)
        self._set_watched(full)
        if self._ended and not full:
            self.close()

    @property
    def _ended(self) -> bool:
        return self._end is not None and self.written >= self._end

    def _set_watched(self, watched: bool) -> None:
        if self._fd is None or watched == self._watched:
            return
        self._watched = watched
        if watched:
            self._selector.register(self._fd, selectors.EVENT_WRITE, self._write)
        else:
            self._selector.unregister(self._fd)

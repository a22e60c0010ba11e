"""Frames that overtake the grant that they are about.

Grants come by the control connection, streams by the data connection: what a client types may be
here before the task that it types into.  It is held, and handed over with the grant.
"""

from __future__ import annotations

from collections import deque

from updraft.wire import frames

Frame = tuple[int, int, int, bytes]

_MAX_BYTES = 16 << 20
_MAX_FRAMES = 4096
_REMEMBERED = 4096


class EarlyFrames:
    """Held frames by attempt, bounded: what a broken server sends for no attempt goes first."""

    def __init__(self) -> None:
        self._held: dict[int, list[Frame]] = {}
        self._bytes = 0
        self._count = 0
        self._over: set[int] = set()
        self._order: deque[int] = deque()

    def hold(self, serial: int, frame: Frame) -> bool:
        """Keep a frame of an attempt that is not known yet; one that is over gets none.

        Returns False when input had to be dropped for it, which nobody sends again on this
        connection.
        """
        if serial in self._over:
            return True
        self._held.setdefault(serial, []).append(frame)
        self._bytes += len(frame[3])
        self._count += 1
        dropped: list[Frame] = []
        while self._bytes > _MAX_BYTES or self._count > _MAX_FRAMES:
            dropped += self.take(next(iter(self._held)))
        return not any(kind == frames.DATA for kind, *_ in dropped)

    def take(self, serial: int) -> list[Frame]:
        """Return what was held of an attempt, and hold it no more."""
        held = self._held.pop(serial, [])
        self._bytes -= sum(len(frame[3]) for frame in held)
        self._count -= len(held)
        return held

    def forget(self, serial: int) -> None:
        """An attempt is over: what comes late is of no use."""
        self.take(serial)
        if serial not in self._over:
            self._over.add(serial)
            self._order.append(serial)
            if len(self._order) > _REMEMBERED:
                self._over.discard(self._order.popleft())

    def clear(self) -> None:
        """The connection is gone, and with it what was under way."""
        self._held.clear()
        self._bytes = self._count = 0

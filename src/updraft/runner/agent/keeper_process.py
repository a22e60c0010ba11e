"""The keeper's process, as its agent sees it."""

from __future__ import annotations

import os
import select
import socket

from updraft.wire.sockets import peer_pid

_KEEPER_ENDS_SECONDS = 1.0
"""From the end of a dying keeper's connection to the keeper's own, on a busy machine."""


class KeeperProcess:
    """Whoever listens at the other end of a connection, by more than a number that may be reused.

    Raises ``ProcessLookupError`` when it has died.
    """

    def __init__(self, peer: socket.socket) -> None:
        pid = peer_pid(peer)
        self.pid = pid or 0
        self._fd: int | None = None
        if pid is not None and hasattr(os, "pidfd_open"):
            self._fd = os.pidfd_open(pid)

    def lives(self) -> bool:
        """Whether it lives, and is no zombie; asked when its connection has closed."""
        if self._fd is not None:
            poll = select.poll()
            poll.register(self._fd, select.POLLIN)
            return not poll.poll(_KEEPER_ENDS_SECONDS * 1000)
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        return True

    def close(self) -> None:
        """Let go of it."""
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None

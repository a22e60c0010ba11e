"""Leaders as their keeper sees them: one that waits or leads a task, and those forked ahead."""

from __future__ import annotations

import errno
import signal
import socket
import struct
import time

from updraft.runner.keeper import processes
from updraft.runner.keeper.leader import fork_beside, fork_leader
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Final

READY_LEADERS = 2
"""Leaders forked ahead of need: a launch does not wait for a fork."""

_MOST_IDLE_LEADERS = 4 * READY_LEADERS
_FORK_AFTER_SECONDS = 0.02
"""A short task has ended by then, and its end did not wait for the fork of the next leader."""

_GIVE_SECONDS = 5.0
"""How long all else waits for a leader to take its order: one that somebody has stopped takes none.
"""

_CREDENTIALS: Final = struct.Struct("iII")
_ANCILLARY_BYTES = socket.CMSG_SPACE(_CREDENTIALS.size)


class Leader:
    """A leader process, and the keeper's end of its socket.  Raises ``OSError``.

    ``beside``: the leader of an isolated task, for a command beside it; the new one is that
    leader's child, so its process id is not known here.
    """

    def __init__(self, *, isolated: bool = False, beside: Leader | None = None) -> None:
        self.isolated = isolated
        self.pid: int | None = None
        self.socket: socket.socket
        self._reader = frames.FrameReader()
        if beside is not None:
            self.isolated = True
            self.socket = fork_beside(beside.socket)
        else:
            self.pid, self.socket = fork_leader(isolated=isolated)

    @property
    def is_there(self) -> bool:
        """Whether its socket is open."""
        return self.socket.fileno() >= 0

    def alive(self) -> bool:
        """Whether it still listens: it has nothing to say before it has a task."""
        try:
            return self.socket.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True
        except OSError:
            return False

    def give(self, order: dict[str, Any], fds: list[int]) -> None:
        """Give it a task, with the task's descriptors.  Raises ``OSError``."""
        self.socket.settimeout(_GIVE_SECONDS)
        data = memoryview(frames.message(frames.SPAWN, order))
        try:
            sent = socket.send_fds(self.socket, [data], fds)
            if sent < len(data):  # sending nothing fails if the leader has already done it all
                self.socket.sendall(data[sent:])
        except TimeoutError as error:
            self.kill()
            raise OSError(errno.ETIMEDOUT, "its leader does not answer") from error
        self.socket.setblocking(False)

    def tell(self, kind: int, body: dict[str, Any]) -> None:
        """Say something to it that needs no answer."""
        try:
            self.socket.sendall(frames.message(kind, body))
        except OSError:
            # It is dead, or its socket is full of unread signals: one more says nothing new.
            return

    def hear(self) -> list[tuple[int, dict[str, Any]]] | None:
        """Return what it said, None when it is gone.

        Raises ``BlockingIOError`` when it said nothing.  What an isolated one says ends where the
        process that it is about changes.
        """
        about = None
        try:
            if self.isolated:
                chunk, ancillary, _, _ = self.socket.recvmsg(65536, _ANCILLARY_BYTES)
                about = _sender(ancillary)
            else:
                chunk = self.socket.recv(65536)
        except ConnectionError:
            chunk = b""
        if not chunk:
            return None
        said = []
        for kind, _, _, payload in self._reader.feed(chunk):
            body = unpack_dict(bytes(payload))
            if kind == frames.STARTED and self.isolated:
                body["pid"] = about
            said.append((kind, body))
        return said

    def kill(self) -> None:
        """Kill it; one that is another leader's child ends with that one."""
        if self.pid is not None:
            processes.signal_all([self.pid], signal.SIGKILL)


class IdleLeaders:
    """Those that wait for a task.

    ``isolated``: whether leaders of isolated tasks are forked ahead, instead of plain ones.
    """

    def __init__(self) -> None:
        self.isolated = False
        self.fork_at: float | None = None
        """When ``fill`` is to be called again (monotonic seconds), None for no particular time."""
        self._plain: list[Leader] = []
        self._isolated: list[Leader] = []

    def pids(self) -> set[int]:
        """Return their process ids."""
        waiting = (*self._plain, *self._isolated)
        return {leader.pid for leader in waiting if leader.pid is not None}

    def take(self, *, isolated: bool) -> Leader:
        """Return one that lives, forking it if none waits.  Raises ``OSError``."""
        idle = self._isolated if isolated else self._plain
        if isolated and len(idle) > 1:
            self.fork_at = time.monotonic() + _FORK_AFTER_SECONDS
        while idle:
            leader = idle.pop()
            if leader.alive():
                return leader
            leader.socket.close()
        return Leader(isolated=isolated)

    def give_back(self, leader: Leader) -> None:
        """One has led a task, and can lead another."""
        self._plain.append(leader)

    def drop(self, dead: list[int]) -> None:
        """Processes have ended: leaders among them wait no more."""
        for idle in (self._plain, self._isolated):
            idle[:] = [leader for leader in idle if leader.pid not in dead]

    def fill(self) -> None:
        """Fork ahead of need; called when nothing waits for the keeper."""
        idle = self._isolated if self.isolated else self._plain
        if self.fork_at is not None and idle and time.monotonic() < self.fork_at:
            return
        self.fork_at = None
        try:
            while len(idle) < READY_LEADERS:
                idle.append(Leader(isolated=self.isolated))
        except OSError:
            pass  # no more processes or descriptors: the next turn tries again
        while len(self._plain) > _MOST_IDLE_LEADERS:
            self._plain.pop().socket.close()


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the process that a message names, as its number is here."""
    for _, _, data in ancillary:
        return int(_CREDENTIALS.unpack_from(data)[0])
    return None

"""Crew workers as their keeper sees them: what each was given, what it says, how it is replaced."""

from __future__ import annotations

import os
import resource
import signal
import time

from updraft.runner.keeper import command
from updraft.runner.keeper.crew_worker import fork_worker
from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from updraft.runner.keeper.cgroups import Slot

_AHEAD_SECONDS = 0.02
"""How much work a worker has ahead: enough not to wait for us, little enough for the others."""

_MOST_AHEAD = 32
_TELL_SECONDS = 5.0
_SMOOTHING = 0.2
_HARMLESS_LIMITS = frozenset({"RLIMIT_CORE", "RLIMIT_STACK", "RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE"})


class Worker:
    """A worker process, and our end of its socket."""

    def __init__(self, spec: dict[str, Any], slot: Slot | None) -> None:
        """Fork it.  Raises ``OSError``."""
        self.slot = slot
        self.path: str = spec["journal"]
        self.given: dict[int, tuple[int, int]] = {}
        """The attempts that it has not ended, in their order: index and number."""
        self.told: dict[int, tuple[int, int]] = {}
        """Those of them that it told to have started: process id and when (ns)."""
        self.seconds = 0.0
        self._last = time.monotonic()
        self._reader = frames.FrameReader()
        cloned = slot is not None and slot.cloned
        groups = [] if slot is None else slot.entries
        self.pid, self.socket = fork_worker(spec, groups, cloned=cloned)

    @property
    def room(self) -> int:
        """How many more attempts it is to have ahead."""
        ahead = min(int(_AHEAD_SECONDS / self.seconds), _MOST_AHEAD) if self.seconds else 0
        return 1 + ahead - len(self.given)

    def give(self, tasks: list[tuple[int, int, int]]) -> None:
        """Give it attempts: (attempt, index, number)."""
        if not self.given:
            self._last = time.monotonic()
        for attempt, index, number in tasks:
            self.given[attempt] = (index, number)
        self.tell(frames.TASKS, {"tasks": [list(task) for task in tasks]})

    def tell(self, kind: int, body: dict[str, Any], attempt: int = 0) -> None:
        """Say something to it; one that is dead hears nothing, and one that does not hear ends."""
        try:
            self.socket.settimeout(_TELL_SECONDS)
            self.socket.sendall(frames.message(kind, body, attempt << 2))
            self.socket.setblocking(False)
        except TimeoutError:
            # It always reads, unless somebody stopped it: that must not hold up all the others.
            os.kill(self.pid, signal.SIGKILL)
            self.socket.setblocking(False)
        except OSError:
            return

    def hear(self) -> list[tuple[int, int, int, bytes]] | None:
        """Return the frames that it said, None when it is gone."""
        try:
            chunk = self.socket.recv(1 << 20)
        except BlockingIOError:
            return []
        except OSError:
            chunk = b""
        if not chunk:
            return None
        return [
            (kind, channel, offset, bytes(payload))
            for kind, channel, offset, payload in self._reader.feed(chunk)
        ]

    def ended(self, count: int) -> None:
        """So many of its attempts have ended since the last time."""
        now = time.monotonic()
        each = (now - self._last) / count
        self._last = now
        self.seconds = (
            each if not self.seconds else self.seconds + _SMOOTHING * (each - self.seconds)
        )
        self.seconds = max(self.seconds, 1e-4)


def suits(spec: dict[str, Any]) -> bool:
    """Whether workers can run a crew's tasks: there is nothing that each needs done by itself."""
    if spec.get("isolation") is not None or spec["memory_bytes"] or spec.get("fenced"):
        return False
    if "beside" in spec or spec["closed_fds"] or spec["one_output"] or "refused" in spec:
        return False
    limits, _ = command.reachable_limits(spec["rlimits"], root=os.geteuid() == 0)
    return all(_is_harmless(number, soft) for number, soft, _ in limits)


def _is_harmless(number: int, soft: int) -> bool:
    """Whether a worker can live with a limit that is its tasks'."""
    if number == resource.RLIMIT_NOFILE:
        return soft < 0 or soft >= 256
    return number in {getattr(resource, name, None) for name in _HARMLESS_LIMITS}

"""The keeper's child that is its agent: started, and started again whenever it ends."""

from __future__ import annotations

import os
import signal
import time

_BACKOFF_SECONDS = (0.0, 0.05, 0.2, 1.0, 2.0, 5.0)
_HEALTHY_SECONDS = 10.0


class AgentProcess:
    """One agent at a time, of this ``command``."""

    def __init__(self, command: list[str]) -> None:
        self.pid: int | None = None
        self._command = command
        self._started = 0.0
        self._failures = 0
        self._due: float | None = 0.0

    @property
    def due(self) -> float | None:
        """When it is to be started (monotonic seconds), None while it lives or is not wanted."""
        return self._due if self.pid is None else None

    def start_if_due(self, now: float) -> None:
        """Start it if it is time to."""
        if self.due is None or now < self.due:
            return
        self._started = now
        try:
            self.pid = os.posix_spawn(
                self._command[0], self._command, os.environ, setsigdef=[signal.SIGPIPE]
            )
        except OSError:
            self.ended()  # no more processes, or it is being upgraded: later

    def ended(self) -> None:
        """It has ended: it is due again, the later the more often it ended soon."""
        self.pid = None
        now = time.monotonic()
        healthy = now - self._started > _HEALTHY_SECONDS
        self._failures = 0 if healthy else self._failures + 1
        step = min(self._failures, len(_BACKOFF_SECONDS) - 1)
        if self._due is not None:
            self._due = now + _BACKOFF_SECONDS[step]

    def leave(self) -> None:
        """Start none any more; one that lives goes on."""
        self._due = None

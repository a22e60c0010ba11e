"""Wakes those who follow a job: once a change is stored, and only its own followers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Followers by job serial.  A follower waits on its event, clears it, and looks."""

    def __init__(self) -> None:
        self._followers: dict[int, set[asyncio.Event]] = {}

    @contextmanager
    def follow(self, job_serial: int) -> Iterator[asyncio.Event]:
        """Return an event that is set at every change from now on."""
        event = asyncio.Event()
        self._followers.setdefault(job_serial, set()).add(event)
        try:
            yield event
        finally:
            followers = self._followers[job_serial]
            followers.discard(event)
            if not followers:
                del self._followers[job_serial]

    def changed(self, job_serial: int) -> None:
        """Wake the job's followers."""
        for event in self._followers.get(job_serial, ()):
            event.set()

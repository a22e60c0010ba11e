"""Wakes those who follow a job: once a change is stored, and only its own followers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Changes:
    """Followers by job serial.  A follower waits on its event, clears it, and looks."""

    def __init__(self) -> None:
        self._followers: dict[int, set[asyncio.Event]] = {}
        self._readers: dict[int, set[asyncio.Event]] = {}

    @contextmanager
    def follow(self, job_serial: int, *, output: bool = False) -> Iterator[asyncio.Event]:
        """Return an event that is set at every change from now on.

        ``output``: also when the job's output grows, which may be thousands of times a second.
        """
        event = asyncio.Event()
        registries = [self._followers, *([self._readers] if output else [])]
        for registry in registries:
            registry.setdefault(job_serial, set()).add(event)
        try:
            yield event
        finally:
            for registry in registries:
                followers = registry[job_serial]
                followers.discard(event)
                if not followers:
                    del registry[job_serial]

    def changed(self, job_serial: int) -> None:
        """Wake the job's followers."""
        for event in self._followers.get(job_serial, ()):
            event.set()

    def grew(self, job_serial: int) -> None:
        """Wake those who read the job's output."""
        for event in self._readers.get(job_serial, ()):
            event.set()

"""What runners report of attempts: that they started, stopped, wrote, ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from updraft import errors
from updraft.model.states import State
from updraft.server.services.core import Core
from updraft.server.services.endings import Endings
from updraft.server.services.live import LiveAttempt, LiveJob
from updraft.server.services.rows import start_writes
from updraft.wire import frames

_START_WRITE_DELAY_SECONDS = 0.02
"""A start is stored a moment later: most short tasks end meanwhile, and one write tells both."""


class Reports:
    """What runners say of the attempts that they have."""

    def __init__(self, core: Core, endings: Endings) -> None:
        self._database = core.database
        self._background = core.background
        self._live = core.live
        self._intake = core.intake
        self._changes = core.changes
        self._endings = endings
        self.launched: Callable[[str, float, float], None] = lambda *_: None
        """Counts a launch: its pool, how long it was queued, how long its runner took (s)."""

    def started(self, serial: int, started: dict[str, Any]) -> None:
        """The command of an attempt runs; ``started`` has its ``pid``, and ``at`` when."""
        job = self._live.by_attempt.get(serial)
        if job is None or job.attempt is None or job.attempt.started_ns is not None:
            return
        attempt = job.attempt
        attempt.pid, attempt.started_ns = started["pid"], attempt.within(started["at"])
        job.state = State.RUNNING
        if job.started_ns is None:
            queued_ns = attempt.granted_ns - job.created_ns
            started_ns = attempt.started_ns - attempt.granted_ns
            self.launched(job.pool, max(queued_ns, 0) / 1e9, max(started_ns, 0) / 1e9)
        job.started_ns = job.started_ns or attempt.started_ns
        if job.client is not None:
            told = ("pid", "clamped_limits", "unenforced", "directory")
            job.client.forward(frames.STARTED, {k: started[k] for k in told if k in started})
        asyncio.get_running_loop().call_later(
            _START_WRITE_DELAY_SECONDS, self._store_start_soon, job, attempt
        )

    def _store_start_soon(self, job: LiveJob, attempt: LiveAttempt) -> None:
        if job.attempt is attempt and not job.ending and not attempt.start_stored:
            self._background.spawn(self._store_start(job, attempt), f"start {job.id}")

    async def _store_start(self, job: LiveJob, attempt: LiveAttempt) -> None:
        while job.attempt is attempt and not job.ending and not attempt.start_stored:
            attempt.start_stored = True
            try:
                await self._database.write(start_writes(job, attempt), patient=True)
            except errors.DiskFull:
                attempt.start_stored = False
                await self._background.wait_for_room()
            else:
                self._changes.changed(job.serial)

    def said(self, serial: int, kind: int, body: dict[str, Any]) -> None:
        """The command was stopped or continued by job control."""
        job = self._live.by_attempt.get(serial)
        if job is not None and job.attempt is not None:
            job.attempt.stopped = kind == frames.STOPPED
            if job.client is not None:
                job.client.forward(kind, body)

    def grew(self, serial: int) -> None:
        """An output stream of an attempt has grown: wake those who follow it."""
        job = self._live.by_attempt.get(serial)
        task = self._live.tasks.get(serial)
        if job is not None:
            self._changes.grew(job.serial)
        elif task is not None:
            self._changes.grew(task.crew.job.serial)

    def exited(self, serial: int, end: dict[str, Any]) -> None:
        """An attempt ended; its processes are gone and its output is spooled."""
        job = self._live.by_attempt.get(serial)
        if job is None or job.attempt is None or job.ending:
            return
        attempt = job.attempt
        if self._intake.holds(serial) and "stdout" in end:
            # The end shows once all output is here; a runner that goes away tells it anew.
            lengths = (end["stdout"], end["stderr"])
            self._intake.when_complete(
                serial, lengths, lambda: self._endings.end_attempt(job, attempt, end)
            )
        else:
            self._endings.end_attempt(job, attempt, end)

"""What is due at a time of the clock: jobs that may start now, and those that are to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from updraft.server.services.live import LiveJob

_LONGEST_WAIT_SECONDS = 30.0
"""A clock that is set meanwhile is noticed so soon."""


class Timing:
    """Timers of live jobs; ``begin`` lets one wait in its queue, ``expire`` ends one."""

    def __init__(self, begin: Callable[[LiveJob], None], expire: Callable[[LiveJob], None]) -> None:
        self._begin = begin
        self._expire = expire

    def watch(self, job: LiveJob) -> None:
        """A live job is there: look at its times until it has ended."""
        due = [at for at in (job.not_before_ns, job.deadline_ns) if at is not None]
        if due:
            self._look(job)

    def _look(self, job: LiveJob) -> None:
        if job.ending and job.state.terminal:
            return
        now_ns = time.time_ns()
        if job.deadline_ns is not None and job.deadline_ns <= now_ns:
            self._expire(job)
            return
        if job.not_before_ns is not None and job.not_before_ns <= now_ns:
            job.not_before_ns = None
            self._begin(job)
        due = [at for at in (job.not_before_ns, job.deadline_ns) if at is not None]
        if due:
            wait = min((min(due) - now_ns) / 1e9, _LONGEST_WAIT_SECONDS)
            job.timer = asyncio.get_running_loop().call_later(max(wait, 0.001), self._look, job)

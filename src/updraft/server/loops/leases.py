"""Gives up on runners that were not heard of for too long.

A runner that is silent is *suspect* for a while, and gets no new tasks (its connection is gone, or
is closed now); then its lease is *lost*, and its tasks are tried again elsewhere if they asked for
it.  Time is this machine's monotonic clock: a clock that is set, here or there, changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time

from updraft.server.observe.beats import Beats
from updraft.server.services.execution import Execution

log = logging.getLogger("updraft.leases")

NAME = "leases"
_LATE_SECONDS = 30.0


class Leases:
    """Watches the runners of one server."""

    def __init__(
        self, execution: Execution, suspect_seconds: float, lost_seconds: float, beats: Beats
    ) -> None:
        self._execution = execution
        self._beats = beats
        self._suspect_seconds = suspect_seconds
        self._lost_seconds = lost_seconds
        self._pass_seconds = min(1.0, suspect_seconds / 10)

    async def watch(self) -> None:
        """Look now and then, for ever."""
        looked = time.monotonic()
        self._beats.expect(NAME, _LATE_SECONDS)
        while True:
            await asyncio.sleep(self._pass_seconds)
            now = time.monotonic()
            # Had this process stood still (stopped, swapped out), runners would seem silent that
            # were not: what they said is in the sockets, and is heard before the next look.
            stalled = now - looked > self._suspect_seconds / 2
            looked = now
            with self._beats.one_pass(NAME):
                if not stalled:
                    self.look(now)
                else:
                    for runner in self._execution.live.runners.values():
                        runner.seen = now

    def look(self, now: float) -> None:
        """Decide about every runner at ``now`` (monotonic seconds)."""
        for runner in list(self._execution.live.runners.values()):
            if not runner.known.remote or runner.lost:
                continue
            silent = now - runner.seen
            if silent >= self._suspect_seconds and runner.control is not None:
                log.warning("runner %s is silent for %.0f s", runner.name, silent)
                self._execution.runners.hang_up(runner)
            if silent >= self._lost_seconds:
                log.error("the lease of runner %s is lost", runner.name)
                self._execution.runners.lost(
                    runner, f"its runner {runner.name} was not heard of for {silent:.0f} s"
                )

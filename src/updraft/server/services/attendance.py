"""Whose client is there: what happens to an attached job when its client goes and comes."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable

from updraft.server.services.live import Client, LiveJob
from updraft.server.services.live_jobs import LiveJobs
from updraft.wire import frames

SERVER_RESTART_WINDOW_SECONDS = 30.0
"""How long an attached job waits for its client after the server was restarted."""

REMOTE_WINDOW_SECONDS = 30.0
"""… and after a connection over a network broke: a client that lives dials again when it notices,
which may be half a minute later than the server did."""


class Attendance:
    """The clients of attached jobs.  ``give_up`` cancels a job that waits for nobody."""

    def __init__(self, live: LiveJobs, give_up: Callable[[LiveJob, str], None]) -> None:
        self._live = live
        self._give_up = give_up

    def back(self, job: LiveJob, client: Client) -> None:
        """A client attached to the job; another one that was attached is let go."""
        if job.client is not None and job.client is not client:
            job.client.replaced()
        job.client = client
        job.hung_up = job.output_waits = False
        if job.client_gone is not None:
            job.client_gone.cancel()
            job.client_gone = None

    def lost(self, job: LiveJob, client: Client) -> None:
        """The job's client went away without a word."""
        if job.client is not client:
            return
        job.client = None
        if job.attached and not job.detached:
            window = REMOTE_WINDOW_SECONDS if client.remote else 0.0
            self._expect(job, max(window, job.keep_alive_ms / 1000))

    def left(self, job: LiveJob, client: Client) -> None:
        """The job's client left on purpose: it goes on without one."""
        if job.client is client:
            job.client = None
        job.detached = True

    def expect_after_restart(self, job: LiveJob) -> None:
        """The server was restarted: the clients of attached jobs are about to come back."""
        if job.attached and not job.detached:
            self._expect(job, SERVER_RESTART_WINDOW_SECONDS)
            job.output_waits = True
            asyncio.get_running_loop().call_later(
                SERVER_RESTART_WINDOW_SECONDS, self._let_output_go, job
            )

    def runner_is_back(self, job: LiveJob) -> None:
        """The runner may still hold the output back for a client that left while it was away."""
        if job.client is None and not job.output_waits:
            runner = self._live.runner_of(job)
            if runner is not None and runner.data is not None and job.attempt is not None:
                # Where a later client's ATTACH goes too, lest that is overtaken.
                runner.data.send_message(frames.DETACH, {}, job.attempt.serial << 2)

    def _let_output_go(self, job: LiveJob) -> None:
        if job.output_waits:
            job.output_waits = False
            self.runner_is_back(job)

    def _expect(self, job: LiveJob, seconds: float) -> None:
        if job.client_gone is not None:
            job.client_gone.cancel()
        wait = max(seconds, job.keep_alive_ms / 1000)
        job.client_gone = asyncio.get_running_loop().call_later(wait, self._is_gone, job)

    def _is_gone(self, job: LiveJob) -> None:
        job.client_gone = None
        if job.ending or job.client is not None:
            return
        if job.waiting:
            self._give_up(job, "its client went away before it started")
            return
        if job.array is not None:
            self._give_up(job, "its client went away")
            return
        job.hung_up = True
        self.hang_up(job)

    def hang_up(self, job: LiveJob) -> None:
        """As a terminal that closes: the hangup goes to the command, which may choose to stay."""
        self._live.signal(job, signal.SIGHUP)
        self._live.signal(job, signal.SIGCONT)

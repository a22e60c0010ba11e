"""``updraft exec``: a second process beside a running job, on a connection of its own."""

from __future__ import annotations

import shutil
from typing import Any

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Outcome
from updraft.server.api.client_streams import STREAM_KINDS, ClientStreams
from updraft.server.services.access import Access
from updraft.server.services.authority import need_change
from updraft.server.services.beside import BesideRuns
from updraft.server.services.jobs import EndedJob, Jobs
from updraft.server.services.live import LiveJob
from updraft.wire import frames
from updraft.wire.transport import body_of, signal_of, size_of


class ExecSession(ClientStreams):
    """One process beside a job.  It is no job: it ends with its client, its job, or the server."""

    def __init__(self, beside: BesideRuns, jobs: Jobs, access: Access, who: Principal) -> None:
        super().__init__(beside.execution, access, who)
        self._beside = beside
        self._jobs = jobs
        self._serial: int | None = None

    # -- door.Session

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if kind in STREAM_KINDS:
            self.stream_frame(kind, channel, offset, payload)
        elif kind == frames.EXEC:
            self.ask(self._exec(body_of(payload)))
        elif kind == frames.SIGNAL:
            self._forward(kind, {"signal": signal_of(payload)})
        elif kind == frames.RESIZE:
            self._forward(kind, size_of(payload))

    def closed(self) -> None:
        self.let_go()
        if self._serial is not None:
            self._beside.abandon(self._serial)

    def writable(self, ready: bool) -> None:
        """What is under way to a client is bounded by the window that it granted."""

    # -- the run

    def _forward(self, kind: int, body: dict[str, Any]) -> None:
        if self._serial is not None:
            self._beside.forward(self._serial, kind, body)

    async def _exec(self, body: dict[str, Any]) -> None:
        if self._serial is not None:
            raise errors.Conflict("this connection has its process already")
        job = await self._jobs.resolve(await self.renew(), body["job"])
        if not isinstance(job, LiveJob):
            raise errors.Conflict(f"job {job.id} has ended; exec needs a running one")
        need_change(self.who, job.owner, job.id, job.lineage)  # who may have changed meanwhile
        self.job = job
        self._serial = self._beside.start(job, body, self)
        self.send(frames.ACCEPTED, {"job": job.id})

    # -- beside.Follower

    def granted(self, serial: int, folder: str) -> None:
        self.begin_streams(serial, 1, [0, 0], folder, resumed=False)

    def said(self, kind: int, body: dict[str, Any]) -> None:
        self.send(kind, body)

    def ended(self, outcome: Outcome, lengths: tuple[int, int]) -> None:
        self._serial = None
        self.end_streams(EndedJob("", 1, outcome, lengths))

    def let_go(self) -> None:
        super().let_go()
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)

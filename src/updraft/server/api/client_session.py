"""A client of the raw protocol: ``urun`` with its job, or ``ubatch`` leaving one."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from updraft import errors
from updraft.model.access import Principal
from updraft.model.job import Outcome
from updraft.server.api.client_streams import OUTPUTS, STREAM_KINDS, ClientStreams
from updraft.server.services.access import Access
from updraft.server.services.authority import need_change
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import EndedJob, Jobs
from updraft.server.services.live import LiveAttempt, LiveJob
from updraft.server.services.submission import parse_submission
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of, signal_of, size_of

_ENDING_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_TELL_WHY_AFTER_SECONDS = 0.7


class ClientSession(ClientStreams):
    """One client connection: at most one job, whose streams it holds."""

    def __init__(self, execution: Execution, jobs: Jobs, access: Access, who: Principal) -> None:
        super().__init__(execution, access, who)
        self._jobs = jobs
        self._remote = False

    # -- door.Session

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        super().start(connection, body)
        self._remote = connection.is_remote

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if kind in STREAM_KINDS:
            self.stream_frame(kind, channel, offset, payload)
        elif kind == frames.SUBMIT:
            self.ask(self._submit(body_of(payload)))
        elif kind == frames.ATTACH:
            self.ask(self._attach(body_of(payload)))
        elif kind == frames.SIGNAL:
            self._signal(signal_of(payload))
        elif kind == frames.RESIZE:
            size = size_of(payload)
            if self.job is not None:
                self.execution.live.forward(self.job, frames.RESIZE, size)
        elif kind == frames.DETACH and self.job is not None:
            self.ask(self._detach(self.job))
        elif kind == frames.CANCEL and self.job is not None:
            self.ask(self.execution.cancel(self.job))

    def closed(self) -> None:
        self.let_go()
        if self.job is not None:
            self.execution.attendance.lost(self.job, self)
            self.job = None

    def writable(self, ready: bool) -> None:
        """What is under way to a client is bounded by the window that it granted."""

    # -- requests

    async def _submit(self, body: dict[str, Any]) -> None:
        if self.job is not None:
            raise errors.Conflict("this connection has its job already")
        submission, environment = parse_submission(body)
        who = await self.renew()
        await self.access.admission.admit(who, submission)
        client = self if submission.attached else None
        # The client may go while its job is being stored: the job is stored all the same.
        job_id = await asyncio.shield(
            self.execution.submitting.submit(who, submission, environment, client)
        )
        self.renewed(self.who)  # which may have changed meanwhile
        if client is None:
            self.send(frames.ACCEPTED, {"job": job_id})
        elif self._is_idle():
            # The same submission came before: the client lost its connection after it was stored.
            await self._attach({"job": job_id, "attempt": 1, "stdout": 0, "stderr": 0})

    def _is_idle(self) -> bool:
        return self.job is None and self._ended is None and self.connection is not None

    async def _attach(self, body: dict[str, Any]) -> None:
        found = await self._jobs.resolve(await self.renew(), body["job"])
        if isinstance(found, EndedJob):
            self._replay(found, body)
            return
        need_change(
            self.who, found.owner, found.id, found.lineage
        )  # who may have changed meanwhile
        self.job = found
        self.execution.attendance.back(found, self)
        self.send(frames.ACCEPTED, {"job": found.id})
        if found.attempt is not None:
            self._hold(found, found.attempt, body)
        elif found.waiting:
            self._tell_why_later()

    def _hold(self, job: LiveJob, attempt: LiveAttempt, body: dict[str, Any]) -> None:
        positions = [body["stdout"], body["stderr"]]
        folder = str(self.execution.live.folder_of(job.id, attempt.number))
        if positions[0] < 0:  # from now on
            positions = [SegmentReader(folder, name).length() for name in OUTPUTS.values()]
        elif body["attempt"] != attempt.number:
            positions = [0, 0]
        self.begin_streams(attempt.serial, attempt.number, positions, folder, resumed=True)
        if attempt.started_ns is not None:
            self.send(frames.STARTED, {"pid": attempt.pid})
        if attempt.stopped:
            self.send(frames.STOPPED, {"signal": signal.SIGTSTP})

    def _replay(self, ended: EndedJob, body: dict[str, Any]) -> None:
        """A job that has ended: all comes from the store."""
        positions = [max(body["stdout"], 0), max(body["stderr"], 0)]
        if body["attempt"] != ended.attempt_number:
            positions = [0, 0]
        self.send(frames.ACCEPTED, {"job": ended.id})
        folder = str(self.execution.live.folder_of(ended.id, ended.attempt_number))
        # Serial 0 is no attempt's: there is no runner for it.
        self.begin_streams(0, ended.attempt_number, positions, folder, resumed=True)
        self.end_streams(ended)

    def _signal(self, number: int) -> None:
        job = self.job
        if job is None:
            return
        if job.attempt is None:
            if number in _ENDING_SIGNALS:
                self.run(self.execution.cancel(job, "cancelled before it started", patient=True))
            return
        self.execution.live.signal(job, number)

    async def _detach(self, job: LiveJob) -> None:
        await self.execution.detach_client(job, self)
        self.job = None
        if self.connection is not None:
            self.connection.close()

    # -- live.Client

    @property
    def remote(self) -> bool:
        return self._remote

    def accepted(self, job: LiveJob) -> None:
        self.job = job
        if self.connection is None:  # it went while the job was being stored
            self.execution.attendance.lost(job, self)
            return
        self.send(frames.ACCEPTED, {"job": job.id})
        if job.attempt is None:
            self._tell_why_later()

    def attempt_granted(self, job: LiveJob, attempt: LiveAttempt) -> None:
        if self.attachment is not None:
            self.deliver_rest()
        folder = str(self.execution.live.folder_of(job.id, attempt.number))
        self.begin_streams(attempt.serial, attempt.number, [0, 0], folder, resumed=False)

    def job_ended(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        self.job = None
        number = self.attachment.number if self.attachment is not None else 0
        self.end_streams(EndedJob(job.id, number, outcome, lengths))

    def say(self, message: str) -> None:
        self.send(frames.NOTICE, {"message": message})

    def forward(self, kind: int, body: dict[str, Any]) -> None:
        self.send(kind, body)

    def replaced(self) -> None:
        self.job = None
        self.attachment = None
        if self.connection is not None:
            self.connection.fail(errors.Conflict.code, "another client attached to the job")

    def _tell_why_later(self) -> None:
        asyncio.get_running_loop().call_later(_TELL_WHY_AFTER_SECONDS, self._tell_why)

    def _tell_why(self) -> None:
        job = self.job
        if job is not None and job.waiting:
            self.say(f"job {job.id} waits: {self.execution.live.reason(job)}")

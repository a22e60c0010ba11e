"""A client of the raw protocol: ``urun`` with its job, or ``ubatch`` leaving one."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

from updraft import errors
from updraft.model.job import Outcome, Principal
from updraft.server.relay.relay import Attachment, Relay
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import EndedJob, Jobs
from updraft.server.services.live import LiveAttempt, LiveJob
from updraft.server.services.submission import parse_submission
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

_NAMES = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}
_STREAM_KINDS = frozenset({frames.DATA, frames.LIMIT, frames.EOF, frames.CLOSE})
_ENDING_SIGNALS = frozenset(
    {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2}
)
_TELL_WHY_AFTER_SECONDS = 0.7


class ClientSession:
    """One client connection: at most one job, whose streams it holds."""

    def __init__(self, execution: Execution, jobs: Jobs, principal: Principal) -> None:
        self._execution = execution
        self._jobs = jobs
        self._principal = principal
        self._connection: FrameConnection | None = None
        self._job: LiveJob | None = None
        self._attachment: Attachment | None = None
        self._ended: tuple[str, int] | None = None  # job id and attempt number
        self._lengths: dict[int, int] = {}
        self._wake = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()

    @property
    def _relay(self) -> Relay:
        return self._execution.relay

    # -- door.Session

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        self._connection = connection

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if kind in _STREAM_KINDS:
            if self._attachment is not None:
                self._relay.from_client(self._attachment, kind, channel, offset, payload)
                self._wake.set()
        elif kind == frames.SUBMIT:
            self._run(self._submit(body_of(payload)))
        elif kind == frames.ATTACH:
            self._run(self._attach(body_of(payload)))
        elif kind == frames.SIGNAL:
            self._signal(body_of(payload)["signal"])
        elif kind == frames.RESIZE and self._job is not None:
            self._execution.forward(self._job, frames.RESIZE, body_of(payload))
        elif kind == frames.DETACH and self._job is not None:
            self._run(self._detach(self._job))
        elif kind == frames.CANCEL and self._job is not None:
            self._run(self._execution.cancel(self._job))

    def closed(self) -> None:
        self._connection = None
        if self._attachment is not None:
            self._relay.detach(self._attachment)
            self._attachment = None
        if self._job is not None:
            self._execution.client_lost(self._job, self)
            self._job = None
        for task in self._work:
            task.cancel()

    def writable(self, ready: bool) -> None:
        """What is under way to a client is bounded by the window that it granted."""

    # -- requests

    def _run(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(self._guarded(work), name="client request")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except errors.UpdraftError as error:
            if self._connection is not None:
                self._connection.fail(error.code, error.message)

    async def _submit(self, body: dict[str, Any]) -> None:
        if self._job is not None:
            raise errors.Conflict("this connection has its job already")
        submission, environment = parse_submission(body)
        client = self if submission.attached else None
        job_id = await asyncio.shield(
            self._execution.submit(self._principal, submission, environment, client)
        )
        if client is None:
            self._send(frames.ACCEPTED, {"job": job_id})
        elif self._job is None and self._connection is not None:
            # The same submission came before: the client lost its connection after it was stored.
            self._send(frames.ACCEPTED, {"job": job_id})
            await self._attach({"job": job_id, "attempt": 1, "stdout": 0, "stderr": 0})

    async def _attach(self, body: dict[str, Any]) -> None:
        found = await self._jobs.resolve(self._principal, body["job"])
        if isinstance(found, EndedJob):
            self._replay(found, body)
            return
        self._job = found
        self._execution.client_back(found, self)
        self._send(frames.ACCEPTED, {"job": found.id})
        if found.attempt is not None:
            self._hold(found, found.attempt, body)
        elif found.waiting:
            self._tell_why_later()

    def _hold(self, job: LiveJob, attempt: LiveAttempt, body: dict[str, Any]) -> None:
        positions = [body["stdout"], body["stderr"]]
        if body["attempt"] != attempt.number:
            positions = [0, 0]
        if positions[0] < 0:  # from now on
            folder = str(self._execution.folder_of(job.id, attempt.number))
            positions = [SegmentReader(folder, name).length() for name in _NAMES.values()]
        self._begin_streams(job, attempt, positions, resumed=True)
        if attempt.started_ns is not None:
            self._send(frames.STARTED, {"pid": attempt.pid})
        if attempt.stopped:
            self._send(frames.STOPPED, {"signal": signal.SIGTSTP})

    def _begin_streams(
        self, job: LiveJob, attempt: LiveAttempt, positions: list[int], *, resumed: bool
    ) -> None:
        if self._connection is None:
            return
        self._send(
            frames.ATTEMPT,
            {
                "number": attempt.number,
                "resumed": resumed,
                "stdout": positions[0],
                "stderr": positions[1],
            },
        )
        self._attachment = Attachment(
            attempt.serial, attempt.number, self._connection, self, positions
        )
        self._relay.attach(self._attachment, ask=resumed)

    def _signal(self, number: int) -> None:
        job = self._job
        if job is None:
            return
        if job.attempt is None:
            if number in _ENDING_SIGNALS:
                self._run(self._execution.cancel(job, "cancelled before it started"))
            return
        self._execution.signal(job, number)

    async def _detach(self, job: LiveJob) -> None:
        await self._execution.client_detached(job, self)
        self._job = None
        if self._connection is not None:
            self._connection.close()

    # -- live.Client

    def accepted(self, job: LiveJob) -> None:
        self._job = job
        if self._connection is None:  # it went while the job was being stored
            self._execution.client_lost(job, self)
            return
        self._send(frames.ACCEPTED, {"job": job.id})
        if job.attempt is None:
            self._tell_why_later()

    def attempt_granted(self, job: LiveJob, attempt: LiveAttempt) -> None:
        self._begin_streams(job, attempt, [0, 0], resumed=False)

    def job_ended(self, job: LiveJob, outcome: Outcome, lengths: tuple[int, int]) -> None:
        self._job = None
        number = self._attachment.number if self._attachment is not None else 0
        self._say_ended(EndedJob(job.id, number, outcome, lengths))
        if self._attachment is not None and not self._relay.has_source(self._attachment.serial):
            self._feed_rest()

    def say(self, message: str) -> None:
        self._send(frames.NOTICE, {"message": message})

    def forward(self, kind: int, body: dict[str, Any]) -> None:
        self._send(kind, body)

    def replaced(self) -> None:
        self._job = None
        if self._attachment is not None:
            self._attachment = None
        if self._connection is not None:
            self._connection.fail(errors.Conflict.code, "another client attached to the job")

    # -- relay.Listener

    def source_lost(self) -> None:
        if self._ended is not None:
            self._feed_rest()

    def source_back(self) -> None:
        if self._attachment is not None:
            self._send(
                frames.ATTEMPT,
                {
                    "number": self._attachment.number,
                    "resumed": True,
                    "stdout": self._attachment.forwarded[frames.STDOUT],
                    "stderr": self._attachment.forwarded[frames.STDERR],
                },
            )

    # -- a job that has ended: its output comes from the store

    def _replay(self, ended: EndedJob, body: dict[str, Any]) -> None:
        if self._connection is None:
            return
        positions = [max(body["stdout"], 0), max(body["stderr"], 0)]
        if body["attempt"] != ended.attempt_number:
            positions = [0, 0]
        self._send(frames.ACCEPTED, {"job": ended.id})
        self._send(
            frames.ATTEMPT,
            {
                "number": ended.attempt_number,
                "resumed": True,
                "stdout": positions[0],
                "stderr": positions[1],
            },
        )
        # Serial 0 is no attempt's: the relay has no runner for it, only the limits are used.
        self._attachment = Attachment(0, ended.attempt_number, self._connection, self, positions)
        self._say_ended(ended)
        self._feed_rest()

    def _say_ended(self, ended: EndedJob) -> None:
        self._ended = (ended.id, ended.attempt_number)
        self._lengths = {frames.STDOUT: ended.lengths[0], frames.STDERR: ended.lengths[1]}
        self._send(
            frames.ENDED,
            {
                "state": ended.outcome.state,
                "exit_code": ended.outcome.exit_code,
                "message": ended.outcome.message,
                "stdout": ended.lengths[0],
                "stderr": ended.lengths[1],
            },
        )

    def _feed_rest(self) -> None:
        if self._attachment is not None and self._ended is not None:
            for stream in _NAMES:
                self._run(self._feed(self._attachment, stream, *self._ended))

    async def _feed(self, to: Attachment, stream: int, job_id: str, number: int) -> None:
        folder = str(self._execution.folder_of(job_id, number))
        with SegmentReader(folder, _NAMES[stream]) as reader:
            while to.forwarded[stream] < self._lengths[stream] and self._connection is not None:
                room = to.limits[stream] - to.forwarded[stream]
                if room <= 0:
                    self._wake.clear()
                    await self._wake.wait()
                    continue
                at, data = reader.read(to.forwarded[stream], min(room, frames.CHUNK_BYTES))
                if not data:
                    break
                to.deliver(stream, at, data)
                await asyncio.sleep(0)

    # -- sending

    def _tell_why_later(self) -> None:
        asyncio.get_running_loop().call_later(_TELL_WHY_AFTER_SECONDS, self._tell_why)

    def _tell_why(self) -> None:
        job = self._job
        if job is not None and job.waiting:
            self.say(f"job {job.id} waits: {self._execution.reason(job)}")

    def _send(self, kind: int, body: dict[str, Any]) -> None:
        if self._connection is not None:
            self._connection.send_message(kind, body)

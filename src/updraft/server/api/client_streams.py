"""A client's hold on an attempt's streams: live through the relay, in the end from the store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from updraft import errors
from updraft.model.access import Principal
from updraft.server.relay.relay import Attachment
from updraft.server.services.access import Access
from updraft.server.services.authority import need_change
from updraft.server.services.execution import Execution
from updraft.server.services.jobs import EndedJob
from updraft.server.services.live import LiveJob
from updraft.storage.segments import SegmentReader
from updraft.wire import frames
from updraft.wire.packing import PackingError
from updraft.wire.transport import FrameConnection

log = logging.getLogger("updraft.server")

OUTPUTS = {frames.STDOUT: "stdout", frames.STDERR: "stderr"}
_MAX_REQUESTS = 16
"""Of one client, under way at a time; two streams from the store among them."""
STREAM_KINDS = frozenset({frames.DATA, frames.LIMIT, frames.EOF, frames.CLOSE})


class ClientStreams:
    """What the sessions of clients share: one attachment, and how its output is completed."""

    def __init__(self, execution: Execution, access: Access, who: Principal) -> None:
        self.execution = execution
        self.access = access
        self.who = who
        self.job: LiveJob | None = None
        self.relay = execution.relay
        self.connection: FrameConnection | None = None
        self.attachment: Attachment | None = None
        self._ended: EndedJob | None = None
        self._folder = ""
        self._feeding: set[tuple[int, int]] = set()
        """(attempt number, stream) of what is on its way from the store."""
        self._room = asyncio.Event()
        self._work: set[asyncio.Task[None]] = set()

    # -- door.Session

    def start(self, connection: FrameConnection, body: dict[str, Any]) -> None:
        """Take the connection over."""
        self.connection = connection
        self.access.visitors.add(self)

    # -- access.Visitor

    def renewed(self, who: Principal) -> None:
        """Go on as this principal, if they may still do with the job what is done here."""
        self.who = who
        if self.job is not None:
            need_change(who, self.job.owner, self.job.id, self.job.lineage)

    def turn_out(self, error: errors.UpdraftError) -> None:
        """End the connection: to the job, its client is lost."""
        if self.connection is None:
            return
        if isinstance(error, errors.Unavailable):
            self.connection.abort()  # nobody could tell: they may come again and ask
        else:
            self.connection.fail(error.code, error.message)

    # -- what the session calls

    async def renew(self) -> Principal:
        """Return who they are by now: the connection may be older than a change of access."""
        self.who = await self.access.renew(self.who)
        return self.who

    def begin_streams(
        self, serial: int, number: int, positions: list[int], folder: str, *, resumed: bool
    ) -> None:
        """Attach to an attempt.  ``resumed``: it has run before; its runner tells where it is.

        ``folder`` is where its output is stored.
        """
        if self.connection is None:
            return
        self._folder = folder
        if self.attachment is not None:
            self.relay.detach(self.attachment)
        self._tell_attempt(number, positions, resumed=resumed)
        self.attachment = Attachment(serial, number, self.connection, self, positions)
        self.attachment.passed = self.relay.passed
        if serial:
            self.relay.attach(self.attachment, ask=resumed)
        if self.execution.intake.holds(serial):
            self._feed_all()  # what was stored before

    def stream_frame(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview
    ) -> None:
        """Pass on a stream frame of the client's."""
        if self.attachment is not None:
            self.relay.from_client(self.attachment, kind, channel, offset, payload)
            self._room.set()

    def end_streams(self, ended: EndedJob) -> None:
        """Tell the end, and send what the client does not get from the runner any more."""
        self._ended = ended
        self.send(
            frames.ENDED,
            {
                "state": ended.outcome.state,
                "exit_code": ended.outcome.exit_code,
                "signal": ended.outcome.signal,
                "message": ended.outcome.message,
                "stdout": ended.lengths[0],
                "stderr": ended.lengths[1],
            },
        )
        if self.attachment is not None and not self.relay.has_source(self.attachment.serial):
            self._feed_all()

    def deliver_rest(self) -> None:
        """Send what is stored of an attempt that was lost, before the next one's output.

        As much as the client has room for, a window's worth: its writer was held back until the
        client had the rest.
        """
        held = self.attachment
        if held is None:
            return
        for stream, name in OUTPUTS.items():
            with SegmentReader(self._folder, name) as reader:
                while (room := held.limits[stream] - held.forwarded[stream]) > 0:
                    size = min(room, frames.CHUNK_BYTES)
                    at, data = reader.read(held.forwarded[stream], size)
                    if not data:
                        break
                    held.deliver(stream, at, data)

    def let_go(self) -> None:
        """The connection is gone: detach, and stop what is under way for it."""
        self.connection = None
        self.access.visitors.discard(self)
        if self.attachment is not None:
            self.relay.detach(self.attachment)
            self.attachment = None
        for task in self._work:
            task.cancel()

    def ask(self, work: Coroutine[Any, Any, None]) -> None:
        """Carry out a request that the client has sent.

        Raises ``PackingError`` when it sends them without waiting for answers.
        """
        if len(self._work) >= _MAX_REQUESTS:
            work.close()
            raise PackingError("too many requests at a time")
        self.run(work)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Do what belongs to the client; a refusal goes to it."""
        task = asyncio.get_running_loop().create_task(self._guarded(work), name="client request")
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    def send(self, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame, if somebody is there."""
        if self.connection is not None:
            self.connection.send_message(kind, body)

    # -- relay.Listener

    def source_lost(self) -> None:
        """The runner's connection is gone: after the end, the store has the rest."""
        if self._ended is not None:
            self._feed_all()

    def behind(self) -> None:
        """What was stored just now did not go to the client at once."""
        self._feed_all()

    def source_back(self) -> None:
        """The runner is back: the client waits for its word on where the input is."""
        held = self.attachment
        if held is not None:
            positions = [held.forwarded[stream] for stream in OUTPUTS]
            self._tell_attempt(held.number, positions, resumed=True)

    # -- inside

    def _tell_attempt(self, number: int, positions: list[int], *, resumed: bool) -> None:
        self.send(
            frames.ATTEMPT,
            {
                "number": number,
                "resumed": resumed,
                "stdout": positions[0],
                "stderr": positions[1],
            },
        )

    async def _guarded(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except errors.UpdraftError as error:
            if self.connection is not None:
                self.connection.fail(error.code, error.message)
        except Exception:
            # Whoever waits for an answer gets one.
            log.exception("a client's request failed")
            if self.connection is not None:
                failed = "the server failed at it; its log (updraft status) says why"
                self.connection.fail(errors.UpdraftError.code, failed)

    def _feed_all(self) -> None:
        """Send from the store what the client lacks, as it has room for it."""
        if self.attachment is None:
            return
        for stream in OUTPUTS:
            key = (self.attachment.number, stream)
            if key not in self._feeding:
                self._feeding.add(key)
                self.run(self._feed(self.attachment, stream))

    async def _feed(self, to: Attachment, stream: int) -> None:
        """Send one stream until the client has all that is stored by then."""
        try:
            with SegmentReader(self._folder, OUTPUTS[stream]) as reader:
                while self.connection is not None and self.attachment is to:
                    room = to.limits[stream] - to.forwarded[stream]
                    if room <= 0:
                        self._room.clear()
                        await self._room.wait()
                        continue
                    size = min(room, frames.CHUNK_BYTES)
                    at, data = reader.read(to.forwarded[stream], size)
                    if not data:
                        break
                    to.deliver(stream, at, data)
                    await asyncio.sleep(0)
        finally:
            self._feeding.discard((to.number, stream))

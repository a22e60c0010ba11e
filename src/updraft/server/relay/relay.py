"""Pairs each attached client with its attempt's runner, and passes their frames on.

The relay buffers nothing of its own: a client grants the positions up to which it takes output, a
keeper those up to which it takes input, and both grants travel the whole way.  What is under way is
bounded by the two windows, and what is lost with a connection is asked for again by position.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, Protocol

from updraft.wire import frames
from updraft.wire.packing import PackingError

_LEAST_GRANT_BYTES = 64 * 1024

Passed = Callable[[Literal["to_client", "to_runner"], int], None]
"""Is told how many bytes of a stream were sent, and where to."""


class Link(Protocol):
    """A connection that stream frames can be sent on."""

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        """Send a stream frame."""

    def send_message(self, kind: int, body: dict[str, object], channel: int = 0) -> None:
        """Send a control frame."""


class Listener(Protocol):
    """The control side of an attached client."""

    def source_lost(self) -> None:
        """The runner's connection is gone; it may come back."""

    def source_back(self) -> None:
        """The runner is back; it is about to tell up to where it has input."""

    def behind(self) -> None:
        """More is stored than was delivered: the rest is to come from the store."""


class Attachment:
    """One client's hold on one attempt's streams."""

    def __init__(
        self, serial: int, number: int, client: Link, listener: Listener, positions: list[int]
    ) -> None:
        self.serial = serial
        self.number = number
        self.client = client
        self.passed: Passed = lambda *_: None
        self.listener = listener
        self.ended = False
        self.input_taken = 0
        """Up to where the task has its input; the client may be a window ahead, and no more."""
        self.input_sent: int | None = None
        """Up to where input was passed on to the runner that is there; None until it has said where
        to go on."""
        self.forwarded = {frames.STDOUT: positions[0], frames.STDERR: positions[1]}
        self.limits = {
            stream: at + frames.OUTPUT_WINDOW_BYTES for stream, at in self.forwarded.items()
        }

    def deliver(self, stream: int, offset: int, payload: bytes | memoryview) -> None:
        """Send output to the client; what it already has is passed over."""
        at = self.forwarded[stream]
        if offset < at:
            payload = memoryview(payload)[at - offset :]
            offset = at
        if not payload:
            return
        channel = frames.stream_channel(self.number, stream)
        self.client.send_stream(frames.DATA, channel, offset, payload)
        self.forwarded[stream] = offset + len(payload)
        self.passed("to_client", len(payload))


class Relay:
    """All attachments, by attempt."""

    def __init__(self) -> None:
        self.passed: Passed = lambda *_: None
        self._attachments: dict[int, Attachment] = {}
        self._runners: dict[int, Link] = {}
        self._carried: dict[Link, set[int]] = {}
        """The attempts of each runner: a runner's coming and going costs as much as it has."""
        self._shipped: set[int] = set()
        """Attempts whose output goes to the store first, and to clients from there."""
        self._asked: dict[int, int] = {}
        """How often a runner was asked for an attempt's output and has not answered yet."""

    def granted(self, serial: int, runner: Link, *, ships: bool = False) -> None:
        """An attempt is on a runner: connect the two if a client is attached."""
        self._unlink(serial)
        self._runners[serial] = runner
        self._carried.setdefault(runner, set()).add(serial)
        if ships:
            self._shipped.add(serial)

    def attach(self, attachment: Attachment, *, ask: bool) -> Attachment | None:
        """Attach a client; return the one that was attached before, which gets nothing more.

        ``ask``: the runner is to send output from the attachment's positions; not needed for an
        attempt that is granted with its client.
        """
        before = self._attachments.get(attachment.serial)
        self._attachments[attachment.serial] = attachment
        if ask:
            self._ask(attachment)
        else:
            attachment.input_sent = 0
        return before if before is not attachment else None

    def detach(self, attachment: Attachment) -> None:
        """Let go of the streams; the attempt runs freely."""
        if self._attachments.get(attachment.serial) is not attachment:
            return
        del self._attachments[attachment.serial]
        runner = self._runners.get(attachment.serial)
        if runner is not None:
            runner.send_message(frames.DETACH, {}, attachment.serial << 2)
        if attachment.ended:
            self._forget(attachment.serial)

    def has_source(self, serial: int) -> bool:
        """Whether a runner is there that sends the attempt's output to its client."""
        return serial in self._runners and serial not in self._shipped

    def comes_from(self, serial: int, runner: Link) -> bool:
        """Whether this is the connection that an attempt's frames come by."""
        return self._runners.get(serial) is runner

    def carried_by(self, runner: Link) -> Iterable[int]:
        """Return the attempts whose frames come by a connection."""
        return self._carried.get(runner, ())

    def reader_at(self, serial: int, stream: int) -> int | None:
        """Return up to where an attached client has a stream, None if there is none."""
        attachment = self._attachments.get(serial)
        return None if attachment is None else attachment.forwarded[stream]

    def stored(self, serial: int, stream: int, offset: int, payload: bytes | memoryview) -> None:
        """Shipped output is stored: an attached client that is as far as this gets it at once."""
        attachment = self._attachments.get(serial)
        if attachment is None:
            return
        end = offset + len(payload)
        if attachment.forwarded[stream] == offset and end <= attachment.limits[stream]:
            attachment.deliver(stream, offset, payload)
        else:
            attachment.listener.behind()

    def ended(self, serial: int) -> None:
        """The attempt's end is stored: its runner has no more to say after what is under way."""
        attachment = self._attachments.get(serial)
        if attachment is None:
            self._forget(serial)
        else:
            attachment.ended = True

    def runner_joined(self, serials: list[int], runner: Link, *, ships: bool = False) -> None:
        """A runner (re)connected and holds these attempts."""
        for serial in serials:
            self.granted(serial, runner, ships=ships)
            self._asked.pop(serial, None)
            attachment = self._attachments.get(serial)
            if attachment is not None:
                attachment.input_sent = None  # what was under way comes again
                attachment.listener.source_back()
                self._ask(attachment)

    def runner_left(self, runner: Link) -> None:
        """A runner's connection is gone."""
        for serial in list(self.carried_by(runner)):
            self._unlink(serial)
            self._asked.pop(serial, None)
            attachment = self._attachments.get(serial)
            if attachment is not None:
                attachment.listener.source_lost()

    def from_runner(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview
    ) -> None:
        """Pass a stream frame on to the attached client, if any."""
        serial, stream = channel >> 2, channel & 3
        if kind == frames.ATTACH:
            self._answered(serial)
            return
        attachment = self._attachments.get(serial)
        if attachment is None:
            return
        if kind == frames.DATA:
            # What was under way to an earlier client would be a gap to this one.
            if serial not in self._asked:
                attachment.deliver(stream, offset, payload)
        else:
            if kind == frames.ACK and stream == frames.STDIN:
                attachment.input_taken = max(attachment.input_taken, offset)
                if attachment.input_sent is None:
                    attachment.input_sent = offset
            channel = frames.stream_channel(attachment.number, stream)
            attachment.client.send_stream(kind, channel, offset, payload)

    def from_client(
        self,
        attachment: Attachment,
        kind: int,
        channel: int,
        offset: int,
        payload: bytes | memoryview,
    ) -> None:
        """Pass a stream frame on to the runner; frames of an earlier attempt are dropped.

        Raises ``PackingError`` for input that there is no room for: nobody would hold it back.
        """
        if channel >> 2 != attachment.number:
            return
        stream = channel & 3
        if kind == frames.DATA:
            end = offset + len(payload)
            if stream != frames.STDIN or end > attachment.input_taken + frames.INPUT_WINDOW_BYTES:
                raise PackingError("more input than there is room for")
            sent = attachment.input_sent
            if sent is None or not offset <= sent < end:
                # It has been passed on; or it was under way when the runner went, and the client
                # sends it again from where the runner says.  Counted as sent, that would be lost.
                return
            attachment.input_sent = end
        if kind in (frames.LIMIT, frames.CLOSE) and stream not in attachment.limits:
            return  # not an output
        if kind == frames.LIMIT:
            # As much as there is a reason for, and not a word for every byte.
            offset = min(offset, attachment.forwarded[stream] + 2 * frames.OUTPUT_WINDOW_BYTES)
            if offset < attachment.limits[stream] + _LEAST_GRANT_BYTES:
                return
            attachment.limits[stream] = offset
        runner = self._runners.get(attachment.serial)
        if runner is not None and self._attachments.get(attachment.serial) is attachment:
            channel = frames.stream_channel(attachment.serial, stream)
            runner.send_stream(kind, channel, offset, payload)
            if kind == frames.DATA:
                self.passed("to_runner", len(payload))

    def _unlink(self, serial: int) -> None:
        runner = self._runners.pop(serial, None)
        if runner is not None:
            carried = self._carried[runner]
            carried.discard(serial)
            if not carried:
                del self._carried[runner]

    def _forget(self, serial: int) -> None:
        self._unlink(serial)
        self._asked.pop(serial, None)
        self._shipped.discard(serial)

    def _answered(self, serial: int) -> None:
        left = self._asked.pop(serial, 0) - 1
        if left > 0:
            self._asked[serial] = left

    def _ask(self, attachment: Attachment) -> None:
        runner = self._runners.get(attachment.serial)
        if runner is not None:
            if attachment.serial not in self._shipped:
                self._asked[attachment.serial] = self._asked.get(attachment.serial, 0) + 1
            body: dict[str, object] = {
                "stdout": attachment.forwarded[frames.STDOUT],
                "stderr": attachment.forwarded[frames.STDERR],
            }
            runner.send_message(frames.ATTACH, body, attachment.serial << 2)

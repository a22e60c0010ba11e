"""A client's side of the raw protocol: one job, its streams, and coming back after a break.

On the launch path: imports only what the import-set test allows.

The session knows positions, not descriptors: whoever owns it (``cli.attached``) reads its input and
writes its output.  After a break it says which output it has, learns which input the task has, and
goes on from there, so nothing is lost and nothing is sent twice.
"""

from __future__ import annotations

import updraft
from updraft import errors
from updraft.c_modules import socket
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    Event = tuple[int, int, Any]

_READ_BYTES = 1 << 20
_GRANT_STEP_BYTES = frames.OUTPUT_WINDOW_BYTES // 4


class Session:
    """One job over a connection that may be replaced."""

    def __init__(
        self,
        submission: dict[str, Any] | None,
        credentials: dict[str, str],
        job: str | None = None,
        role: str = "client",
    ) -> None:
        """``credentials``: what each connection proves itself with (``ways.Way``)."""
        self._role = role
        self._credentials = credentials
        self._submission = submission
        self.job = job
        self.attempt = 0
        self.got = {frames.STDOUT: 0, frames.STDERR: 0}
        self.ended: dict[str, Any] | None = None
        self._granted = dict.fromkeys(self.got, frames.OUTPUT_WINDOW_BYTES)
        self._input = bytearray()  # not yet acknowledged; begins at _input_base
        self._input_base = 0
        self._input_sent = 0
        self._input_ended = False
        self._input_open = False
        self._end_sent = False
        self._socket: Any = None  # a socket, or tls.FrameSocket
        self.has_more = False
        """Whether there may be more to receive that polling the connection does not tell of."""
        self._reader = frames.FrameReader()
        self._out = bytearray()
        self._flushing = False
        self.from_now = False
        # What is typed into a job that others have typed into before goes behind theirs.
        self._joining = submission is None
        self.answered = False
        """Whether the server at the other end has said anything about the job yet."""

    # -- the connection

    def connect(self, peer: socket.socket) -> None:
        """Take a fresh connection into use: submit, or take the job up again."""
        self._socket = _in_frames(peer)
        self.has_more = False
        self.answered = False
        self._reader = frames.FrameReader()
        self._input_open = False
        hello = {
            "role": self._role,
            "wire": frames.WIRE_VERSION,
            "release": updraft.__version__,
            **self._credentials,
        }
        self._out = bytearray(frames.message(frames.HELLO, hello))
        if self.job is None:
            assert self._submission is not None  # noqa: S101 - a session has a job or makes one
            kind = frames.EXEC if self._role == "exec" else frames.SUBMIT
            self._out += frames.message(kind, self._submission)
        elif self._role == "exec":
            raise errors.ServerLost("the server was restarted, and what ran beside the job ended")
        else:
            here = -1 if self.from_now else 0
            body = {
                "job": self.job,
                "attempt": self.attempt,
                "stdout": self.got[frames.STDOUT] or here,
                "stderr": self.got[frames.STDERR] or here,
            }
            self._out += frames.message(frames.ATTACH, body)
        self.flush()

    @property
    def socket(self) -> Any:
        """The connection.  Only while there is one."""
        assert self._socket is not None  # noqa: S101 - see above
        return self._socket

    @property
    def wants_write(self) -> bool:
        """Whether bytes wait for the socket."""
        return bool(self._out)

    def flush(self) -> None:
        """Send what the socket takes now.  Raises ``ConnectionError`` when it is broken.

        A signal handler that sends may interrupt it: its frames wait until the bytes that were
        just sent are taken off, or they would be sent twice.
        """
        if self._flushing:
            return
        self._flushing = True
        try:
            while self._out:
                count = self.socket.send(self._out, socket.MSG_DONTWAIT)
                del self._out[:count]
        except BlockingIOError:
            return
        finally:
            self._flushing = False

    def receive(self) -> Iterator[Event]:
        """Yield ``(kind, stream, payload)`` for what has arrived.

        ``DATA`` has the bytes; other kinds have their body.  Raises ``ConnectionError`` at the
        connection's end, and the server's own error when it refuses.
        """
        try:
            chunk = self.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self.has_more = False
            return
        self.has_more = len(chunk) == _READ_BYTES
        if not chunk:
            raise ConnectionResetError("the server closed the connection")
        for kind, channel, offset, payload in self._reader.feed(chunk):
            if kind == frames.DATA:
                yield from self._output(channel, offset, payload)
            elif kind == frames.ACK:
                self._acknowledged(channel, offset)
            elif kind == frames.CLOSE:
                self._input_open = False
                self._input_ended = True
                self._end_sent = True
                yield frames.CLOSE, frames.STDIN, None
            else:
                body = unpack_dict(bytes(payload)) if payload else {}
                self._control(kind, body)
                yield kind, 0, body

    def _control(self, kind: int, body: dict[str, Any]) -> None:
        if kind == frames.ERROR:
            raise errors.from_code(body["code"], body["message"])
        self.answered = True
        if kind == frames.ACCEPTED:
            self.job = body["job"]
        elif kind == frames.ATTEMPT:
            self._begin(body)
        elif kind == frames.ENDED:
            self.ended = body

    def _begin(self, body: dict[str, Any]) -> None:
        if body["number"] != self.attempt:
            self.attempt = body["number"]
            # What a lost attempt took is gone with it; what it did not take goes to the next.
            self._input_base = 0
            self._input_sent = 0
        if not body["resumed"]:
            # Also when it is the same one, granted again since no runner heard of it: what was sent
            # into it went with whoever was to pass it on.
            self._input_sent = self._input_base
        self.got = {frames.STDOUT: body["stdout"], frames.STDERR: body["stderr"]}
        for stream, at in self.got.items():
            self._granted[stream] = at + frames.OUTPUT_WINDOW_BYTES
        self._end_sent = False
        self.from_now = False  # from here on we know what we have
        # After a break the task says up to where it has the input, before more is sent.
        self._input_open = not body["resumed"]
        self._joining = self._joining and body["resumed"]
        self._send_input()

    # -- output

    def _output(self, channel: int, offset: int, payload: bytes | memoryview) -> Iterator[Event]:
        stream = channel & 3
        if channel >> 2 != self.attempt or stream not in self.got:
            return
        at = self.got[stream]
        if offset + len(payload) <= at:
            return
        if offset < at:
            payload = memoryview(payload)[at - offset :]
        elif offset > at:
            yield frames.GREW, stream, offset - at
        self.got[stream] = max(offset, at) + len(payload)
        yield frames.DATA, stream, payload
        if self._granted[stream] - self.got[stream] <= 3 * _GRANT_STEP_BYTES:
            self._granted[stream] = self.got[stream] + frames.OUTPUT_WINDOW_BYTES
            self._send_stream(frames.LIMIT, stream, self._granted[stream])

    def close_output(self, stream: int) -> None:
        """Nobody reads this stream any more: its writer is to see a broken pipe."""
        self._send_stream(frames.CLOSE, stream, 0)

    def is_complete(self) -> bool:
        """Return whether the job has ended and all its output is here."""
        ended = self.ended
        return ended is not None and all(
            self.got[stream] >= ended[name]
            for stream, name in ((frames.STDOUT, "stdout"), (frames.STDERR, "stderr"))
        )

    # -- input

    @property
    def input_room(self) -> int:
        """How many bytes of input may be given now: what the task's side has room for."""
        if self.attempt == 0 or self._input_ended:
            return 0
        return frames.INPUT_WINDOW_BYTES - len(self._input)

    def give_input(self, data: bytes) -> None:
        """Send input; empty data is its end."""
        if not data:
            self._input_ended = True
        self._input += data
        self._send_input()

    def _send_input(self) -> None:
        if not self._input_open:
            return
        data = bytes(self._input[self._input_sent - self._input_base :])
        if data:
            self._send_stream(frames.DATA, frames.STDIN, self._input_sent, data)
            self._input_sent += len(data)
        if self._input_ended and not self._end_sent:
            self._end_sent = True
            self._send_stream(frames.EOF, frames.STDIN, self._input_sent)

    def _acknowledged(self, channel: int, offset: int) -> None:
        if channel >> 2 != self.attempt:
            return
        if self._joining:
            self._joining = False
            self._input_base = offset
        taken = offset - self._input_base
        if taken > 0:
            del self._input[:taken]
            self._input_base = offset
        if not self._input_open and not (self._input_ended and self._end_sent):
            self._input_open = True
            self._input_sent = self._input_base
            self._send_input()

    # -- orders

    def send(self, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame: SIGNAL, RESIZE, DETACH or CANCEL."""
        self._out += frames.message(kind, body)
        self.flush()

    def _send_stream(self, kind: int, stream: int, offset: int, data: bytes = b"") -> None:
        channel = frames.stream_channel(self.attempt, stream)
        if not data:
            self._out += frames.frame(kind, channel, offset)
        for start in range(0, len(data), frames.CHUNK_BYTES):
            part = data[start : start + frames.CHUNK_BYTES]
            self._out += frames.frame(kind, channel, offset + start, part)
        self.flush()


def _in_frames(peer: socket.socket) -> Any:
    """Return a connection whose sends and receives do not wait."""
    if not hasattr(peer, "getpeercert"):
        return peer
    from updraft.wire.tls import FrameSocket  # noqa: PLC0415 - not for a local server

    return FrameSocket(peer)  # type: ignore[arg-type]

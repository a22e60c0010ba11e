"""A frame connection on an asyncio event loop, for server and agent."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol, cast

from updraft.wire import frames
from updraft.wire.packing import PackingError, unpack_dict

_LAST_WORD_SECONDS = 2.0
"""For the word of what was wrong to get out, and over TLS for a goodbye that may never come."""

_SIGNALS = range(1, 65)
_TERMINAL = range(1 << 16)


class FrameHandler(Protocol):
    """What a connection calls; one at a time, on the loop."""

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """A frame arrived.  ``ValueError`` and ``KeyError`` mean a broken peer: it is cut off."""

    def closed(self) -> None:
        """The connection ended, for whatever reason; called once."""

    def writable(self, ready: bool) -> None:
        """The peer reads slowly (False), or reads again (True)."""


class FrameConnection(asyncio.Protocol):
    """Reads frames into its handler, and writes frames."""

    def __init__(self, handler: FrameHandler) -> None:
        self.handler = handler
        self.transport: asyncio.Transport | None = None
        self.broken: str | None = None
        self.max_unsent_bytes = 0
        """A peer that reads nothing while more than this is on its way to it is cut off; 0: never.
        """
        self._slow = False
        self._reader = frames.FrameReader()

    def limit_messages(self, max_bytes: int) -> None:
        """Refuse longer control frames from now on: until a peer has said who it is, all but tiny
        ones.
        """
        self._reader.max_control_bytes = max_bytes

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self.transport.set_write_buffer_limits(high=1 << 20)

    def data_received(self, data: bytes) -> None:
        try:
            for kind, channel, offset, payload in self._reader.feed(data):
                self.handler.frame(kind, channel, offset, payload)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._break_off(error)

    def deliver(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """Hand on a frame that was held back, as if it had arrived now."""
        try:
            self.handler.frame(kind, channel, offset, payload)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            self._break_off(error)

    def _break_off(self, error: Exception) -> None:
        self.broken = f"{type(error).__name__}: {error}"
        self.fail("bad_request", "the peer sent something that is not of this protocol")

    def pause_writing(self) -> None:
        self._slow = True
        self.handler.writable(False)

    def resume_writing(self) -> None:
        self._slow = False
        self.handler.writable(True)

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        self.handler.closed()

    @property
    def is_remote(self) -> bool:
        """Whether a network lies between: the peer has an address."""
        peer = None if self.transport is None else self.transport.get_extra_info("peername")
        return isinstance(peer, tuple)

    # -- sending

    def send(self, data: bytes) -> None:
        """Send bytes that are whole frames."""
        if self.transport is not None:
            self.transport.write(data)
            if self._slow:
                self._bound_unsent()

    def send_message(self, kind: int, body: dict[str, Any], channel: int = 0) -> None:
        """Send a control frame."""
        self.send(frames.message(kind, body, channel))

    def send_stream(
        self, kind: int, channel: int, offset: int, payload: bytes | memoryview = b""
    ) -> None:
        """Send a stream frame; ``payload`` must not change afterwards."""
        if self.transport is None:
            return
        header = frames.HEADER.pack(len(payload), kind, channel, offset)
        if payload:
            self.transport.writelines((header, payload))
        else:
            self.transport.write(header)
        if self._slow:
            self._bound_unsent()

    def _bound_unsent(self) -> None:
        transport, most = self.transport, self.max_unsent_bytes
        if transport is not None and 0 < most < transport.get_write_buffer_size():
            transport.abort()

    def fail(self, code: str, text: str) -> None:
        """Tell the peer what is wrong, and end the connection, whether it listens or not."""
        self.send_message(frames.ERROR, {"code": code, "message": text})
        if self.transport is not None:
            loop = asyncio.get_running_loop()
            loop.call_later(_LAST_WORD_SECONDS, self.transport.abort)
            self.transport.pause_reading()  # nothing that it says is of interest any more
        self.close()

    def close(self) -> None:
        """End the connection after what was sent."""
        if self.transport is not None:
            self.transport.close()

    def abort(self) -> None:
        """End the connection at once: for a peer that is silent.

        ``close`` would wait for it to take what was sent, and over TLS to say goodbye.
        """
        if self.transport is not None:
            self.transport.abort()


def body_of(payload: bytes | memoryview) -> dict[str, Any]:
    """Return a control frame's body.  Raises ``PackingError`` when it has none."""
    if not payload:
        raise PackingError("a message without a body")
    return unpack_dict(bytes(payload))


def signal_of(payload: bytes | memoryview) -> int:
    """Return the number in a SIGNAL.  Raises ``PackingError`` when no system has such a signal."""
    return _number(body_of(payload), "signal", _SIGNALS)


def size_of(payload: bytes | memoryview) -> dict[str, Any]:
    """Return the body of a RESIZE.  Raises ``PackingError`` when no terminal has such a size."""
    body = body_of(payload)
    return {name: _number(body, name, _TERMINAL) for name in ("rows", "columns")}


def _number(body: dict[str, Any], name: str, allowed: range) -> int:
    value = body.get(name)
    if type(value) is not int or value not in allowed:
        raise PackingError(f"{name} is not one of {allowed.start} to {allowed.stop - 1}")
    return value

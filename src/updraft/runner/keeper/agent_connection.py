"""The keeper's end of a connection to its agent."""

from __future__ import annotations

import selectors
import socket

from updraft.wire import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Keeper(Protocol):
        """Whom the agent talks to."""

        def welcome(self, connection: AgentConnection) -> None: ...
        def agent_gone(self, connection: AgentConnection) -> None: ...
        def handle(
            self, kind: int, channel: int, offset: int, payload: bytes | memoryview
        ) -> None: ...


_MOST_UNSENT_BYTES = 32 << 20
"""An agent that hears nothing of so much is given up."""


class AgentConnection:
    """One agent's connection.  Growth of streams is coalesced: only the latest length is sent."""

    def __init__(
        self, peer: socket.socket, keeper: Keeper, selector: selectors.BaseSelector
    ) -> None:
        self._peer = peer
        self._keeper = keeper
        self._selector = selector
        self._reader = frames.FrameReader()
        self._out = bytearray()
        self._grown: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._known = False
        self._mask = selectors.EVENT_READ
        peer.setblocking(False)
        selector.register(peer, self._mask, self._ready)

    def send(self, data: bytes) -> None:
        """Send whole frames, when the socket takes them."""
        self._out += data
        if len(self._out) > _MOST_UNSENT_BYTES:
            self.close()  # the next one is told all that this one did not hear

    def grew(self, channel: int, length: int) -> None:
        """An output stream has grown."""
        self._grown[channel] = length

    def took(self, channel: int, offset: int) -> None:
        """Input was written up to ``offset``."""
        self._taken[channel] = offset

    def flush(self) -> None:
        """Send what the socket takes."""
        try:
            while self._out or self._take_growth():
                count = self._peer.send(self._out)
                del self._out[:count]
        except BlockingIOError:
            pass
        except OSError:
            self.close()
            return
        mask = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._out else 0)
        if mask != self._mask:
            self._mask = mask
            self._selector.modify(self._peer, mask, self._ready)

    def _take_growth(self) -> bool:
        """Turn the latest lengths into frames; return whether there were any."""
        for channel, length in self._grown.items():
            self._out += frames.frame(frames.GREW, channel, length)
        for channel, offset in self._taken.items():
            self._out += frames.frame(frames.ACK, channel, offset)
        self._grown.clear()
        self._taken.clear()
        return bool(self._out)

    def close(self) -> None:
        """End the connection."""
        if self._peer.fileno() >= 0:
            self._selector.unregister(self._peer)
            self._peer.close()
        self._keeper.agent_gone(self)

    def _ready(self) -> None:
        try:
            chunk = self._peer.recv(256 * 1024)
        except BlockingIOError:
            return
        except OSError:
            chunk = b""
        if not chunk:
            self.close()
            return
        try:
            for kind, channel, offset, payload in self._reader.feed(chunk):
                if kind == frames.HELLO:
                    self._known = True
                    self._keeper.welcome(self)
                elif self._known:
                    self._keeper.handle(kind, channel, offset, payload)
        except Exception:  # noqa: BLE001 - whatever an agent says, the tasks go on
            self.close()

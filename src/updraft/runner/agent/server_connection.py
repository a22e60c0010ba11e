"""An agent's way to its server: a control connection, and a data connection beside it.

What streams carry waits for nothing on the control connection, and holds up nothing there.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, Protocol

import updraft
from updraft import errors
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

log = logging.getLogger("updraft.agent")

_DEAD_AFTER_LEASES = 2 / 3
"""A connection that was silent for this part of the lease is given up, and dialled anew."""
_BEATS_A_LEASE = 6

_MOST_UNSENT_BYTES = 64 << 20
"""A server that takes nothing of so much is given up, and told all anew when it is back."""


class Server(Protocol):
    """The agent's way to its server."""

    credentials: dict[str, str]
    """What its first frame on each connection proves itself with."""

    hindrance: str
    """Why this runner cannot take another release from its server; empty: it can."""

    way: list[bytes]
    """Variables by which a task of this runner's finds the server, as this runner does."""

    async def open(self, make: Callable[[], FrameConnection]) -> FrameConnection:
        """Return a new connection.  Raises ``OSError``."""

    async def upgrade(self, release: str) -> str:
        """Install a release of the server's; return what went wrong, empty for nothing."""


class ServerStopped(ConnectionError):
    """There is no server, and none is wanted until somebody asks for one."""


class Handler(Protocol):
    """The agent, as its connections see it."""

    def from_server(
        self,
        side: ServerConnection,
        kind: int,
        channel: int,
        offset: int,
        payload: bytes | memoryview,
    ) -> None:
        """A frame of the server's; ``side`` takes an answer."""

    def lease_renewed(self, until: float) -> None:
        """The server counts on this runner up to then (seconds of the loop's clock)."""

    def pump(self) -> None:
        """The server takes output again."""


class ServerConnection:
    """Both connections; when either ends, both do."""

    def __init__(self, agent: Handler) -> None:
        self._agent = agent
        self.control: FrameConnection
        self.data: FrameConnection
        self.gone = asyncio.Event()
        self.ready = False
        """Whether the data connection takes output."""
        self.ships = False
        """Whether output is stored by the server, and not where it is spooled."""
        self._lease_seconds = 0.0
        self.fence_grace_ms = 0
        """How long a fenced task has to end once its lease ran out."""
        self._heard = 0.0
        self._beating: asyncio.TimerHandle | None = None
        self._welcomed: asyncio.Future[dict[str, Any]] | None = None
        self._grown: dict[int, int] = {}
        self._grown_due = False

    @classmethod
    async def connect(cls, agent: Handler, server: Server) -> ServerConnection:
        """Dial both connections and say hello on each."""
        side = cls(agent)
        hello = {"wire": frames.WIRE_VERSION, "release": updraft.__version__, **server.credentials}
        try:
            side.control = await server.open(lambda: FrameConnection(side))
            welcome = await side._greet(side.control, {"role": "agent", **hello})
            side.ships = welcome["ships"]
            side.data = await server.open(lambda: FrameConnection(_Data(side)))
            session = {"session": welcome["session"]}
            await side._greet(side.data, {"role": "agent-data", **hello, **session})
            for connection in (side.control, side.data):
                connection.max_unsent_bytes = _MOST_UNSENT_BYTES
        except BaseException:
            side.end()
            raise
        side.ready = True
        side._lease_seconds = welcome["lease_ms"] / 1000
        side.fence_grace_ms = welcome.get("fence_grace_ms", 0)
        side._heard = asyncio.get_running_loop().time()
        if side._lease_seconds:
            side._beat()
        return side

    async def _greet(self, connection: FrameConnection, body: dict[str, Any]) -> dict[str, Any]:
        self._welcomed = asyncio.get_running_loop().create_future()
        connection.send_message(frames.HELLO, body)
        async with asyncio.timeout(10):
            return await self._welcomed

    def _beat(self) -> None:
        """Tell that we are there, and look whether the server is."""
        loop = asyncio.get_running_loop()
        if loop.time() - self._heard > self._lease_seconds * _DEAD_AFTER_LEASES:
            log.info("the server was silent for %.0f s", loop.time() - self._heard)
            self.end()
            return
        self.control.send_stream(frames.PING, 0, int(loop.time() * 1000))
        pause = self._lease_seconds / _BEATS_A_LEASE
        self._beating = loop.call_later(pause, self._beat)

    # -- transport.FrameHandler

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._heard = asyncio.get_running_loop().time()
        if kind == frames.WELCOME and self._welcomed is not None:
            if not self._welcomed.done():
                self._welcomed.set_result(body_of(payload))
        elif kind == frames.ERROR:
            said = body_of(payload)
            error = errors.from_code(said["code"], said["message"])
            if isinstance(error, errors.RunnerRemoved) and self._welcomed is not None:
                if not self._welcomed.done():
                    self._welcomed.set_exception(error)
            else:
                log.error("the server refuses this agent: %s", error.message)
        elif kind == frames.PING:
            self.control.send_stream(frames.PONG, 0, offset)
        elif kind == frames.PONG:
            self._agent.lease_renewed(offset / 1000 + self._lease_seconds)
        else:
            self._agent.from_server(self, kind, channel, offset, payload)

    def writable(self, ready: bool) -> None:
        """What goes by the control connection is little, and waits for nothing."""

    def closed(self) -> None:
        self.end()

    def takes_output(self, ready: bool) -> None:
        """The server reads the data connection slowly (False), or reads it again (True)."""
        self.ready = ready
        if ready:
            self._agent.pump()

    # -- what the agent says

    def grew(self, channel: int, length: int) -> None:
        """Tell of a stream's growth, at most every 20 ms: followers need no more."""
        if self.ships:
            return  # the server stores it itself
        self._grown[channel] = length
        if not self._grown_due:
            self._grown_due = True
            asyncio.get_running_loop().call_later(0.02, self._tell_growth)

    def _tell_growth(self) -> None:
        self._grown_due = False
        for channel, length in self._grown.items():
            self.control.send(frames.frame(frames.GREW, channel, length))
        self._grown.clear()

    def end(self) -> None:
        """End both connections: the server is silent, or gone, or to be asked anew."""
        self.ready = False
        self.gone.set()
        if self._beating is not None:
            self._beating.cancel()
        if self._welcomed is not None and not self._welcomed.done():
            self._welcomed.set_exception(ConnectionError("the server closed the connection"))
        for connection in (getattr(self, "control", None), getattr(self, "data", None)):
            if connection is not None:
                connection.abort()  # its peer is silent, or gone


class _Data:
    """The data connection's own handler: only it is to hold output back."""

    def __init__(self, side: ServerConnection) -> None:
        self._side = side

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self._side.frame(kind, channel, offset, payload)

    def closed(self) -> None:
        self._side.end()

    def writable(self, ready: bool) -> None:
        self._side.takes_output(ready)

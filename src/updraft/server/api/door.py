"""The server's socket: tells frames from HTTP by a connection's first byte.

The peer's user id comes from the kernel, before a byte is read.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Protocol, cast

from updraft import errors
from updraft.model.access import Principal
from updraft.wire import frames
from updraft.wire.packing import PackingError
from updraft.wire.sockets import peer_uid
from updraft.wire.transport import FrameConnection, body_of

CLIENTS = frozenset({"client", "exec"})
_MAX_CONNECTIONS = 4096


class Session(Protocol):
    """A frame connection that has said what it is."""

    def start(self, connection: FrameConnection, body: dict[str, object]) -> None:
        """Take over after its HELLO.  Raises ``errors.UpdraftError`` to refuse it."""

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        """A frame arrived."""

    def closed(self) -> None:
        """The connection ended."""

    def writable(self, ready: bool) -> None:
        """The peer reads slowly, or again."""


SessionFactory = Callable[[Principal], Session]
HttpFactory = Callable[[Principal], asyncio.Protocol]


class Doors:
    """All connections of one listening socket."""

    def __init__(self, roles: dict[str, SessionFactory], http: HttpFactory) -> None:
        self.roles = roles
        self.http = http
        self.open: set[Door] = set()
        self.clients: set[_Framed] = set()
        self.some_client_gone = asyncio.Event()
        self.accepted = 0

    async def clients_gone(self) -> None:
        """Wait until no client of the raw protocol is there: each has what it came for."""
        while self.clients:
            self.some_client_gone.clear()
            await self.some_client_gone.wait()


class Door(asyncio.Protocol):
    """A new connection, until its first bytes tell what it is."""

    def __init__(self, doors: Doors) -> None:
        self._doors = doors
        self._transport: asyncio.Transport | None = None
        self._principal: Principal | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        peer: socket.socket = transport.get_extra_info("socket")
        uid = peer_uid(peer)
        if uid != os.geteuid() or len(self._doors.open) >= _MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._principal = Principal(owner=f"uid:{uid}", server_admin=True)
        self._doors.accepted += 1
        self._doors.open.add(self)

    def data_received(self, data: bytes) -> None:
        transport, principal = self._transport, self._principal
        if transport is None or principal is None:
            return
        self._doors.open.discard(self)
        protocol: asyncio.Protocol
        if data[0] == 0:
            protocol = _Framed(self._doors, principal)
        else:
            protocol = self._doors.http(principal)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.open.discard(self)


class _Framed(FrameConnection):
    """A frame connection that is counted while it is a client's."""

    def __init__(self, doors: Doors, principal: Principal) -> None:
        super().__init__(_Unknown(self, doors, principal))
        self._doors = doors

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.clients.discard(self)
        self._doors.some_client_gone.set()
        super().connection_lost(exc)


class _Unknown:
    """A frame connection before its HELLO."""

    def __init__(self, connection: _Framed, doors: Doors, principal: Principal) -> None:
        self.connection = connection
        self._doors = doors
        self._principal = principal

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if kind != frames.HELLO:
            raise PackingError("the first frame of a connection is HELLO")
        body = body_of(payload)
        wire, role = body["wire"], body["role"]
        if wire != frames.WIRE_VERSION:
            mend = (
                "restart it: updraft stop" if wire > frames.WIRE_VERSION else "upgrade the client"
            )
            self.connection.fail(
                errors.WrongVersion.code,
                f"the server speaks version {frames.WIRE_VERSION} of the protocol and the client "
                f"{wire}; {mend}",
            )
            return
        factory = self._doors.roles.get(role)
        if factory is None:
            self.connection.fail(errors.BadRequest.code, f"there is no role {role!r}")
            return
        if role in CLIENTS:
            self._doors.clients.add(self.connection)
        session = factory(self._principal)
        self.connection.handler = session
        try:
            session.start(self.connection, body)
        except errors.UpdraftError as error:
            self.connection.fail(error.code, error.message)

    def closed(self) -> None:
        """Nothing was promised to it."""

    def writable(self, ready: bool) -> None:
        """Nothing is written to it."""

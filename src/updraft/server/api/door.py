"""The server's sockets: who is there, and whether they speak frames or HTTP.

On the unix socket the kernel says who the peer is, before a byte is read.  On TCP (under TLS) a
frame connection names itself by the credential in its HELLO, an HTTP request by its header; until
then a peer may say little, and not for long.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol, cast

from updraft import errors
from updraft.model.access import Principal
from updraft.model.pool import LOCAL, Runner
from updraft.wire import frames
from updraft.wire.packing import PackingError
from updraft.wire.sockets import peer_uid
from updraft.wire.transport import FrameConnection, body_of

_MAX_CONNECTIONS = 4096
_MAX_UNKNOWN_A_PEER = 64
_HELLO_SECONDS = 10.0
_HELLO_BYTES = 16 * 1024


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


class Gate(Protocol):
    """Knows whom a credential belongs to."""

    async def admit(self, token: str, project: str | None, peer: str) -> Principal | Runner:
        """Return who carries this credential.

        Raises ``errors.NotSignedIn`` when it is not, or no longer, valid, and what
        ``project`` is refused with.
        """


ClientFactory = Callable[[Principal], Session]
AgentFactory = Callable[[Runner], Session]
HttpFactory = Callable[["Principal | None", str], asyncio.Protocol]


class Doors:
    """All connections of a server's sockets."""

    def __init__(
        self,
        clients: dict[str, ClientFactory],
        agents: dict[str, AgentFactory],
        http: HttpFactory,
        gate: Gate | None = None,
    ) -> None:
        self.client_roles = clients
        self.agent_roles = agents
        self.http = http
        self.gate = gate
        self.open: set[Door] = set()
        self.clients: set[_Framed] = set()
        self.some_client_gone = asyncio.Event()
        self.accepted = 0
        self.unknown: Counter[str] = Counter()
        """How many connections of each peer have not said who they are."""

    async def clients_gone(self) -> None:
        """Wait until no client of the raw protocol is there: each has what it came for."""
        while self.clients:
            self.some_client_gone.clear()
            await self.some_client_gone.wait()


class Door(asyncio.Protocol):
    """A new connection, until its first bytes tell what it speaks."""

    def __init__(self, doors: Doors, *, tcp: bool = False) -> None:
        self._doors = doors
        self._tcp = tcp
        self._transport: asyncio.Transport | None = None
        self._guest: _Guest | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        doors = self._doors
        if len(doors.open) >= _MAX_CONNECTIONS:
            self._transport.abort()
            return
        if self._tcp:
            peer = str(transport.get_extra_info("peername")[0])
            if doors.unknown[peer] >= _MAX_UNKNOWN_A_PEER:
                self._transport.abort()
                return
            self._guest = _Guest(doors, self._transport, peer)
        else:
            peer_socket: socket.socket = transport.get_extra_info("socket")
            uid = peer_uid(peer_socket)
            if uid != os.geteuid():
                self._transport.abort()
                return
            self._guest = _Guest(doors, self._transport, "", f"uid:{uid}")
        doors.accepted += 1
        doors.open.add(self)

    def data_received(self, data: bytes) -> None:
        transport, guest = self._transport, self._guest
        if transport is None or guest is None:
            return
        self._doors.open.discard(self)
        protocol: asyncio.Protocol
        if data[0] == 0:
            protocol = _Framed(self._doors, guest)
        else:
            guest.known()  # each request says who it is
            protocol = self._doors.http(guest.principal, guest.peer)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.open.discard(self)
        if self._guest is not None:
            self._guest.known()


class _Guest:
    """Who has come in: known from the start, or given a moment to say so."""

    def __init__(
        self, doors: Doors, transport: asyncio.Transport, peer: str, owner: str | None = None
    ) -> None:
        self.peer = peer
        self.principal = None if owner is None else Principal(owner, server_admin=True)
        self._doors = doors
        self._timer: asyncio.TimerHandle | None = None
        if owner is None:
            doors.unknown[peer] += 1
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_HELLO_SECONDS, transport.abort)

    def known(self) -> None:
        """They have said who they are, or gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._doors.unknown[self.peer] -= 1
            if not self._doors.unknown[self.peer]:
                del self._doors.unknown[self.peer]


class _Framed(FrameConnection):
    """A frame connection that is counted while it is a client's."""

    def __init__(self, doors: Doors, guest: _Guest) -> None:
        super().__init__(_Unknown(self, doors, guest))
        self._doors = doors
        self._guest = guest
        if guest.principal is None:
            self.limit_messages(_HELLO_BYTES)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.clients.discard(self)
        self._doors.some_client_gone.set()
        self._guest.known()
        super().connection_lost(exc)


class _Unknown:
    """A frame connection before its HELLO, and while its credential is looked at."""

    def __init__(self, connection: _Framed, doors: Doors, guest: _Guest) -> None:
        self.connection = connection
        self._doors = doors
        self._guest = guest
        self._held: list[tuple[int, int, int, bytes]] | None = None
        """What came behind the HELLO, while that is being answered."""
        self._admitting: asyncio.Task[None] | None = None

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if self._held is not None:
            self._held.append((kind, channel, offset, bytes(payload)))
            return
        if kind != frames.HELLO:
            raise PackingError("the first frame of a connection is HELLO")
        body = body_of(payload)
        wire, role = body["wire"], body["role"]
        if not frames.OLDEST_WIRE_VERSION <= wire <= frames.WIRE_VERSION:
            self.connection.fail(errors.WrongVersion.code, _other_version(wire))
            return
        if role not in self._doors.client_roles and role not in self._doors.agent_roles:
            self.connection.fail(errors.BadRequest.code, f"there is no role {role!r}")
        elif self._guest.principal is None:
            self._held = []
            # A submission, however large, may come behind the HELLO: no more is read meanwhile.
            self.connection.limit_messages(frames.MAX_PAYLOAD)
            if self.connection.transport is not None:
                self.connection.transport.pause_reading()
            self._admitting = asyncio.create_task(self._admit(role, body), name="admit")
        elif role in self._doors.client_roles:
            self._begin(self._doors.client_roles[role](self._guest.principal), body)
        else:
            self._begin(self._doors.agent_roles[role](LOCAL), body)

    async def _admit(self, role: str, body: dict[str, Any]) -> None:
        """Let in who carries a credential that fits the role."""
        session: Session | None = None
        try:
            token, project = body.get("token"), body.get("project")
            if self._doors.gate is None or type(token) is not str:
                raise errors.NotSignedIn("this needs a credential; sign in: updraft login URL")
            who = await self._doors.gate.admit(token, project or None, self._guest.peer)
            if isinstance(who, Principal) and role in self._doors.client_roles:
                session = self._doors.client_roles[role](who)
            elif isinstance(who, Runner) and role in self._doors.agent_roles:
                session = self._doors.agent_roles[role](who)
            else:
                raise errors.NotAllowed("this credential is not for that; users: updraft login")
        except errors.UpdraftError as error:
            self.connection.fail(error.code, error.message)
            return
        transport = self.connection.transport
        if transport is None:
            return
        self._guest.known()
        held, self._held = self._held or [], None
        self._begin(session, body)
        for frame in held:
            if self.connection.transport is not None:
                self.connection.deliver(*frame)
        if not transport.is_closing():
            transport.resume_reading()

    def _begin(self, session: Session, body: dict[str, Any]) -> None:
        if body["role"] in self._doors.client_roles:
            self._doors.clients.add(self.connection)
        self.connection.handler = session
        try:
            session.start(self.connection, body)
        except errors.UpdraftError as error:
            self.connection.fail(error.code, error.message)

    def closed(self) -> None:
        """Nothing was promised to it."""
        if self._admitting is not None:
            self._admitting.cancel()

    def writable(self, ready: bool) -> None:
        """Nothing is written to it."""


def _other_version(wire: int) -> str:
    mend = "restart it: updraft stop" if wire > frames.WIRE_VERSION else "upgrade the client"
    return (
        f"the server speaks version {frames.WIRE_VERSION} of the protocol and the client "
        f"{wire}; {mend}"
    )

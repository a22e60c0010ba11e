"""The server's sockets: who is there, and whether they speak frames or HTTP.

On the unix socket the kernel says who the peer is, before a byte is read.  On TCP (under TLS) a
frame connection names itself by the credential in its HELLO, an HTTP request by its header; until
then a peer may say little, and not for long, and has few such connections.  Afterwards, too, what
one connection or all together make the server hold is bounded, and a flood of frames takes turns
(``pacing``).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

from updraft import errors
from updraft.model.access import Principal
from updraft.model.pool import LOCAL, Runner
from updraft.server.api import pacing
from updraft.server.auth.backoff import network_of
from updraft.wire import frames
from updraft.wire.packing import PackingError
from updraft.wire.sockets import peer_uid
from updraft.wire.transport import FrameConnection, body_of

log = logging.getLogger("updraft.server")

_HELLO_SECONDS = 10.0
_HELLO_BYTES = 16 * 1024
_MAX_NETWORKS = 10_000
_MAX_HELD = 256
"""Frames behind a HELLO that is being looked at."""
_CLIENT_UNSENT_BYTES = 32 << 20
"""More than the windows that an honest client grants."""
_AGENT_UNSENT_BYTES = 256 << 20
_HALF_MESSAGES_BYTES = 128 << 20
"""Messages whose ends have not come, of all clients together."""


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

    async def admit_task(self, known: Principal, token: str) -> Principal:
        """Return who a peer of the owner's socket is that carries a task's token.

        Raises ``errors.TaskEnded``.
        """


ClientFactory = Callable[[Principal], Session]
AgentFactory = Callable[[Runner], Session]
HttpFactory = Callable[["Guest"], asyncio.Protocol]


@dataclass(frozen=True, slots=True)
class Room:
    """For how many connections there is room."""

    all: int = 4096
    peer: int = 1024

    @property
    def strangers(self) -> int:
        """Of all: the rest is for addresses that runners came from."""
        return self.all - self.all // 4

    @property
    def unknown(self) -> int:
        """Of one peer, for those without a good credential so far."""
        return max(self.peer // 4, 4)


class Doors:
    """All connections of a server's sockets."""

    def __init__(
        self,
        clients: dict[str, ClientFactory],
        agents: dict[str, AgentFactory],
        http: HttpFactory,
        gate: Gate | None = None,
        room: Room | None = None,
    ) -> None:
        self.client_roles = clients
        self.agent_roles = agents
        self.http = http
        self.gate = gate
        self.room = room or Room()
        self.open: set[Door] = set()
        self.clients: set[_Framed] = set()
        self.some_client_gone = asyncio.Event()
        self.accepted = 0
        self.connections = 0
        """How many have come in over TCP.  The owner's socket has room whatever strangers take."""
        self.peers: Counter[str] = Counter()
        """How many of them each peer has."""
        self.unknown: Counter[str] = Counter()
        """How many of these have shown no good credential."""
        self._runners_from: OrderedDict[str, None] = OrderedDict()
        self.half_messages_bytes = 0
        self.slow_agents: set[FrameConnection] = set()
        self.floods = pacing.Queue(lambda: bool(self.slow_agents))

    def arrive(self, peer: str) -> Guest | None:
        """Let a connection in from an address, before its first byte; None: there is no room."""
        network = network_of(peer)
        room = self.room
        if (
            self.connections >= (room.all if network in self._runners_from else room.strangers)
            or self.peers[network] >= room.peer
            or self.unknown[network] >= room.unknown
        ):
            return None
        return Guest(self, peer, network)

    def expect_runners(self, network: str) -> None:
        """A runner was let in from there: it will come again, and others of its machines."""
        self._runners_from[network] = None
        self._runners_from.move_to_end(network)
        if len(self._runners_from) > _MAX_NETWORKS:
            self._runners_from.popitem(last=False)

    async def clients_gone(self) -> None:
        """Wait until no client of the raw protocol is there: each has what it came for."""
        while self.clients:
            self.some_client_gone.clear()
            await self.some_client_gone.wait()


class Door(asyncio.Protocol):
    """A new connection, until its first bytes tell what it speaks."""

    def __init__(self, doors: Doors, guest: Guest | None = None) -> None:
        """``guest``: who has come in over TCP; None: the kernel is asked who they are."""
        self._doors = doors
        self._transport: asyncio.Transport | None = None
        self._guest = guest

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        doors = self._doors
        if self._guest is None:
            peer_socket: socket.socket = transport.get_extra_info("socket")
            uid = peer_uid(peer_socket)
            if uid != os.geteuid():
                self._transport.abort()
                return
            self._guest = Guest(doors, "", "", f"uid:{uid}")
        self._guest.give_time(self._transport)
        doors.accepted += 1
        doors.open.add(self)

    def data_received(self, data: bytes) -> None:
        transport, guest = self._transport, self._guest
        if transport is None or guest is None:
            return
        self._doors.open.discard(self)
        protocol = _Framed(self._doors, guest) if data[0] == 0 else self._doors.http(guest)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        protocol.data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.open.discard(self)
        if self._guest is not None:
            self._guest.gone()


class Guest:
    """Who has come in: known from the start, or by a good credential.

    Whoever has the connection calls ``spoke`` once something of sense has come, ``known`` when it
    had such a credential, and ``gone`` at the connection's end.
    """

    def __init__(self, doors: Doors, peer: str, network: str, owner: str | None = None) -> None:
        self.peer = peer
        self.principal = None if owner is None else Principal(owner, server_admin=True)
        self._doors = doors
        self._network = network
        self._timer: asyncio.TimerHandle | None = None
        self._counted = self._unknown = owner is None
        if self._counted:
            doors.connections += 1
            doors.peers[network] += 1
            doors.unknown[network] += 1

    def give_time(self, transport: asyncio.Transport) -> None:
        """End the connection unless they speak in a moment."""
        if self._unknown:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(_HELLO_SECONDS, transport.abort)

    def spoke(self) -> None:
        """A request has come, which has its own time from now on."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def known(self, *, runner: bool = False) -> None:
        """They have a good credential: a user's, or a runner's."""
        self.spoke()
        if self._unknown:
            self._unknown = False
            _less(self._doors.unknown, self._network)
        if runner:
            self._doors.expect_runners(self._network)

    def gone(self) -> None:
        """The connection has ended."""
        self.known()
        if self._counted:
            self._counted = False
            self._doors.connections -= 1
            _less(self._doors.peers, self._network)


def _less(counts: Counter[str], key: str) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


class _Framed(FrameConnection):
    """A frame connection: what its peer may make the server hold and do."""

    def __init__(self, doors: Doors, guest: Guest) -> None:
        super().__init__(_Unknown(self, doors, guest))
        self._doors = doors
        self._guest = guest
        self._is_agent = False
        self._allowance: pacing.Allowance | None = None
        self._cost = pacing.cost
        self._chunks: deque[bytes] = deque()
        self._frames: Iterator[tuple[int, int, int, bytes | memoryview]] | None = None
        self._waits = False
        self._half_bytes = 0
        if guest.principal is None:
            self.limit_messages(_HELLO_BYTES)

    def is_client(self) -> None:
        """It is counted, and what it may do is bounded."""
        self._doors.clients.add(self)
        self.max_unsent_bytes = _CLIENT_UNSENT_BYTES
        if self._guest.principal is None:
            self._pace(pacing.CLIENT_RATE)

    def is_agent(self) -> None:
        """Much goes through it."""
        self._is_agent = True
        self.max_unsent_bytes = _AGENT_UNSENT_BYTES
        if self._guest.principal is None:
            self._cost = pacing.agent_cost
            self._pace(pacing.AGENT_RATE)

    def _pace(self, rate: int) -> None:
        self._allowance = pacing.Allowance(asyncio.get_running_loop().time(), rate)

    def data_received(self, data: bytes) -> None:
        if self._allowance is None:
            super().data_received(data)
        else:
            self._chunks.append(data)
            if not self._waits:
                self._handle(self._allowance.take(asyncio.get_running_loop().time()))
        self._count_half()

    def go_on(self) -> None:
        self._waits = False
        self._handle(pacing.TURN)
        if not self._waits and self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _handle(self, most: int) -> None:
        """Handle frames for so much work, and get in line for the rest."""
        work = -self._reader.empty
        try:
            for kind, channel, offset, payload in self._arrived():
                self.handler.frame(kind, channel, offset, payload)
                work += self._cost(kind, len(payload))
                if work + self._reader.empty >= most:
                    break
            work += self._reader.empty
            if work >= most:
                self._wait()
        except (ValueError, KeyError, TypeError) as error:
            self._chunks.clear()
            self._break_off(error)
        if self._allowance is not None:
            self._allowance.used(work)

    def _arrived(self) -> Iterator[tuple[int, int, int, bytes | memoryview]]:
        while self.transport is not None and not self.transport.is_closing():
            if self._frames is None:
                if not self._chunks:
                    return
                self._frames = self._reader.feed(self._chunks.popleft())
            yield from iter(lambda: next(self._frames, None), None)  # type: ignore[arg-type]
            self._frames = None

    def _wait(self) -> None:
        if self.transport is not None and not self._waits:
            self._waits = True
            self.transport.pause_reading()
            self._doors.floods.add(self)

    def _count_half(self) -> None:
        """Cut it off where unfinished messages together take too much."""
        half = self._reader.held_bytes
        if half == self._half_bytes:
            return
        self._doors.half_messages_bytes += half - self._half_bytes
        self._half_bytes = half
        if not self._is_agent and self._doors.half_messages_bytes > _HALF_MESSAGES_BYTES:
            self.fail(errors.Unavailable.code, "too many large messages at a time; try again")

    def pause_writing(self) -> None:
        if self._is_agent:
            self._doors.slow_agents.add(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self._doors.slow_agents.discard(self)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._doors.clients.discard(self)
        self._doors.some_client_gone.set()
        self._doors.slow_agents.discard(self)
        self._doors.half_messages_bytes -= self._half_bytes
        self._half_bytes = 0
        self._chunks.clear()
        self._guest.gone()
        super().connection_lost(exc)


class _Unknown:
    """A frame connection before its HELLO, and while its credential is looked at."""

    def __init__(self, connection: _Framed, doors: Doors, guest: Guest) -> None:
        self.connection = connection
        self._doors = doors
        self._guest = guest
        self._held: list[tuple[int, int, int, bytes]] | None = None
        """What came behind the HELLO, while that is being answered."""
        self._admitting: asyncio.Task[None] | None = None

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        if self._held is not None:
            if len(self._held) >= _MAX_HELD:
                raise PackingError("too much behind a HELLO that has no answer yet")
            self._held.append((kind, channel, offset, bytes(payload)))
            return
        if kind != frames.HELLO:
            raise PackingError("the first frame of a connection is HELLO")
        body = body_of(payload)
        wire, role = body["wire"], body["role"]
        if not frames.OLDEST_WIRE_VERSION <= wire <= frames.WIRE_VERSION:
            who = "runner" if role in self._doors.agent_roles else "client"
            self.connection.fail(errors.WrongVersion.code, _other_version(wire, who))
            return
        if role not in self._doors.client_roles and role not in self._doors.agent_roles:
            self.connection.fail(errors.BadRequest.code, f"there is no role {role!r}")
        elif self._guest.principal is None or (
            self._doors.gate is not None and "token" in body and role in self._doors.client_roles
        ):
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
            token, project = body.get("token"), body.get("project") or ""
            if self._doors.gate is None or type(token) is not str:
                raise errors.NotSignedIn(f"this needs a credential; {errors.SIGN_IN}")
            if type(project) is not str:
                raise errors.BadRequest("project: a project's name is needed")
            gate, known = self._doors.gate, self._guest.principal
            who: Principal | Runner
            if known is not None:
                who = await gate.admit_task(known, token)
            else:
                who = await gate.admit(token, project or None, self._guest.peer)
            if isinstance(who, Principal) and role in self._doors.client_roles:
                session = self._doors.client_roles[role](who)
            elif isinstance(who, Runner) and role in self._doors.agent_roles:
                session = self._doors.agent_roles[role](who)
            else:
                raise errors.NotAllowed("this credential is not for that; users: updraft login")
        except errors.UpdraftError as error:
            self.connection.fail(error.code, error.message)
            return
        except Exception as error:
            log.exception("cannot tell who asks")
            failed = f"the server failed ({type(error).__name__}); see its log"
            self.connection.fail(errors.UpdraftError.code, failed)
            return
        transport = self.connection.transport
        if transport is None:
            return
        self._guest.known(runner=isinstance(who, Runner))
        held, self._held = self._held or [], None
        try:
            self._begin(session, body)
        except (ValueError, KeyError, TypeError):
            said = "the peer sent something that is not of this protocol"
            self.connection.fail(errors.BadRequest.code, said)
            return
        for frame in held:
            if self.connection.transport is not None:
                self.connection.deliver(*frame)
        if not transport.is_closing():
            transport.resume_reading()

    def _begin(self, session: Session, body: dict[str, Any]) -> None:
        if body["role"] in self._doors.client_roles:
            self.connection.is_client()
        else:
            self.connection.is_agent()
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


def _other_version(wire: int, who: str) -> str:
    if wire <= frames.WIRE_VERSION:
        mend = f"upgrade the {who}"
    elif who == "client":
        mend = "restart it: updraft stop"
    else:
        mend = "upgrade the server"
    return (
        f"the server speaks version {frames.WIRE_VERSION} of the protocol and the {who} "
        f"{wire}; {mend}"
    )

"""The API behind its real doors: TCP in the clear on loopback, and the owner's unix socket."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx

from tests.server.api import Api, api
from updraft.configuration import Configuration
from updraft.configuration.schema import Server
from updraft.server.api.door import Door, Doors
from updraft.server.api.http import HttpApi
from updraft.server.building import make_doors
from updraft.server.listening import TcpListener
from updraft.server.services.sign_in import SessionLimits
from updraft.wire import frames
from updraft.wire.packing import unpack_dict


class Tcp:
    """A server's doors; all that comes by ``port`` is of one address."""

    def __init__(self, made: Api, doors: Doors, http: HttpApi, port: int, path: str) -> None:
        self.made = made
        self.doors = doors
        self._http = http
        self.port = port
        self.path = path
        self._peers: list[Peer] = []

    async def say(self, data: bytes, source: str = "127.0.0.1") -> "Peer":
        """Connect from one of loopback's addresses, and send this."""
        dialled = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(source, 0))
        return self._sent(*dialled, data)

    async def say_as_owner(self, data: bytes) -> "Peer":
        """Connect to the owner's socket, and send this."""
        return self._sent(*await asyncio.open_unix_connection(self.path), data)

    def _sent(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, data: bytes
    ) -> "Peer":
        writer.write(data)
        peer = Peer(reader, writer)
        self._peers.append(peer)
        return peer

    async def turn(self) -> None:
        """Let the server go on: the loop is its own."""
        await asyncio.sleep(0.001)

    async def gone(self) -> None:
        """Close all raw connections, and wait until the server has noticed."""
        for peer in self._peers:
            peer.close()
        while self.doors.connections:
            await self.turn()

    async def hello(self, token: Any, role: str = "client", **more: Any) -> "Peer":
        """Connect as a frame connection."""
        body = {"role": role, "wire": frames.WIRE_VERSION, "release": "0", "token": token, **more}
        return await self.say(frames.message(frames.HELLO, body))

    @property
    def bodies_held(self) -> int:
        """What requests' bodies take."""
        assert self._http._bodies is not None
        return self._http._bodies.held

    @property
    def requests(self) -> int:
        """How many are being answered."""
        assert self._http._state is not None
        return len(self._http._state.tasks)

    def http(self, token: str = "") -> httpx.AsyncClient:
        """Return a client of the API."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{self.port}", headers=headers, timeout=30, trust_env=False
        )


class Peer:
    """A raw connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self._frames = frames.FrameReader()

    def send(self, kind: int, body: dict[str, Any]) -> None:
        """Send a control frame."""
        self.writer.write(frames.message(kind, body))

    async def answers(self, *last: int) -> list[tuple[int, dict[str, Any]]]:
        """Return all control frames up to one of these kinds, or to the connection's end."""
        found: list[tuple[int, dict[str, Any]]] = []
        while not found or found[-1][0] not in last:
            chunk = await self.read()
            if not chunk:
                break
            for kind, _, _, payload in self._frames.feed(chunk):
                found.append((kind, unpack_dict(bytes(payload)) if payload else {}))
        return found

    async def read(self) -> bytes:
        """Return what comes next; nothing at the end."""
        try:
            return await self.reader.read(1 << 16)
        except ConnectionResetError:
            return b""

    async def all(self) -> bytes:
        """Return what comes until the end."""
        found = b""
        while chunk := await self.read():
            found += chunk
        return found

    def close(self) -> None:
        """Go."""
        self.writer.close()


def with_tcp(
    folder: Path,
    check: Callable[[Tcp], Awaitable[None]],
    server: Server | None = None,
    sessions: SessionLimits | None = None,
) -> None:
    """Run ``check`` with a server in ``folder``."""

    async def run() -> None:
        async with api(folder, sessions) as made, _tcp(made, folder, server or Server()) as tcp:
            async with asyncio.timeout(60):
                await check(tcp)

    asyncio.run(run())


@asynccontextmanager
async def _tcp(made: Api, folder: Path, server: Server) -> AsyncIterator[Tcp]:
    made.parts.instance.settings = server
    http = HttpApi(made.parts)
    doors = make_doors(made.parts, http, replace(Configuration(), server=server))
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setblocking(False)
    port = listening.getsockname()[1]
    tcp = TcpListener(doors, [listening], None)
    path = str(folder / "sock")
    unix = await asyncio.get_running_loop().create_unix_server(lambda: Door(doors), path)
    made_tcp = Tcp(made, doors, http, port, path)
    try:
        yield made_tcp
    finally:
        async with asyncio.timeout(30):
            await made_tcp.gone()
        tcp.close()
        unix.close()
        await http.finish()

"""The agent between a real keeper and a server that the test plays."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from tests.runner.keeper_process import KeeperProcess
from tests.waiting import SECONDS
from updraft.runner.agent.agent import Agent
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

ATTEMPT = 1


class Heard:
    """One of the agent's two connections, as the server has it, and all that came over it."""

    def __init__(self) -> None:
        self.connection = FrameConnection(self)
        self.frames: list[tuple[int, int, int, bytes]] = []
        self._news = asyncio.Event()

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self.frames.append((kind, channel, offset, bytes(payload)))
        self._news.set()

    def closed(self) -> None:
        """The test has hung up."""

    def writable(self, ready: bool) -> None:
        """What a test sends is little."""

    def of(self, kind: int) -> list[tuple[int, int, bytes]]:
        """The frames of a kind: (channel, offset, payload)."""
        return [frame[1:] for frame in self.frames if frame[0] == kind]

    async def until(self, seen: Callable[[], Any]) -> None:
        """Wait until there is something to see."""
        async with asyncio.timeout(SECONDS):
            while not seen():
                self._news.clear()
                await self._news.wait()


@contextlib.asynccontextmanager
async def agent_of(keeper: KeeperProcess) -> AsyncIterator[tuple[Heard, Heard]]:
    """Run an agent; return the server's ends of its control and its data connection."""
    loop = asyncio.get_running_loop()
    dialled: asyncio.Queue[Heard] = asyncio.Queue()
    sockets: list[socket.socket] = []

    async def dial() -> socket.socket:
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        heard = Heard()
        await loop.create_connection(lambda: heard.connection, sock=ours)
        dialled.put_nowait(heard)
        sockets.append(theirs)
        return theirs

    running = asyncio.create_task(Agent("local", {}, str(keeper.socket), dial).run())
    try:
        ends = []
        for welcome in ({"session": "s"}, {}):
            end = await dialled.get()
            await end.until(partial(end.of, frames.HELLO))
            end.connection.send_message(frames.WELCOME, welcome)
            ends.append(end)
        yield ends[0], ends[1]
    finally:
        keeper.connect()  # a newer agent: ours ends
        await running
        for end in ends:
            end.connection.close()
        while any(theirs.fileno() >= 0 for theirs in sockets):  # noqa: ASYNC110 - each hears of it in turn
            await asyncio.sleep(0)


def output_of(data: Heard) -> bytes:
    channel = frames.stream_channel(ATTEMPT, frames.STDOUT)
    return b"".join(payload for at, _, payload in data.of(frames.DATA) if at == channel)


def test_what_is_attached_gets_the_output(keeper: KeeperProcess) -> None:
    async def check() -> None:
        async with agent_of(keeper) as (control, data):
            spec = keeper.shell("echo hi", attached=False)
            control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
            await control.until(lambda: control.of(frames.EXITED))
            positions = {"stdout": 0, "stderr": 0}
            data.connection.send_message(frames.ATTACH, positions, ATTEMPT << 2)
            await data.until(lambda: output_of(data) == b"hi\n")
            assert data.of(frames.ATTACH)
            assert body_of(control.of(frames.EXITED)[0][2])["stdout"] == 3

    asyncio.run(check())


@pytest.mark.xfail(reason="the agent drops an ATTACH that comes before its SPAWN", strict=True)
def test_an_attach_that_overtakes_its_spawn_is_not_lost(keeper: KeeperProcess) -> None:
    """They come over two connections; the server sent the SPAWN first."""

    async def check() -> None:
        async with agent_of(keeper) as (control, data):
            positions = {"stdout": 0, "stderr": 0}
            data.connection.send_message(frames.ATTACH, positions, ATTEMPT << 2)
            data.connection.send(frames.frame(frames.PING))
            await control.until(lambda: control.of(frames.PONG))  # the ATTACH was read
            spec = keeper.shell("echo hi", attached=False)
            control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
            await control.until(lambda: control.of(frames.EXITED))
            await data.until(lambda: output_of(data) == b"hi\n")
            assert data.of(frames.ATTACH)

    asyncio.run(check())

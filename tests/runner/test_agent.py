"""The agent between a real keeper and a server that the test plays."""

import asyncio
import contextlib
import logging
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.runner.keeper_process import KeeperProcess
from tests.waiting import SECONDS, until, wait_gone
from updraft import errors, settings
from updraft.runner.agent import server_connection
from updraft.runner.agent.agent import Agent
from updraft.testing.instance import wait_for
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

ATTEMPT = 1


class Heard:
    """One of the agent's two connections, as the server has it, and all that came over it."""

    def __init__(self) -> None:
        self.connection = FrameConnection(self)
        self.frames: list[tuple[int, int, int, bytes]] = []
        self.hung_up = False
        self._news = asyncio.Event()

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        self.frames.append((kind, channel, offset, bytes(payload)))
        self._news.set()

    def closed(self) -> None:
        self.hung_up = True
        self._news.set()

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


class Played:
    """The server, as the agent dials it."""

    def __init__(self) -> None:
        self.credentials: dict[str, str] = {"token": "secret"}
        self.dialled: asyncio.Queue[Heard] = asyncio.Queue()
        self.hindrance = ""
        self.way: list[bytes] = []
        self.upgrades: asyncio.Queue[str] = asyncio.Queue()
        """What comes of each upgrade that is asked for."""

    async def upgrade(self, release: str) -> str:
        return await self.upgrades.get()

    async def open(self, make: Callable[[], FrameConnection]) -> FrameConnection:
        theirs, ours = socket.socketpair()
        theirs.setblocking(False)
        ours.setblocking(False)
        heard = Heard()
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: heard.connection, sock=ours)
        self.dialled.put_nowait(heard)
        _, connection = await loop.create_connection(make, sock=theirs)
        return connection


def start_agent(
    keeper: KeeperProcess, capacity: dict[str, Any] | None = None
) -> tuple[Played, asyncio.Task[bool]]:
    """Start an agent, and return what it dials."""
    played = Played()
    spool = str(keeper.socket.parent / "spool")
    agent = Agent(capacity or {}, str(keeper.socket), played, spool)
    return played, asyncio.create_task(agent.run())


async def welcome(played: Played, *, ships: bool = False, lease_ms: int = 0) -> list[Heard]:
    """Take the agent's connections: control and data."""
    ends = []
    for body in ({"session": "s", "ships": ships, "lease_ms": lease_ms}, {}):
        end = await played.dialled.get()
        await end.until(partial(end.of, frames.HELLO))
        end.connection.send_message(frames.WELCOME, body)
        ends.append(end)
    await ends[0].until(lambda: ends[0].of(frames.REPORT))
    return ends


async def refuse(played: Played, code: str) -> None:
    """Refuse the agent's next connection."""
    end = await played.dialled.get()
    await end.until(partial(end.of, frames.HELLO))
    end.connection.fail(code, "this runner was removed")


@contextlib.asynccontextmanager
async def agent_of(
    keeper: KeeperProcess, *, ships: bool = False, lease_ms: int = 0
) -> AsyncIterator[tuple[Heard, Heard]]:
    """Run an agent; return the server's ends of its control and its data connection."""
    played, running = start_agent(keeper)
    ends: list[Heard] = []
    try:
        ends = await welcome(played, ships=ships, lease_ms=lease_ms)
        yield ends[0], ends[1]
    finally:
        keeper.connect()  # a newer agent: ours ends
        await running
        for end in ends:
            end.connection.close()


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


def test_input_that_overtakes_its_grant_is_not_lost(keeper: KeeperProcess) -> None:
    async def check() -> None:
        async with agent_of(keeper) as (control, data):
            stdin = frames.stream_channel(ATTEMPT, frames.STDIN)
            data.connection.send_stream(frames.DATA, stdin, 0, b"typed")
            data.connection.send_stream(frames.EOF, stdin, 5)
            data.connection.send(frames.frame(frames.PING))
            await control.until(lambda: control.of(frames.PONG))
            spec = keeper.shell("cat", attached=True, stdin=True)
            control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
            await data.until(lambda: output_of(data) == b"typed")

    asyncio.run(check())


def test_what_no_server_has_stored_is_shipped_from_where_it_says(keeper: KeeperProcess) -> None:
    async def check() -> None:
        async with agent_of(keeper, ships=True) as (control, data):
            control.connection.send_message(
                frames.SPAWN, keeper.shell("printf 0123456789"), ATTEMPT << 2
            )
            await control.until(lambda: control.of(frames.EXITED))
            await data.until(lambda: output_of(data) == b"0123456789")
            # Attached or not makes no difference to what is stored …
            positions = {"stdout": 3, "stderr": 0}
            data.connection.send_message(frames.ATTACH, positions, ATTEMPT << 2)
            await data.until(lambda: data.of(frames.ATTACH))
            assert output_of(data) == b"0123456789"
            # … and a server that has less than it thought asks again.
            data.connection.send_message(frames.SHIP, {"stdout": 6, "stderr": 0}, ATTEMPT << 2)
            await data.until(lambda: output_of(data) == b"01234567896789")
            answered = [frame[0] for frame in data.frames]
            assert answered.index(frames.SHIP) < len(answered) - 1, "it is told before it goes on"

    asyncio.run(check())


async def at_least(data: Heard, control: Heard, want: int) -> None:
    """Wait for so much output, and make sure that there is no more."""
    await data.until(lambda: len(output_of(data)) >= want)
    answers = len(control.of(frames.PONG))
    data.connection.send(frames.frame(frames.PING))
    await control.until(lambda: len(control.of(frames.PONG)) > answers)
    assert len(output_of(data)) == want


def test_no_more_is_shipped_than_a_window_ahead_of_what_is_stored(keeper: KeeperProcess) -> None:
    size = 2 * frames.OUTPUT_WINDOW_BYTES + 1000

    async def check() -> None:
        async with agent_of(keeper, ships=True) as (control, data):
            spec = keeper.shell(f"head -c {size} /dev/zero")
            control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
            await control.until(lambda: control.of(frames.EXITED))
            channel = frames.stream_channel(ATTEMPT, frames.STDOUT)
            for stored in (0, frames.OUTPUT_WINDOW_BYTES, 2 * frames.OUTPUT_WINDOW_BYTES):
                data.connection.send_stream(frames.STORED, channel, stored)
                await at_least(data, control, min(stored + frames.OUTPUT_WINDOW_BYTES, size))

    asyncio.run(check())


def test_what_is_forgotten_leaves_no_spool(keeper: KeeperProcess) -> None:
    async def check() -> None:
        async with agent_of(keeper, ships=True) as (control, data):
            control.connection.send_message(frames.SPAWN, keeper.shell("echo hi"), ATTEMPT << 2)
            await control.until(lambda: control.of(frames.EXITED))
            await data.until(lambda: output_of(data) == b"hi\n")
            spool = keeper.socket.parent / "spool" / str(ATTEMPT)
            assert (spool / "stdout").read_bytes() == b"hi\n"
            control.connection.send_message(frames.FORGET, {"attempts": [ATTEMPT]})
            await asyncio.to_thread(wait_for, "the spool goes", lambda: not spool.exists())

    asyncio.run(check())


def test_what_a_killed_agent_had_still_to_remove_is_removed_by_the_next(
    keeper: KeeperProcess,
) -> None:
    spool = keeper.socket.parent / "spool"
    keeper.connect().spawn(ATTEMPT, keeper.shell("cat", folder=os.fsencode(spool / str(ATTEMPT))))
    until((spool / str(ATTEMPT)).exists)
    (spool / "7").mkdir()
    (spool / "7" / "stdout").write_bytes(b"sent")

    async def check() -> None:
        async with agent_of(keeper, ships=True):
            assert [path.name for path in spool.iterdir()] == [str(ATTEMPT)]

    asyncio.run(check())


def test_an_agent_whose_keeper_dies_without_a_word_ends(tmp_path: Path) -> None:
    place = tmp_path / "keeper.sock"
    silent = subprocess.Popen(
        [sys.executable, "-c", SILENT_KEEPER, str(place)], stdout=subprocess.PIPE
    )
    said = silent.stdout
    assert said is not None

    async def check() -> bool:
        running = asyncio.create_task(Agent({}, str(place), Played(), str(tmp_path)).run())
        await asyncio.to_thread(said.readline)  # it has taken the connection
        silent.kill()
        async with asyncio.timeout(SECONDS):
            return await running

    with silent:
        assert said.readline() == b"listening\n"
        assert asyncio.run(check()), "it is told to have died"


SILENT_KEEPER = """
import sys
from updraft.wire.sockets import listen_unix
with listen_unix(sys.argv[1]) as listener:
    print("listening", flush=True)
    peer, _ = listener.accept()
    print("taken", flush=True)
    while peer.recv(1000):
        pass
    sys.stdin.read()
"""


def test_more_input_than_can_be_held_for_a_grant_to_come_is_asked_for_again(
    keeper: KeeperProcess,
) -> None:
    """Dropped in silence, it would be missing: nobody sends it twice on one connection."""

    async def check() -> None:
        async with agent_of(keeper) as (control, data):
            piece = bytes(frames.CHUNK_BYTES)
            for attempt in range(1, 20):
                stdin = frames.stream_channel(attempt, frames.STDIN)
                for at in range(0, frames.INPUT_WINDOW_BYTES, len(piece)):
                    data.connection.send_stream(frames.DATA, stdin, at, piece)
            await control.until(lambda: control.hung_up)
            await data.until(lambda: data.hung_up)

    asyncio.run(check())


def test_a_server_that_takes_nothing_is_given_up_when_too_much_waits_for_it(
    keeper: KeeperProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "_MOST_UNSENT_BYTES", 1 << 20)

    async def check() -> None:
        async with agent_of(keeper) as (control, data):
            assert control.connection.transport is not None
            control.connection.transport.pause_reading()
            for _ in range(20):  # each is answered on the control connection
                data.connection.send(frames.frame(frames.PING) * 10_000)
            await data.until(lambda: data.hung_up)

    asyncio.run(check())


def test_a_slow_data_connection_holds_output_back_whatever_the_other_one_does(
    keeper: KeeperProcess,
) -> None:
    class Idle:
        def from_server(self, *_: object) -> None:
            """Nothing comes."""

        def lease_renewed(self, until: float) -> None:
            """Nothing comes."""

        def pump(self) -> None:
            raise AssertionError("the data connection takes nothing")

    async def check() -> None:
        played = Played()
        connecting = asyncio.create_task(server_connection.ServerConnection.connect(Idle(), played))
        ends = []
        for welcome in ({"session": "s", "ships": False, "lease_ms": 0}, {}):
            end = await played.dialled.get()
            await end.until(partial(end.of, frames.HELLO))
            end.connection.send_message(frames.WELCOME, welcome)
            ends.append(end)
        side = await connecting
        side.control.pause_writing()
        side.data.pause_writing()
        side.control.resume_writing()
        assert not side.ready
        side.end()
        for end in ends:
            await end.until(partial(getattr, end, "hung_up"))

    asyncio.run(check())


def test_heartbeats_come_and_a_server_that_is_silent_is_dialled_anew(
    keeper: KeeperProcess,
) -> None:
    async def check() -> None:
        async with agent_of(keeper, lease_ms=600) as (control, data):
            await control.until(lambda: len(control.of(frames.PING)) >= 2)
            await control.until(lambda: control.hung_up)
            assert control.of(frames.REPORT), "it had taken part"
            await data.until(lambda: data.hung_up)

    asyncio.run(check())


def test_a_runner_that_was_removed_ends_its_tasks_and_does_not_dial_again(
    keeper: KeeperProcess, caplog: pytest.LogCaptureFixture
) -> None:
    async def check() -> None:
        played, running = start_agent(keeper)
        control, data = await welcome(played, ships=True)
        done = keeper.shell("echo done", attached=False)
        control.connection.send_message(frames.SPAWN, done, 2 << 2)
        await control.until(lambda: control.of(frames.EXITED))
        deaf = keeper.shell("trap '' TERM; echo up; sleep 600", attached=False, grace_ms=100)
        control.connection.send_message(frames.SPAWN, deaf, ATTEMPT << 2)
        await control.until(lambda: len(control.of(frames.STARTED)) == 2)
        pid = body_of(control.of(frames.STARTED)[-1][2])["pid"]
        await data.until(lambda: output_of(data) == b"up\n")  # so TERM is ignored by now
        for end in (control, data):
            end.connection.abort()
        await refuse(played, errors.RunnerRemoved.code)
        assert await running is False  # its keeper did not die: nobody starts it again
        wait_gone(pid)
        assert keeper.process.wait(SECONDS) == errors.EXIT_REMOVED
        assert played.dialled.empty()

    caplog.set_level(logging.ERROR, "updraft.agent")
    asyncio.run(check())
    left = [*(keeper.folder / "attempts").iterdir(), *(keeper.folder / "spool").iterdir()]
    assert left == []
    assert caplog.messages == ["this runner was removed; ending this runner, with all that it runs"]


@pytest.mark.parametrize("code", ["not_signed_in", "unavailable", "wrong_version", "internal", ""])
def test_a_server_that_cannot_be_used_is_dialled_again_and_the_tasks_go_on(
    keeper: KeeperProcess, code: str
) -> None:
    async def check() -> None:
        played, running = start_agent(keeper)
        control, data = await welcome(played)
        spec = keeper.shell("read x; exit 5", attached=False)
        control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
        await control.until(lambda: control.of(frames.STARTED))
        for end in (control, data):
            end.connection.abort()
        for _ in range(2):
            if code:
                await refuse(played, code)
            else:
                (await played.dialled.get()).connection.abort()
        control, data = await welcome(played)
        (report,) = control.of(frames.REPORT)
        assert [each["attempt"] for each in body_of(report[2])["attempts"]] == [ATTEMPT]
        stdin = frames.stream_channel(ATTEMPT, frames.STDIN)
        data.connection.send_stream(frames.DATA, stdin, 0, b"go\n")
        await control.until(lambda: control.of(frames.EXITED))
        keeper.connect()
        assert await running is False
        for end in (control, data):
            end.connection.close()

    asyncio.run(check())


def test_an_agent_tells_what_came_of_an_upgrade_and_makes_way_after_it(
    keeper: KeeperProcess,
) -> None:
    async def check() -> None:
        played, running = start_agent(keeper)
        control, data = await welcome(played)
        (report,) = control.of(frames.REPORT)
        assert body_of(report[2])["upgrade"] == {"hindrance": "", "running": False, "problem": ""}
        spec = keeper.shell("read x; exit 5", attached=False)
        control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
        await control.until(lambda: control.of(frames.STARTED))
        control.connection.send_message(frames.UPGRADE, {"release": "2"})
        control.connection.abort()
        control, data = await welcome(played)
        (report,) = control.of(frames.REPORT)
        assert body_of(report[2])["upgrade"]["running"] is True
        played.upgrades.put_nowait("no room")
        await control.until(lambda: control.of(frames.UPGRADE))
        assert body_of(control.of(frames.UPGRADE)[0][2]) == {"problem": "no room"}
        played.upgrades.put_nowait("")
        control.connection.send_message(frames.UPGRADE, {"release": "2"})
        assert await running is False
        for end in (control, data):
            end.connection.close()

    asyncio.run(check())
    agent = keeper.connect()  # its successor finds the task as it was
    assert [*agent.attempts] == [ATTEMPT]
    assert agent.attempts[ATTEMPT].get("end") is None


def test_a_keeper_of_another_release_makes_way_as_soon_as_it_is_idle(
    keeper: KeeperProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent is told that another release is installed; the process stays the same."""
    was = keeper.connect().report
    monkeypatch.setattr(settings, "installed_release", lambda: "another")

    async def check() -> None:
        played, running = start_agent(keeper)
        control, data = await welcome(played)  # of the server's own machine: not its business
        spec = keeper.shell("read x; exit 5", attached=False)
        control.connection.send_message(frames.SPAWN, spec, ATTEMPT << 2)
        await control.until(lambda: control.of(frames.STARTED))
        for end in (control, data):
            end.connection.abort()
        control, data = await welcome(played, ships=True)
        (report,) = control.of(frames.REPORT)
        assert body_of(report[2])["keeper"] == was["keeper"]
        stdin = frames.stream_channel(ATTEMPT, frames.STDIN)
        data.connection.send_stream(frames.DATA, stdin, 0, b"go\n")
        await control.until(lambda: control.of(frames.EXITED))
        control.connection.send_message(frames.FORGET, {"attempts": [ATTEMPT]})
        assert await running is False
        for end in (control, data):
            end.connection.close()

    asyncio.run(check())
    wait_for("the keeper's successor", keeper.answers, SECONDS)
    now = keeper.connect().report
    assert now["pid"] == was["pid"] == keeper.process.pid
    assert (now["keeper"] != was["keeper"], now["attempts"]) == (True, [])


CREW = 50


def test_a_crews_output_is_shipped_task_by_task(keeper: KeeperProcess) -> None:
    async def check() -> None:
        async with agent_of(keeper, ships=True) as (control, data):
            spec = keeper.shell("echo out $UPDRAFT_TASK_INDEX; echo error >&2")
            body = {**spec, "stdin": False, "attached": False, "count": 3, "width": 2}
            control.connection.send_message(frames.CREW, body, CREW << 2)
            tasks = [[100 + index, index, 1] for index in range(3)]
            order = {"tasks": tasks, "width": 2}
            control.connection.send_message(frames.TASKS, order, CREW << 2)

            def ended() -> set[int]:
                groups = [body_of(payload)["ends"] for _, _, payload in control.of(frames.ENDS)]
                return {serial for group in groups for serial, _ in group}

            def shipped(attempt: int, stream: int) -> bytes:
                channel = frames.stream_channel(attempt, stream)
                found = [piece for at, _, piece in data.of(frames.DATA) if at == channel]
                return b"".join(found)

            def is_all() -> bool:
                return all(
                    shipped(100 + index, frames.STDOUT) == b"out %d\n" % index
                    and shipped(100 + index, frames.STDERR) == b"error\n"
                    for index in range(3)
                )

            await control.until(lambda: ended() == {100, 101, 102})
            await data.until(is_all)
            spool = keeper.socket.parent / "spool" / str(CREW)
            assert spool.exists()
            forgotten = {"attempts": [100, 101, 102, CREW]}
            control.connection.send_message(frames.FORGET, forgotten)
            await asyncio.to_thread(wait_for, "the spool goes", lambda: not spool.exists())

    asyncio.run(check())

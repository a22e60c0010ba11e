"""Many runners in one process: the real agents over TLS, each with a keeper that only pretends.

`agents.py URL FINGERPRINT COUNT FOLDER`, with a join token on standard input. Says `ready` when all
have joined and connected. A task whose command is `talk` writes a line a second until it is killed;
any other ends at once with exit code 0.
"""

import asyncio
import os
import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import uvloop

from updraft import settings
from updraft.runner.agent.__main__ import _JoinedServer as JoinedServer
from updraft.runner.agent.agent import Agent
from updraft.runner.joined import Joined
from updraft.sdk.joining import join
from updraft.wire import frames
from updraft.wire.transport import FrameConnection, body_of

CAPACITY = {"cpus_milli": 4000, "memory_bytes": 8 << 30, "gpus": [], "host": "load"}


class PretendedKeeper:
    """One agent's keeper, as far as frames go."""

    def __init__(self) -> None:
        self.connection = FrameConnection(self)
        self._talking: dict[int, asyncio.Task[None]] = {}

    def frame(self, kind: int, channel: int, offset: int, payload: bytes | memoryview) -> None:
        serial = channel >> 2
        if kind == frames.HELLO:
            report = {
                "keeper": "pretended",
                "pid": os.getpid(),
                "release": settings.installed_release(),
                "attempts": [],
            }
            self.connection.send_message(frames.REPORT, report)
        elif kind == frames.SPAWN:
            self._spawn(serial, body_of(payload))
        elif kind == frames.KILL and serial in self._talking:
            self._talking.pop(serial).cancel()

    def _spawn(self, serial: int, spec: dict[str, Any]) -> None:
        started = {"pid": os.getpid(), "at": time.time_ns()}
        self.connection.send_message(frames.STARTED, started, serial << 2)
        if spec["argv"][0] == b"talk":
            self._talking[serial] = asyncio.create_task(self._talk(serial, spec["folder"]))
        else:
            self._end(serial, 0, 0)

    async def _talk(self, serial: int, folder: bytes) -> None:
        path = Path(os.fsdecode(folder))
        path.mkdir(parents=True, exist_ok=True)
        length = 0
        try:
            with (path / "stdout").open("wb", buffering=0) as file:
                while True:
                    await asyncio.sleep(1)
                    length += file.write(
                        b"%f a line of output, as training runs write them\n" % time.time()
                    )
                    channel = frames.stream_channel(serial, frames.STDOUT)
                    self.connection.send_stream(frames.GREW, channel, length)
        finally:
            self._end(serial, 15, length)

    def _end(self, serial: int, status: int, length: int) -> None:
        why = "cancel" if status else None
        end = {"status": status, "at": time.time_ns(), "why": why, "stdout": length, "stderr": 0}
        self.connection.send_message(frames.EXITED, end, serial << 2)

    def closed(self) -> None:
        for task in self._talking.values():
            task.cancel()

    def writable(self, ready: bool) -> None:
        pass


def _connection_of(make: Callable[[], PretendedKeeper]) -> FrameConnection:
    return make().connection


class CountedServer(JoinedServer):
    """Tells when both connections of an agent are there."""

    def __init__(self, place: Joined, connected: asyncio.Event) -> None:
        super().__init__("", place)
        self._opened = 0
        self._connected = connected

    async def open(self, make: Any) -> FrameConnection:
        connection = await super().open(make)
        self._opened += 1
        if self._opened == 2:
            self._connected.set()
        return connection


async def main(url: str, fingerprint: str, count: int, folder: Path) -> None:
    token = sys.stdin.readline().strip()
    socket = str(folder / "keeper.sock")
    loop = asyncio.get_running_loop()
    pretend = partial(_connection_of, PretendedKeeper)
    keeper = await loop.create_unix_server(pretend, socket, backlog=count)

    def place(number: int) -> Joined:
        machine = {"name": f"load-{number}", "capacity": CAPACITY, "shared": True}
        answer = join(url, token, machine, fingerprint=fingerprint)
        return Joined(url, answer.name, answer.pool, answer.token, fingerprint)

    with ThreadPoolExecutor(4) as joining:
        places = await asyncio.gather(
            *(loop.run_in_executor(joining, place, number) for number in range(count))
        )
    async with keeper, asyncio.TaskGroup() as running:
        events = []
        for place_ in places:
            spool = folder / place_.name
            spool.mkdir()
            events.append(asyncio.Event())
            agent = Agent(CAPACITY, socket, CountedServer(place_, events[-1]), str(spool))
            running.create_task(agent.run())
            if len(events) % 50 == 0:
                await events[-1].wait()
        for event in events:
            await event.wait()
        print("ready", flush=True)


if __name__ == "__main__":
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    uvloop.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))

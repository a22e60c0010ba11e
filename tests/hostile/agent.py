"""A runner whose agent says whatever a test lets it say: no keeper, no tasks, a good token."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.hostile.team import Frames, Team, hello
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

CAPACITY = {"cpus_milli": 4000, "memory_bytes": 1 << 34, "gpus": [], "host": "far"}


class Agent:
    """Both connections of an agent."""

    def __init__(self, server: Team, token: str) -> None:
        self.control = Frames(server.tls(), hello(token, "agent"))
        (welcome,) = self.control.answers(frames.WELCOME, frames.ERROR)
        assert welcome[0] == frames.WELCOME, welcome
        session = welcome[1]["session"]
        self.data = Frames(server.tls(), hello(token, "agent-data", session=session))
        (welcome,) = self.data.answers(frames.WELCOME, frames.ERROR)
        assert welcome[0] == frames.WELCOME, welcome

    def report(self, *attempts: dict[str, Any], **changes: Any) -> Agent:
        """Take part, with these attempts."""
        body = {
            "release": "0", "pid": 1, "keeper": "one", "keeper_pid": 2, "keeper_release": "0",
            "capacity": CAPACITY, "attempts": list(attempts), **changes,
        }  # fmt: skip
        self.control.send(frames.message(frames.REPORT, body))
        return self

    def granted(self) -> int:
        """Wait for a grant; return its serial."""
        kind, channel, _, payload = self.control.received(frames.SPAWN)[-1]
        assert kind == frames.SPAWN
        assert unpack_dict(payload)["argv"]
        return channel >> 2

    def say(self, kind: int, serial: int, **body: Any) -> None:
        """Say something of an attempt."""
        self.control.send(frames.message(kind, body, serial << 2))

    def starts(self, serial: int) -> None:
        """Say that an attempt's command runs."""
        self.say(frames.STARTED, serial, pid=77, at=time.time_ns())

    def ends(self, serial: int, code: int = 0, stdout: int = 0, **body: Any) -> None:
        """Say that it has ended."""
        lengths = {"stdout": stdout, "stderr": 0}
        self.say(frames.EXITED, serial, status=code << 8, at=time.time_ns(), **lengths, **body)

    def writes(self, serial: int, offset: int, data: bytes) -> bool:
        """Ship output; whether the server still takes it."""
        channel = frames.stream_channel(serial, frames.STDOUT)
        return self.data.send(frames.frame(frames.DATA, channel, offset, data))

    def cuts(self, serial: int, length: int) -> bool:
        """Say that there is no output before this any more."""
        channel = frames.stream_channel(serial, frames.STDOUT)
        return self.data.send(frames.frame(frames.EOF, channel, length))

    def in_step(self) -> list[int]:
        """Wait until the server has heard all; return the kinds of what it said meanwhile."""
        self.control.send(frames.frame(frames.PING))
        return [kind for kind, *_ in self.control.received(frames.PONG)]

    def close(self) -> None:
        """Go."""
        self.control.close()
        self.data.close()


def join(server: Team, name: str, **changes: Any) -> str:
    """Let a machine join the pool ``remote``; return its runner's token."""
    body = {"name": name, "capacity": CAPACITY, "shared": True, **changes}
    with server.http("anna") as client:
        made = client.post("/runner-tokens", json={"pool": "remote", "uses": 1}).json()
        headers = {"Authorization": f"Bearer {made['token']}"}
        answer = client.post("/runners/join", json=body, headers=headers)
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def leave(server: Team, name: str) -> None:
    """Forget a runner, with all that it has."""
    with server.http("anna") as client:
        assert client.delete(f"/runners/{name}?force=true").status_code == 204


@contextmanager
def agent(server: Team, token: str, *attempts: dict[str, Any], **changes: Any) -> Iterator[Agent]:
    """Return an agent that takes part for a ``with`` block."""
    made = Agent(server, token)
    try:
        yield made.report(*attempts, **changes)
    finally:
        made.close()

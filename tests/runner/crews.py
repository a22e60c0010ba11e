"""An agent's part in crews, played by a test."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess, name_of
from updraft.runner.keeper.processes import descendants
from updraft.wire import frames

CREW = 1
"""The number of a test's (first) crew."""

FIRST = 100
"""The attempt of its first task."""


class PlayedCrew:
    """A crew on a keeper, whose tasks run one shell script."""

    def __init__(self, keeper: KeeperProcess, script: str, width: int = 1, **changes: Any) -> None:
        self.keeper, self.width = keeper, width
        spec = keeper.shell(script, stdin=False, attached=False)
        self.spec = {**spec, "count": 1000, "width": width, **changes}

    def open(self, agent: BareAgent, number: int = CREW) -> None:
        """Send it."""
        agent.send(frames.CREW, number, body=self.spec)

    def feed(
        self, agent: BareAgent, indices: Iterable[int], width: int | None = None, number: int = CREW
    ) -> None:
        """Send tasks: the attempt of index i is FIRST + i."""
        tasks = [[FIRST + index, index, 1] for index in indices]
        body = {"tasks": tasks, "width": self.width if width is None else width}
        agent.send(frames.TASKS, number, body=body)

    def run(self, agent: BareAgent, count: int) -> list[dict[str, Any]]:
        """Run tasks 0 to ``count``; return their ends."""
        self.open(agent)
        self.feed(agent, range(count))
        return [agent.wait_end(FIRST + index) for index in range(count)]

    def output(self, index: int, stream: int = frames.STDOUT, number: int = 1) -> bytes:
        """What a task wrote."""
        return output({"folder": os.fsencode(self.folder(index, number))}, stream)

    def folder(self, index: int, number: int = 1) -> Path:
        """Where a task's output lies."""
        return Path(os.fsdecode(self.spec["folder"])) / f"{index}.{number}"


def workers(keeper: KeeperProcess) -> list[int]:
    """The process ids of a keeper's crew workers."""
    return [pid for pid in descendants(keeper.process.pid) if name_of(pid) == "updraft-worker"]


def kill(agent: BareAgent, number: int, why: str = "cancel", grace_ms: int = 0) -> None:
    """End an attempt, or a crew."""
    agent.send(frames.KILL, number, body={"why": why, "grace_ms": grace_ms})

"""A task in this process: what no keeper's process can be made to see."""

import os
import selectors
import socket
import time
from pathlib import Path
from typing import Any

import pytest

from updraft.runner.keeper.leaders import Leader
from updraft.runner.keeper.task import Task
from updraft.wire import frames

HOUR_MS = 3_600_000


class Unheard:
    """A keeper that takes no interest."""

    def grew(self, channel: int, length: int) -> None:
        """Nothing."""

    def took(self, channel: int, offset: int) -> None:
        """Nothing."""

    def input_closed(self, channel: int) -> None:
        """Nothing."""

    def said(self, kind: int, task: Task, body: dict[str, Any]) -> None:
        """Nothing."""

    def ended(self, task: Task) -> None:
        """Nothing."""


def test_a_clock_that_is_set_changes_no_time_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = {
        "grace_ms": 0,
        "deadline_ms": HOUR_MS,
        "tty": None,
        "folder": os.fsencode(tmp_path),
        "limits": [0, 0],
        "quota_bytes": 1 << 20,
    }
    ours, theirs = socket.socketpair()
    leader = Leader.__new__(Leader)
    leader.isolated, leader.pid, leader.socket = False, None, ours
    leader._reader = frames.FrameReader()
    with theirs, selectors.DefaultSelector() as selector:
        task = Task(1, spec, selector, Unheard())
        task.leader = leader
        started = {"pid": os.getpid(), "at": time.time_ns()}
        task.spec["memory_bytes"] = 0
        theirs.sendall(frames.message(frames.STARTED, started))
        task.hear_the_last()
        due = task.deadline
        assert due is not None
        for jump_ns in (-(10**13), 10**13):
            monkeypatch.setattr(time, "time_ns", lambda at=started["at"] + jump_ns: at)
            task.set_limit(HOUR_MS)
            assert task.deadline == pytest.approx(due, abs=60)
    ours.close()

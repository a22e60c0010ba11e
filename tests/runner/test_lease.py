"""Fenced tasks end by themselves when their runner is out of touch; others do not notice."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.runner.keeper_process import KeeperProcess
from tests.waiting import SECONDS
from updraft.testing.instance import wait_for
from updraft.wire import frames

OUT_OF_TOUCH = "its runner was out of touch for longer than its lease"


def test_a_fenced_task_ends_when_its_lease_does_and_says_that_it_is_lost(
    keeper: KeeperProcess,
) -> None:
    agent = keeper.connect()
    agent.spawn(1, keeper.shell("sleep 600", fenced=True))
    agent.spawn(2, keeper.shell("read x; exit 5"))
    agent.until(lambda: {1, 2} <= agent.started.keys())
    agent.send(frames.LEASE, body={"ms": 300, "grace_ms": 1000})
    end = agent.wait_end(1)
    assert end["lost"] == OUT_OF_TOUCH
    assert 2 not in agent.ends
    agent.send(frames.DATA, 2, data=b"go\n")
    assert os.waitstatus_to_exitcode(agent.wait_end(2)["status"]) == 5


def test_a_lease_that_is_renewed_ends_nobody(keeper: KeeperProcess) -> None:
    agent = keeper.connect()
    agent.spawn(1, keeper.shell("read x; exit 5", fenced=True))
    agent.until(lambda: 1 in agent.started)
    for attempt in range(2, 22):
        agent.send(frames.LEASE, body={"ms": 500, "grace_ms": 0})
        agent.spawn(attempt, keeper.shell("sleep 0.05"))
        agent.wait_end(attempt)
    agent.send(frames.LEASE, body={"ms": 600_000, "grace_ms": 0})
    agent.send(frames.DATA, 1, data=b"go\n")
    assert "lost" not in agent.wait_end(1)


def test_a_stopped_keeper_keeps_no_fenced_task_alive(keeper: KeeperProcess) -> None:
    agent = keeper.connect()
    agent.spawn(1, keeper.shell("trap '' TERM; sleep 600", fenced=True))
    agent.until(lambda: 1 in agent.started)
    pid = agent.started[1]["pid"]
    agent.send(frames.LEASE, body={"ms": 400, "grace_ms": 200})
    agent.spawn(2, keeper.shell("true"))
    agent.wait_end(2)  # the lease was heard of before
    os.kill(keeper.process.pid, signal.SIGSTOP)
    try:
        wait_for("its processes end", lambda: not alive(pid), SECONDS)
    finally:
        os.kill(keeper.process.pid, signal.SIGCONT)
    assert agent.wait_end(1)["lost"] == OUT_OF_TOUCH


LEADER_OF_TWO = """
import os, socket
from updraft.runner.keeper.leader import fork_leader
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

_, leader = fork_leader()
leader.setblocking(True)
reader = frames.FrameReader()

def lead(script):
    null = os.open(os.devnull, os.O_RDWR)
    order = {
        "fds": 3, "tty": False, "grace_ms": 0, "cloned": False, "rlimits": [], "nice": 0,
        "closed_fds": [], "directory": b"/", "umask": 0o22, "ignored_signals": [],
        "argv": [b"/bin/sh", b"-c", script], "environment": b"PATH=" + os.environb[b"PATH"],
        "isolation": None, "fallback_directory": False,
    }
    socket.send_fds(leader, [frames.message(frames.SPAWN, order)], [null] * 3)
    while True:
        for kind, _, _, payload in reader.feed(leader.recv(65536)):
            if kind == frames.EXITED:
                return unpack_dict(bytes(payload))

lead(b"exit 0")
leader.sendall(frames.message(frames.LEASE, {"ms": 50, "grace_ms": 0}))
print(lead(b"sleep 0.5; exit 5"))
"""


def test_a_lease_that_comes_after_its_task_s_end_does_not_end_the_next() -> None:
    """The keeper renewed it before it heard of the end; the leader leads another task by then."""
    command = [sys.executable, "-c", LEADER_OF_TWO]
    told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout
    assert f"'status': {5 << 8}," in told
    assert "lost" not in told


def alive(pid: int) -> bool:
    """Whether a process runs, and is not only waited for."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"

"""P2 on a runner: an attempt starts at most once, whoever repeats the order and whoever dies."""

import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess
from tests.waiting import until, wait_gone
from updraft.wire import frames
from updraft.wire.packing import pack

FOREIGN_UID = 65534


def test_a_command_runs_and_its_end_is_told(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell("echo out; echo err >&2; exit 3")
    agent.spawn(1, spec)
    end = agent.wait_end(1)
    assert os.waitstatus_to_exitcode(end["status"]) == 3
    assert (end["stdout"], end["stderr"], end["why"]) == (4, 4, None)
    assert (output(spec), output(spec, frames.STDERR)) == (b"out\n", b"err\n")


def test_an_attempt_starts_once_however_often_it_is_ordered(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    spec = keeper.shell(f"echo run >> {tmp_path}/runs; cat", stdin=True)
    for _ in range(3):
        agent.spawn(7, spec)
    agent.wait_started(7)
    agent.spawn(7, {**spec, "folder": spec["folder"] + b"-another"})
    newer = keeper.connect()
    newer.spawn(7, spec)
    newer.send(frames.EOF, 7, at=0)
    newer.wait_end(7)
    newer.spawn(7, spec)
    # The keeper answers in order: what would start has started once this ends.
    newer.spawn(8, keeper.spec("true"))
    newer.wait_end(8)
    assert (tmp_path / "runs").read_text() == "run\n"
    assert 7 not in newer.started


def test_a_new_agent_is_told_all_that_it_has_to_know(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    running = keeper.shell("echo started; cat")
    ended = keeper.shell("echo ended; exit 4")
    agent.spawn(1, running)
    agent.spawn(2, ended)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 8)
    agent.send(frames.DATA, 1, data=b"typed\n")
    agent.wait_output(1, frames.STDOUT, 14)
    agent.wait_end(2)
    newer = keeper.connect()
    assert newer.report["keeper"]
    assert newer.report["pid"] == keeper.process.pid
    assert set(newer.attempts) == {1, 2}
    one = newer.attempts[1]
    assert (one["job"], one["folder"], one["pid"]) == (running["job"], running["folder"], pid)
    assert (one["stdout"], one["stderr"], one["input"]) == (14, 0, 6)
    assert one["end"] is None
    assert one["at"] == agent.started[1]["at"]
    assert newer.attempts[2]["end"] == agent.ends[2]
    assert newer.attempts[2]["end"]["stdout"] == 6


def test_a_newer_agent_fences_the_older(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    newer = keeper.connect()
    agent.until(lambda: agent.closed)
    # What the older one still had to say is not heard.
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    agent.send(frames.EOF, 1, at=0)
    newer.send(frames.DATA, 1, data=b"from the newer\n")
    newer.wait_output(1, frames.STDOUT, 15)
    newer.send(frames.EOF, 1, at=15)
    assert newer.wait_end(1)["status"] == 0


def test_who_has_not_said_hello_orders_nothing(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    stranger = keeper.connect(greet=False)
    stranger.spawn(1, keeper.spec("touch", str(tmp_path / "touched")))
    stranger.send(frames.STOP, body={"cancel": True})
    agent.spawn(2, keeper.spec("true"))
    agent.wait_end(2)
    assert not (tmp_path / "touched").exists()


def test_an_agent_that_goes_and_comes_misses_no_end(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("read line; echo $line")
    agent.spawn(1, spec)
    agent.wait_started(1)
    agent.send(frames.DATA, 1, data=b"typed\n")
    agent.close()
    until(lambda: output(spec) == b"typed\n")
    until(lambda: b"stdout" in record(keeper, 1), "the end to be recorded")
    newer = keeper.connect()
    assert newer.attempts[1]["end"]["status"] == 0
    assert newer.attempts[1]["end"]["stdout"] == 6


def record(keeper: KeeperProcess, attempt: int) -> bytes:
    path = keeper.folder / "attempts" / str(attempt)
    return path.read_bytes() if path.exists() else b""


def test_an_end_is_forgotten_when_it_is_stored_elsewhere_and_not_before(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.spawn(2, keeper.spec("true"))
    agent.wait_started(1)
    agent.wait_end(2)
    agent.send(frames.FORGET, body={"attempts": [1, 2, 99]})
    newer = keeper.connect()
    assert set(newer.attempts) == {1}, "a running attempt is not forgotten"
    assert record(keeper, 1)
    assert not record(keeper, 2)
    newer.send(frames.EOF, 1, at=0)
    newer.wait_end(1)
    newer.send(frames.FORGET, body={"attempts": [1]})
    assert keeper.connect().attempts == {}
    assert list((keeper.folder / "attempts").iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "step", "errno"),
    [
        ({"argv": [b"no-such-command"]}, "exec", 2),
        ({"argv": [b"/no/such/file"]}, "exec", 2),
        ({"argv": [b"/etc/passwd"]}, "exec", 13),
        ({"argv": [b"/"]}, "exec", 13),
        ({"argv": [b""]}, "exec", 2),
        ({"directory": b"/no/such/folder"}, "directory", 2),
        ({"directory": b"/etc/passwd"}, "directory", 20),
        ({"directory": b"/no/s\xc3\xbcch/folder"}, "directory", 2),
    ],
)
def test_what_cannot_start_is_refused_with_its_reason_and_never_ran(
    keeper: KeeperProcess, agent: BareAgent, changes: dict[str, Any], step: str, errno: int
) -> None:
    agent.spawn(1, keeper.spec("true", **changes))
    end = agent.wait_end(1)
    assert (end["refused"], end["errno"]) == (step, errno)
    where = os.fsdecode(changes["directory"]) + ": " if step == "directory" else ""
    assert end["message"] == where + os.strerror(errno)
    assert 1 not in agent.started
    # Its leader is as good as new.
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["status"] == 0


def test_a_restarted_keeper_tells_how_attempts_ended_and_starts_none_again(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    ended = keeper.shell(f"echo ended; echo run >> {tmp_path}/runs; exit 5")
    running = keeper.shell(f"echo running; echo run >> {tmp_path}/runs; exec sleep 1000")
    forgotten = keeper.spec("true")
    for attempt, spec in ((1, ended), (2, running), (3, forgotten)):
        agent.spawn(attempt, spec)
    end = agent.wait_end(1)
    agent.wait_end(3)
    agent.send(frames.FORGET, body={"attempts": [3]})
    agent.wait_output(2, frames.STDOUT, 8)
    until(lambda: not record(keeper, 3), "the third to be forgotten")
    for pid in keeper.kill():
        wait_gone(pid)
    keeper.start()
    newer = keeper.connect()
    assert newer.report["keeper"] != agent.report["keeper"]
    assert set(newer.attempts) == {1, 2}
    assert newer.attempts[1]["end"] == end
    assert "keeper" in newer.attempts[2]["end"]["lost"]
    # P3: what it had read is still told of.
    lost = newer.attempts[2]
    assert (lost["job"], lost["folder"]) == (running["job"], running["folder"])
    assert (lost["end"]["stdout"], lost["end"]["stderr"]) == (8, 0)
    for attempt, spec in ((1, ended), (2, running)):
        newer.spawn(attempt, spec)
    newer.spawn(4, keeper.spec("true"))
    newer.wait_end(4)
    assert (tmp_path / "runs").read_text() == "run\nrun\n"
    # A third keeper says the same.
    for pid in keeper.kill():
        wait_gone(pid)
    keeper.start()
    third = keeper.connect()
    assert {n: third.attempts[n]["end"] for n in (1, 2)} == {1: end, 2: lost["end"]}


@pytest.mark.parametrize("left", [b"", b"d", b"garbage", pack({"job": "j"}), pack([1]) + b"\n.\n"])
def test_a_record_that_a_crash_cut_short_is_a_lost_attempt(
    keeper: KeeperProcess, left: bytes
) -> None:
    for pid in keeper.kill():
        wait_gone(pid)
    (keeper.folder / "attempts" / "5").write_bytes(left)
    (keeper.folder / "attempts" / "not a number").write_bytes(left)
    for _ in range(2):
        keeper.start()
        agent = keeper.connect()
        assert "lost" in agent.attempts[5]["end"]
        for pid in keeper.kill():
            wait_gone(pid)
    keeper.start()


def test_a_second_keeper_of_a_folder_leaves_the_first_alone(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    command = [sys.executable, "-I", "-m", "updraft.runner.keeper"]
    command += ["--folder", str(keeper.folder), "--no-cgroups", "--", "/bin/false"]
    assert subprocess.run(command, timeout=30, check=False).returncode == 0
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


def test_a_stale_socket_of_a_killed_keeper_is_replaced(keeper: KeeperProcess) -> None:
    for pid in keeper.kill():
        wait_gone(pid)
    assert keeper.socket.exists()
    keeper.start()
    assert keeper.connect().report["pid"] == keeper.process.pid


def test_the_keepers_door_and_files_are_private(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("true", umask=0))
    agent.wait_end(1)
    until(lambda: not any(keeper.folder.glob("private/*")), "temporary folders to go")
    assert keeper.socket.stat().st_mode & 0o777 == 0o600
    for path in keeper.folder.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.root
def test_another_user_is_refused_even_through_an_open_door(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    for folder in [keeper.folder, *keeper.folder.parents]:
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    keeper.socket.chmod(0o777)
    program = (
        "import os, socket, sys\n"
        f"os.setgid({FOREIGN_UID}); os.setuid({FOREIGN_UID})\n"
        "peer = socket.socket(socket.AF_UNIX)\n"
        "peer.connect(sys.argv[1])\n"
        "peer.settimeout(10)\n"
        "try:\n"
        "    peer.sendall(bytes.fromhex(sys.argv[2]))\n"
        "    assert peer.recv(1) == b''\n"
        "except (BrokenPipeError, ConnectionResetError):\n"
        "    pass\n"
    )
    orders = frames.message(frames.HELLO, {"pid": 1}) + frames.message(
        frames.STOP, {"cancel": True}
    )
    command = [sys.executable, "-I", "-c", program, str(keeper.socket), orders.hex()]
    subprocess.run(command, check=True, timeout=30)
    agent.spawn(1, keeper.spec("true"))
    assert agent.wait_end(1)["status"] == 0


def test_a_killed_agent_is_started_again(tmp_path: Path) -> None:
    script = f"echo $$ >> {tmp_path}/agents; exec cat"
    keeper = KeeperProcess(tmp_path / "runner", ["/bin/sh", "-c", script])
    try:
        for count in range(1, 4):
            os.kill(wait_agent(tmp_path, count), signal.SIGKILL)
        wait_agent(tmp_path, 4)
        agent = keeper.connect()
        agent.spawn(1, keeper.spec("true"))
        assert agent.wait_end(1)["status"] == 0
    finally:
        keeper.end()


def wait_agent(folder: Path, count: int) -> int:
    """Wait until so many agents were started; return the last one's process id."""

    def look() -> list[str]:
        path = folder / "agents"
        lines = path.read_text().splitlines() if path.exists() else []
        return lines[count - 1 :]

    return int(until(look)[0])


def test_limits_of_the_client_hold_and_those_that_are_unknown_here_are_told(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    limits = [[resource.RLIMIT_NOFILE, 77, 88], [resource.RLIMIT_CORE, 0, 0], [999, 1, 1]]
    spec = keeper.shell("ulimit -S -n; ulimit -H -n; ulimit -c", rlimits=limits)
    agent.spawn(1, spec)
    assert agent.wait_end(1)["status"] == 0
    assert output(spec) == b"77\n88\n0\n"
    assert agent.started[1]["clamped_limits"] == [999]
    agent.spawn(2, keeper.spec("true", rlimits=[[resource.RLIMIT_NOFILE, 88, 77]]))
    assert agent.wait_end(2)["refused"] == "limits"

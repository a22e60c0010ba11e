"""P6 on a runner: no process outlives its task by more than the grace, whatever it does."""

import contextlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess
from tests.waiting import until, wait_gone
from updraft.wire import frames

FAMILY = """
trap '' HUP
sleep 1000 & echo $!
setsid sleep 1000 & echo $!
(setsid sh -c 'sleep 1000 & echo $!; exec sleep 1000' & echo $!)
(sleep 1000 & echo $!)
setsid sh -c 'trap "" TERM HUP INT; echo $$; while :; do sleep 1000; done' &
sh -c 'kill -STOP $$; sleep 1000' & echo $!
"""
"""A child, one in a session of its own, one that forked twice, an orphan, one that ignores TERM and
one that is stopped; each tells its process id."""
FAMILY_SIZE = 7


def family(agent: BareAgent, keeper: KeeperProcess, then: str, **changes: object) -> list[int]:
    """Start attempt 1 as the head of a family; return the process ids of all of it."""
    spec = keeper.shell(FAMILY + then, **changes)
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    lines = agent.wait_lines(1, spec, FAMILY_SIZE)
    return [pid, *keeper.seen_here(pid, [int(line) for line in lines])]


def alive(pids: Iterable[int]) -> list[int]:
    """Which of these processes still run: a zombie does not."""
    return [pid for pid in pids if state_of(pid) not in ("", "Z", "X")]


def state_of(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
    return stat[stat.rindex(")") + 2]


def kill(agent: BareAgent, attempt: int, grace_ms: int, why: str = "cancel") -> None:
    agent.send(frames.KILL, attempt, body={"why": why, "grace_ms": grace_ms})


# -- cancelled


def test_a_whole_family_is_ended_and_the_end_is_told_after_it(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    pids = family(agent, keeper, "exec sleep 1000")
    assert len(alive(pids)) == FAMILY_SIZE + 1
    began = time.monotonic()
    kill(agent, 1, grace_ms=300)
    end = agent.wait_end(1)
    assert alive(pids) == []
    assert time.monotonic() - began >= 0.3, "the one that ignores TERM has its grace"
    assert (end["why"], end["status"]) == ("cancel", signal.SIGTERM)


def test_what_ends_by_itself_on_term_does_not_wait_for_the_grace(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    kill(agent, 1, grace_ms=60_000)
    end = agent.wait_end(1)
    assert os.waitstatus_to_exitcode(end["status"]) == 7
    assert output(spec) == b"ready\nbye\n"


def test_who_ignores_term_is_killed_after_the_grace(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    began = time.monotonic()
    kill(agent, 1, grace_ms=200)
    assert agent.wait_end(1)["status"] == signal.SIGKILL
    assert 0.2 <= time.monotonic() - began < 5


def test_no_grace_means_at_once(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell("trap 'echo bye' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    kill(agent, 1, grace_ms=0)
    assert agent.wait_end(1)["status"] == signal.SIGKILL
    assert output(spec) == b"ready\n"


def test_to_ask_again_does_not_put_off_the_end(keeper: KeeperProcess, agent: BareAgent) -> None:
    """A server that comes back repeats its orders; each new client may cancel once more."""
    spec = keeper.shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    kill(agent, 1, grace_ms=200)
    kill(agent, 1, grace_ms=600_000, why="time")
    end = agent.wait_end(1)
    assert (end["status"], end["why"]) == (signal.SIGKILL, "cancel")


def test_to_ask_again_can_bring_the_end_forward(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell("trap '' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    kill(agent, 1, grace_ms=600_000)
    kill(agent, 1, grace_ms=0)
    assert agent.wait_end(1)["status"] == signal.SIGKILL


@pytest.mark.parametrize("grace_ms", [30 * 86_400_000, (1 << 62) - 1])
def test_a_grace_of_any_length_is_one(
    keeper: KeeperProcess, agent: BareAgent, grace_ms: int
) -> None:
    spec = keeper.shell("trap 'exit 7' TERM; echo ready; while :; do sleep 0.01; done")
    agent.spawn(1, {**spec, "grace_ms": grace_ms})
    agent.wait_output(1, frames.STDOUT, 6)
    kill(agent, 1, grace_ms=grace_ms)
    assert os.waitstatus_to_exitcode(agent.wait_end(1)["status"]) == 7


def test_those_who_fork_faster_than_they_are_counted_end_too(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    # Each ignores TERM, forks a successor in a session of its own and exits: a moving target.
    runner = tmp_path / "runner.sh"
    runner.write_text("trap '' TERM HUP\necho $$ > $1\nsetsid sh $0 $1 &\n")
    spec = keeper.shell(
        "; ".join(f"setsid sh {runner} {tmp_path}/pid.{number} &" for number in range(3)).replace(
            "&;", "&"
        )
        + " exec sleep 1000"
    )
    agent.spawn(1, spec)
    until(lambda: all((tmp_path / f"pid.{number}").exists() for number in range(3)))
    kill(agent, 1, grace_ms=50)
    agent.wait_end(1)
    seen = [(tmp_path / f"pid.{number}").read_text() for number in range(3)]
    agent.spawn(2, keeper.spec("sleep", "0.1"))
    agent.wait_end(2)
    assert [(tmp_path / f"pid.{number}").read_text() for number in range(3)] == seen


# -- the command ends and leaves others behind


def test_what_a_command_leaves_behind_ends_with_it(keeper: KeeperProcess, agent: BareAgent) -> None:
    pids = family(agent, keeper, "read line; exit 3", grace_ms=300)
    agent.send(frames.DATA, 1, data=b"go\n")
    end = agent.wait_end(1)
    assert alive(pids) == []
    assert os.waitstatus_to_exitcode(end["status"]) == 3
    assert end["why"] is None


def test_what_is_left_behind_has_its_grace_and_its_last_words(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    child = "trap 'echo last words; exit' TERM; echo ready; while :; do sleep 0.01; done"
    spec = keeper.shell(f'setsid sh -c "{child}" & read line; exit 3', grace_ms=60_000)
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    agent.send(frames.DATA, 1, data=b"go\n")
    end = agent.wait_end(1)
    assert os.waitstatus_to_exitcode(end["status"]) == 3
    assert output(spec) == b"ready\nlast words\n"


def test_a_command_killed_from_outside_is_no_loss(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("sleep", "1000"))
    os.kill(agent.wait_started(1), signal.SIGKILL)
    end = agent.wait_end(1)
    assert end["status"] == signal.SIGKILL
    assert "lost" not in end


# -- signals


def test_signals_reach_the_commands_process_group(keeper: KeeperProcess, agent: BareAgent) -> None:
    trap = "trap 'echo got' USR1; echo ready; while :; do sleep 0.01; done"
    spec = keeper.shell(f'sh -c "{trap}" & {trap}')
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 12)
    agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGUSR1})
    agent.wait_output(1, frames.STDOUT, 20)
    assert output(spec) == b"ready\nready\ngot\ngot\n"
    agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGINT})
    assert agent.wait_end(1)["status"] == signal.SIGINT


def test_a_stopped_command_is_told_of_and_goes_on(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("cat"))
    pid = agent.wait_started(1)
    agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGSTOP})
    agent.until(lambda: (frames.STOPPED, 1) in agent.said)
    assert state_of(pid) == "T"
    newer = keeper.connect()
    assert newer.attempts[1]["stopped"]
    newer.send(frames.SIGNAL, 1, body={"signal": signal.SIGCONT})
    newer.until(lambda: (frames.CONTINUED, 1) in newer.said)
    newest = keeper.connect()
    assert not newest.attempts[1]["stopped"]
    newest.send(frames.EOF, 1, at=0)
    assert newest.wait_end(1)["status"] == 0


# -- time


def test_a_deadline_ends_it_with_its_grace(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell(
        "trap 'echo bye; exit 0' TERM; while :; do sleep 0.01; done", deadline_ms=200
    )
    agent.spawn(1, spec)
    agent.wait_started(1)
    began = time.monotonic()
    end = agent.wait_end(1)
    assert (end["why"], end["status"]) == ("time", 0)
    assert output(spec) == b"bye\n"
    assert time.monotonic() - began >= 0.15


def test_a_deadline_can_be_moved(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("sleep", "1000", deadline_ms=100_000))
    agent.spawn(2, keeper.spec("cat", deadline_ms=150))
    # Moved before it has started, too.
    agent.send(frames.DEADLINE, 1, body={"limit_ms": 200})
    agent.send(frames.DEADLINE, 2, body={"limit_ms": None})
    assert agent.wait_end(1)["why"] == "time"
    assert 2 not in agent.ends
    agent.spawn(3, keeper.spec("sleep", "0.2"))
    agent.wait_end(3)
    assert 2 not in agent.ends
    agent.send(frames.EOF, 2, at=0)
    end = agent.wait_end(2)
    assert (end["why"], end["status"]) == (None, 0)


@pytest.mark.parametrize("limit_ms", [30 * 86_400_000, 3650 * 86_400_000])
def test_a_deadline_may_be_far_away(keeper: KeeperProcess, agent: BareAgent, limit_ms: int) -> None:
    agent.spawn(1, keeper.spec("cat", deadline_ms=limit_ms))
    agent.wait_started(1)
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


# -- leaders and keepers are killed


@pytest.mark.parametrize("by", ["another", "the command itself"])
def test_when_a_leader_is_killed_its_tree_ends_and_the_attempt_is_lost(
    keeper: KeeperProcess, agent: BareAgent, by: str
) -> None:
    if keeper.isolation is not None and by == "the command itself":
        pytest.skip("an isolated command cannot kill its leader: see test_isolation")
    then = "exec sleep 1000" if by == "another" else "read line; kill -9 $PPID; exec sleep 1000"
    pids = family(agent, keeper, then)
    bystander = keeper.shell(FAMILY + "cat")
    agent.spawn(2, bystander)
    lines = [int(line) for line in agent.wait_lines(2, bystander, FAMILY_SIZE)]
    others = keeper.seen_here(agent.wait_started(2), lines)
    if by == "another":
        os.kill(keeper.leader_of(pids[0]), signal.SIGKILL)
    else:
        agent.send(frames.DATA, 1, data=b"go\n")
    end = agent.wait_end(1)
    assert "leader" in end["lost"]
    assert alive(pids) == [], "an end is told after the last process has gone"
    assert end["stdout"] == len(output({"folder": os.fsencode(keeper.folder / "logs" / "1")}))
    # Nobody else is hurt.
    assert len(alive(others)) == FAMILY_SIZE
    kill(agent, 2, grace_ms=0)
    agent.wait_end(2)
    assert alive(others) == []


def test_a_server_that_the_agent_started_outlives_a_killed_leader(tmp_path: Path) -> None:
    """The agent starts a killed server again; as an orphan it is the keeper's child, too."""
    script = f"(setsid sh -c 'echo $$ > {tmp_path}/server; exec sleep 1000' &); exec cat"
    keeper = KeeperProcess(tmp_path / "runner", ["/bin/sh", "-c", script])
    server = 0
    try:
        until(lambda: (tmp_path / "server").exists() and (tmp_path / "server").read_text())
        server = int((tmp_path / "server").read_text())
        agent = keeper.connect()
        agent.spawn(1, keeper.spec("sleep", "1000"))
        pid = agent.wait_started(1)
        os.kill(keeper.leader_of(pid), signal.SIGKILL)
        agent.wait_end(1)
        wait_gone(pid)
        assert alive([server]) == [server]
    finally:
        if server:
            os.kill(server, signal.SIGKILL)
        keeper.end()


@pytest.mark.slow
def test_a_task_that_stops_its_leader_is_ended_all_the_same(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    if keeper.isolation is not None:
        pytest.skip("an isolated command cannot stop its leader: it is its namespace's init")
    told = keeper.folder / "told"  # the leader has said that it started
    wait = f"until [ -e {told} ]; do sleep 0.01; done"
    agent.spawn(1, keeper.shell(f"trap '' TERM; {wait}; kill -STOP $PPID; sleep 1000"))
    pid = agent.wait_started(1)
    told.touch()
    until(lambda: state_of(keeper.leader_of(pid)) == "T")
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    agent.until(lambda: 1 in agent.ends, 30)
    assert (agent.ends[1]["why"], agent.ends[1]["status"]) == ("cancel", signal.SIGKILL)
    wait_gone(pid)
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["status"] == 0


def test_a_killed_idle_leader_costs_nobody_anything(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    for attempt in range(1, 4):
        until(lambda: len(keeper.leaders()) >= 2)
        killed = keeper.leaders()
        for pid in killed:
            with contextlib.suppress(ProcessLookupError):  # it ended with another
                os.kill(pid, signal.SIGKILL)
        for pid in killed:
            wait_gone(pid)
        # At once: the keeper may not have noticed.
        agent.spawn(attempt, keeper.spec("echo", "fine"))
        assert agent.wait_end(attempt).get("status") == 0


def test_no_process_of_any_task_survives_its_keeper(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    pids = family(agent, keeper, "exec sleep 1000")
    on_terminal = keeper.shell(FAMILY + "exec sleep 1000", tty=TTY)
    agent.spawn(2, on_terminal)
    pids.append(agent.wait_started(2))
    lines = [int(line) for line in agent.wait_lines(2, on_terminal, FAMILY_SIZE)]
    pids += keeper.seen_here(pids[-1], lines)
    leaders = keeper.leaders()
    keeper.kill()
    for pid in [*pids, *leaders]:
        wait_gone(pid)


TTY = {"rows": 24, "columns": 80, "attributes": None, "stderr": True}


# -- terminals


def test_a_terminal_has_its_size_and_follows_changes(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("trap 'stty size' WINCH; stty size; read line", tty=TTY)
    agent.spawn(1, spec)
    agent.wait_lines(1, spec, 1)
    agent.send(frames.RESIZE, 1, body={"rows": 50, "columns": 132})
    agent.wait_lines(1, spec, 2)
    assert output(spec) == b"24 80\r\n50 132\r\n"
    kill(agent, 1, grace_ms=0)
    agent.wait_end(1)


def test_the_end_of_input_on_a_terminal_is_its_sign_however_full_it_is(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    channel = frames.stream_channel(1, frames.STDIN)
    spec = keeper.shell("stty raw -echo; echo ready; exec sleep 1000", tty=TTY)
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 6)
    # Fill it, to the last byte that it takes.
    agent.send(frames.DATA, 1, data=bytes(200_000))
    agent.until(lambda: agent.taken.get(channel, 0) > 0)
    while agent.receive(0.1):
        pass
    room = agent.taken[channel]
    kill(agent, 1, grace_ms=0)
    agent.wait_end(1)
    spec = keeper.shell("stty raw -echo; echo ready; exec sleep 1000", tty=TTY)
    agent.spawn(2, spec)
    agent.wait_output(2, frames.STDOUT, 6)
    agent.send(frames.DATA, 2, data=bytes(room))
    agent.send(frames.EOF, 2, at=room)
    agent.spawn(3, keeper.spec("true"))
    assert agent.wait_end(3)["status"] == 0
    kill(agent, 2, grace_ms=0)
    agent.wait_end(2)


def test_a_command_on_a_terminal_is_stopped_by_its_key_and_goes_on(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.spec("cat", tty=TTY)
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.send(frames.DATA, 1, data=b"\x1a")
    agent.until(lambda: (frames.STOPPED, 1) in agent.said)
    assert state_of(pid) == "T"
    agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGCONT})
    agent.until(lambda: (frames.CONTINUED, 1) in agent.said)
    agent.send(frames.DATA, 1, at=1, data=b"\x03")
    assert agent.wait_end(1)["status"] == signal.SIGINT


def in_foreground(pid: int) -> int:
    """The process group, as a number here, that has a process's terminal."""
    stat = Path(f"/proc/{pid}/stat").read_text()
    return int(stat[stat.rindex(")") + 2 :].split()[5])


def test_a_shell_on_a_terminal_controls_its_jobs(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.spec("bash", "--norc", "--noprofile", "-i", tty=TTY)
    agent.spawn(1, spec)
    sent = 0

    def type_and_see(line: bytes, seen: bytes, times: int = 1) -> None:
        nonlocal sent
        agent.send(frames.DATA, 1, at=sent, data=line)
        sent += len(line)
        agent.until(lambda: output(spec).count(seen) >= times)

    shell = agent.wait_started(1)
    type_and_see(b"PS1='> '; sh -c 'echo in $((40+1)); exec cat'\r", b"in 41")
    type_and_see(b"\x1a", b"Stopped")
    type_and_see(b"echo shell $((40+2))\r", b"shell 42")
    assert (frames.STOPPED, 1) not in agent.said, "the shell itself goes on"
    type_and_see(b"fg\r", b"exec cat'\r\n", times=3)  # as typed, when it stopped, and now
    until(lambda: in_foreground(shell) != shell, "the job to have the terminal")
    type_and_see(b"to the cat\r", b"to the cat\r\nto the cat\r\n")
    type_and_see(b"\x03", b"^C\r\n> ")
    type_and_see(b"exit 9\r", b"exit 9")
    assert os.waitstatus_to_exitcode(agent.wait_end(1)["status"]) == 9


# -- the runner is to leave


def test_a_keeper_that_is_to_leave_waits_for_its_tasks_and_their_ends_to_be_stored(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    for _ in range(2):
        agent.send(frames.STOP, body={"cancel": False})
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0
    assert keeper.process.poll() is None
    agent.send(frames.FORGET, body={"attempts": [1]})
    assert keeper.process.wait(10) == 0


def test_a_keeper_that_is_to_leave_does_not_stay_for_an_agent_that_is_gone(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.shell("exit 3"))
    agent.wait_end(1)
    agent.spawn(2, keeper.shell("read x; exit 4"))
    agent.wait_started(2)
    agent.send(frames.STOP, body={"cancel": False})
    agent.send(frames.DATA, 2, data=b"go\n")
    agent.close()
    assert keeper.process.wait(10) == 0
    assert keeper.process.stdin is not None
    keeper.process.stdin.close()
    keeper.start()
    told = {serial: each["end"]["status"] for serial, each in keeper.connect().attempts.items()}
    assert told == {1: 3 << 8, 2: 4 << 8}


def test_a_keeper_that_is_to_leave_at_once_ends_its_tasks(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    pids = family(agent, keeper, "exec sleep 1000", grace_ms=100)
    leaders = keeper.leaders()
    agent.send(frames.STOP, body={"cancel": True})
    assert agent.wait_end(1)["why"] == "stop"
    assert alive(pids) == []
    agent.send(frames.FORGET, body={"attempts": [1]})
    assert keeper.process.wait(10) == 0
    for pid in leaders:
        wait_gone(pid)

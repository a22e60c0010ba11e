"""Crews through a real keeper: an array's tasks run as jobs do, and nothing runs twice."""

import os
import resource
import signal
import stat
from pathlib import Path
from typing import Any

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.crews import CREW, FIRST, PlayedCrew, kill, workers
from tests.runner.keeper_process import KeeperProcess, name_of
from tests.waiting import until, wait_gone
from updraft.wire import frames


def test_tasks_run_in_their_order_and_no_more_at_once_than_the_width(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    crew = PlayedCrew(keeper, f"echo +$UPDRAFT_TASK_INDEX >>{log}; sleep 0.01; echo - >>{log}", 2)
    ends = crew.run(agent, 20)
    assert {end["status"] for end in ends} == {0}
    runs = most = 0
    lines = log.read_text().split()
    for line in lines:
        runs += 1 if line[0] == "+" else -1
        most = max(most, runs)
    assert most == 2
    order = [int(line[1:]) for line in lines if line[0] == "+"]
    assert sorted(order) == list(range(20))
    assert all(abs(index - at) <= 3 for at, index in enumerate(order)), order


def test_one_at_a_time_is_strictly_in_order(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    crew = PlayedCrew(keeper, f"echo $UPDRAFT_TASK_INDEX >>{tmp_path}/log")
    crew.run(agent, 100)
    assert (tmp_path / "log").read_text().split() == [str(index) for index in range(100)]


def test_a_task_knows_its_index_the_count_and_its_attempt(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    script = 'echo "$UPDRAFT_TASK_INDEX/$UPDRAFT_TASK_COUNT/$UPDRAFT_ATTEMPT"'
    crew = PlayedCrew(keeper, script, count=77)
    crew.open(agent)
    agent.send(frames.TASKS, CREW, body={"tasks": [[5, 12, 3]], "width": 1})
    end = agent.wait_end(5)
    assert crew.output(12, number=3) == b"12/77/3\n"
    assert (end["stdout"], end["stderr"]) == (8, 0)


def test_output_is_stored_and_a_silent_task_has_no_folder(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    script = (
        "[ $UPDRAFT_TASK_INDEX = 1 ] && { echo out; echo error >&2; }; exit $UPDRAFT_TASK_INDEX"
    )
    crew = PlayedCrew(keeper, script)
    ends = crew.run(agent, 2)
    assert [os.waitstatus_to_exitcode(end["status"]) for end in ends] == [0, 1]
    assert [(end["stdout"], end["stderr"]) for end in ends] == [(0, 0), (4, 6)]
    assert crew.output(1, frames.STDERR) == b"error\n"
    assert not crew.folder(0).exists()


def test_what_is_repeated_starts_nothing_twice(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    crew = PlayedCrew(keeper, f"echo $UPDRAFT_TASK_INDEX >>{tmp_path}/log; sleep 0.05", 2)
    crew.open(agent)
    crew.feed(agent, range(4))
    crew.open(agent)
    crew.feed(agent, range(4))
    newer = keeper.connect()
    crew.open(newer)
    crew.feed(newer, range(5))
    newer.wait_end(FIRST + 4)
    crew.feed(newer, range(6))
    newer.wait_end(FIRST + 5)
    assert sorted((tmp_path / "log").read_text().split()) == list("012345")


def test_a_recall_gives_back_only_what_waits(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "sleep 1000", 2)
    crew.open(agent)
    crew.feed(agent, range(6))
    agent.wait_started(FIRST)
    agent.wait_started(FIRST + 1)
    kill(agent, CREW, "recall")
    for index in range(2, 6):
        assert agent.wait_end(FIRST + index)["unstarted"] is True
    assert not {FIRST, FIRST + 1} & set(agent.ends)
    kill(agent, CREW)
    assert agent.wait_end(FIRST)["why"] == agent.wait_end(FIRST + 1)["why"] == "cancel"


def test_one_task_is_ended_and_the_others_go_on(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "[ $UPDRAFT_TASK_INDEX -gt 2 ] || exec sleep 1000", 2)
    crew.open(agent)
    crew.feed(agent, range(5))
    agent.wait_started(FIRST)
    agent.wait_started(FIRST + 1)
    kill(agent, FIRST + 2)  # it waits
    assert agent.wait_end(FIRST + 2)["unstarted"]
    kill(agent, FIRST)
    end = agent.wait_end(FIRST)
    assert (end["status"], end["why"]) == (signal.SIGKILL, "cancel")
    assert agent.wait_end(FIRST + 3)["status"] == agent.wait_end(FIRST + 4)["status"] == 0
    assert FIRST + 1 not in agent.ends
    kill(agent, CREW)
    agent.wait_end(FIRST + 1)


def test_a_grace_lets_a_task_say_goodbye(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(
        keeper, "trap 'echo bye; exit 3' TERM; echo ready; while :; do sleep 0.01; done"
    )
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_output(FIRST, frames.STDOUT, 6)
    kill(agent, FIRST, grace_ms=60_000)
    assert os.waitstatus_to_exitcode(agent.wait_end(FIRST)["status"]) == 3
    assert crew.output(0) == b"ready\nbye\n"


@pytest.mark.parametrize("memory_bytes", [0, 1 << 30], ids=["worker", "leader"])
def test_after_a_keepers_crash_ended_lost_and_never_started_are_told_apart(
    keeper: KeeperProcess, agent: BareAgent, memory_bytes: int
) -> None:
    script = "echo $UPDRAFT_TASK_INDEX; [ $UPDRAFT_TASK_INDEX = 0 ] || exec sleep 1000"
    crew = PlayedCrew(keeper, script, memory_bytes=memory_bytes)
    crew.open(agent)
    crew.feed(agent, range(3))
    ended = agent.wait_end(FIRST)
    agent.wait_started(FIRST + 1)
    agent.wait_output(FIRST + 1, frames.STDOUT, 2)
    for pid in keeper.kill():
        wait_gone(pid)
    keeper.start()
    newer = keeper.connect()
    assert sorted(newer.attempts) == [FIRST, FIRST + 1], "the third did not start"
    one, two = newer.attempts[FIRST], newer.attempts[FIRST + 1]
    assert (one["crew"], one["index"], one["number"]) == (CREW, 0, 1)
    assert one["end"]["status"] == ended["status"] == 0
    assert one["end"]["stdout"] == 2
    assert "lost" in two["end"]
    assert two["end"]["stdout"] == 2
    assert two["folder"] == os.fsencode(crew.folder(1))
    # They start once, whatever is repeated; the third may.
    crew.spec["argv"] = [b"/bin/sh", b"-c", b"echo again"]
    crew.open(newer)
    crew.feed(newer, range(3))
    assert newer.wait_end(FIRST + 2)["status"] == 0
    newer.send(frames.FORGET, body={"attempts": [FIRST, FIRST + 1, FIRST + 2, CREW]})
    until(lambda: not keeper.connect().attempts)
    assert set(newer.ends) == {FIRST + 2}
    assert list((keeper.folder / "crews").iterdir()) == []


def test_what_ended_in_a_worker_that_was_let_go_is_still_known_after_a_crash(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    """Else the server, which has not stored it, would let it run a second time."""
    crew = PlayedCrew(keeper, "sleep 0.1", 3)
    crew.run(agent, 3)
    crew.feed(agent, [], width=1)
    until(lambda: len(workers(keeper)) == 1)
    for pid in keeper.kill():
        wait_gone(pid)
    keeper.start()
    newer = keeper.connect()
    assert [newer.attempts[FIRST + index]["end"]["status"] for index in range(3)] == [0, 0, 0]


def test_a_killed_workers_task_is_lost_and_the_rest_runs_in_order(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    script = (
        f"echo $UPDRAFT_TASK_INDEX >>{tmp_path}/log; [ $UPDRAFT_TASK_INDEX != 40 ] || sleep 1000"
    )
    crew = PlayedCrew(keeper, script)
    crew.open(agent)
    crew.feed(agent, range(100))
    pid = agent.wait_started(FIRST + 40)
    (worker,) = workers(keeper)
    os.kill(worker, signal.SIGKILL)
    assert "lost" in agent.wait_end(FIRST + 40)
    wait_gone(pid)
    assert agent.wait_end(FIRST + 99)["status"] == 0
    assert (tmp_path / "log").read_text().split() == [str(index) for index in range(100)]
    # What was lost stays so if the keeper, too, is killed before that is stored.
    for below in keeper.kill():
        wait_gone(below)
    keeper.start()
    assert "lost" in keeper.connect().attempts[FIRST + 40]["end"]


def test_a_worker_that_is_killed_when_it_is_one_too_many_does_no_harm(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "sleep 0.2", 4)
    crew.open(agent)
    crew.feed(agent, range(4))
    agent.wait_started(FIRST)
    found = workers(keeper)
    crew.feed(agent, [], width=1)
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    for index in range(4):
        agent.wait_end(FIRST + index)
    crew.feed(agent, [4])
    assert agent.wait_end(FIRST + 4)["status"] == 0


def test_no_task_waits_behind_a_long_one_while_there_is_room(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "[ $UPDRAFT_TASK_INDEX != 100 ] || exec sleep 1000", 2)
    crew.open(agent)
    crew.feed(agent, range(150))
    for index in range(150):
        if index != 100:
            assert agent.wait_end(FIRST + index)["status"] == 0
    kill(agent, CREW)
    agent.wait_end(FIRST + 100)


@pytest.mark.parametrize(
    ("changes", "refused", "number"),
    [
        ({"argv": [b"no-such-command"]}, "exec", 2),
        ({"argv": [b"/etc/passwd"]}, "exec", 13),
        ({"directory": b"/no/such/folder"}, "directory", 2),
        ({"argv": [b"odd\0name"]}, "start", 0),
    ],
)
def test_what_cannot_start_is_refused_and_says_why(
    keeper: KeeperProcess, agent: BareAgent, changes: dict[str, Any], refused: str, number: int
) -> None:
    ends = PlayedCrew(keeper, "true", 2, **changes).run(agent, 5)
    assert {(end["refused"], end["errno"]) for end in ends} == {(refused, number)}
    assert {(end["stdout"], end["stderr"]) for end in ends} == {(0, 0)}


def test_a_task_over_its_time_limit_ends_and_the_next_one_has_its_own(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    script = "[ $UPDRAFT_TASK_INDEX = 1 ] || exec sleep 1000"
    ends = PlayedCrew(keeper, script, deadline_ms=300).run(agent, 3)
    assert [end["why"] for end in ends] == ["time", None, "time"]


def test_a_time_limit_can_be_changed_for_what_runs(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "exec sleep 1000")
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_started(FIRST)
    agent.send(frames.DEADLINE, CREW, body={"limit_ms": 1})
    assert agent.wait_end(FIRST)["why"] == "time"


def test_what_a_task_leaves_behind_ends_before_the_task_does(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "setsid sleep 1000 >/dev/null 2>&1 & echo $!")
    crew.run(agent, 3)
    pids = [int(crew.output(index)) for index in range(3)]
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_task_that_closes_its_output_has_not_ended(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    crew = PlayedCrew(keeper, f"exec >&- 2>&-; read x <{gate}; exit 7")
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_started(FIRST)
    gate.write_text("go\n")
    assert os.waitstatus_to_exitcode(agent.wait_end(FIRST)["status"]) == 7


def test_a_task_gets_its_streams_and_nothing_else(keeper: KeeperProcess, agent: BareAgent) -> None:
    """With its worker's socket it could speak for all tasks of the crew."""
    crew = PlayedCrew(keeper, "for fd in /proc/$$/fd/*; do readlink $fd; done; cat")
    crew.run(agent, 1)
    targets = crew.output(0).decode().split()
    assert targets[0] == "/dev/null"
    assert not [each for each in targets if each.startswith("socket:") or "crews" in each]
    assert sum(each.startswith("pipe:") for each in targets) == 2


def test_output_over_the_quota_is_counted_and_keeps_its_ends(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    script = "echo first; head -c 3000000 /dev/zero; echo last"
    crew = PlayedCrew(keeper, script, quota_bytes=100_000)
    for end in crew.run(agent, 2):
        assert end["stdout"] == 3_000_011
    kept = sum(path.stat().st_size for path in crew.folder(0).glob("stdout*"))
    assert kept <= 200_000
    assert (crew.folder(0) / "stdout").read_bytes().startswith(b"first\n")
    last = max(crew.folder(0).glob("stdout.*"))
    assert last.read_bytes().endswith(b"last\n")


def test_output_is_told_while_a_slow_task_writes_it(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "echo one; sleep 0.2; echo two; exec sleep 1000")
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_output(FIRST, frames.STDOUT, 4)
    agent.wait_output(FIRST, frames.STDOUT, 8)
    assert crew.output(0) == b"one\ntwo\n"
    kill(agent, CREW)
    agent.wait_end(FIRST)


def test_a_task_with_a_memory_limit_has_a_leader(keeper: KeeperProcess, agent: BareAgent) -> None:
    script = "echo $UPDRAFT_TASK_INDEX/$UPDRAFT_TASK_COUNT/$UPDRAFT_ATTEMPT"
    crew = PlayedCrew(keeper, script, 2, memory_bytes=1 << 30)
    ends = crew.run(agent, 5)
    assert {end["status"] for end in ends} == {0}
    assert [crew.output(index) for index in range(5)] == [b"%d/1000/1\n" % i for i in range(5)]
    assert workers(keeper) == []


def test_what_a_leader_cannot_start_leaves_room_for_the_next(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    ends = PlayedCrew(keeper, "", 2, memory_bytes=1 << 30, argv=[b"no-such-command"]).run(agent, 9)
    assert {end["refused"] for end in ends} == {"exec"}


@pytest.mark.parametrize(("number", "soft", "workers_run"), [("NOFILE", 300, 1), ("FSIZE", 0, 0)])
def test_limits_hold_whoever_runs_the_task(
    keeper: KeeperProcess, agent: BareAgent, number: str, soft: int, workers_run: int
) -> None:
    which = getattr(resource, f"RLIMIT_{number}")
    hard = resource.getrlimit(which)[1]
    option = {"NOFILE": "-n", "FSIZE": "-f"}[number]
    crew = PlayedCrew(keeper, f"ulimit -S {option}", rlimits=[[which, soft, hard]])
    crew.run(agent, 1)
    assert crew.output(0) == b"%d\n" % soft
    assert len(workers(keeper)) == workers_run


def test_signals_the_umask_and_the_directory_are_the_jobs(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path
) -> None:
    script = "umask; pwd; grep SigIgn /proc/self/status; echo x >made"
    crew = PlayedCrew(
        keeper,
        script,
        ignored_signals=[signal.SIGHUP, signal.SIGUSR1],
        umask=0o777,
        directory=os.fsencode(tmp_path),
    )
    crew.run(agent, 2)
    umask, place, ignored = crew.output(0).decode().splitlines()
    assert (int(umask, 8), place) == (0o777, str(tmp_path))
    # 32 and 33 are the C library's own.
    mask = int(ignored.split()[1], 16) & 0x7FFFFFFF
    assert mask == 1 << (signal.SIGHUP - 1) | 1 << (signal.SIGUSR1 - 1)
    assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0
    # What is stored of it has to be read, by others than root too.
    assert stat.S_IMODE(crew.folder(0).stat().st_mode) & 0o700 == 0o700
    assert stat.S_IMODE((crew.folder(0) / "stdout").stat().st_mode) & 0o600 == 0o600


def test_a_new_agent_is_told_of_starts_that_the_last_one_heard(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "exec sleep 1000", 1)
    crew.open(agent)
    crew.feed(agent, range(2))
    pid = agent.wait_started(FIRST)
    newer = keeper.connect()
    report = newer.attempts[FIRST]
    assert (report["pid"], report["at"]) == (pid, agent.started[FIRST]["at"])
    assert (report["waiting"], newer.attempts[FIRST + 1]["waiting"]) == (False, True)
    kill(newer, CREW)
    newer.wait_end(FIRST)


def test_what_is_open_is_not_forgotten(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "sleep 0.2", 1)
    crew.open(agent)
    crew.feed(agent, range(3))
    agent.wait_started(FIRST)
    agent.send(frames.FORGET, body={"attempts": [FIRST, FIRST + 1, FIRST + 2, CREW]})
    assert [agent.wait_end(FIRST + index)["status"] for index in range(3)] == [0, 0, 0]


HOSTILE: list[tuple[int, int, Any]] = [
    (frames.CREW, 9, {}),
    (frames.CREW, 9, {"width": "many"}),
    (frames.TASKS, 9, {"tasks": [[1, 1, 1]], "width": 1}),
    (frames.TASKS, CREW, {}),
    (frames.TASKS, CREW, {"tasks": 5, "width": 1}),
    (frames.TASKS, CREW, {"tasks": [[1]], "width": 1}),
    (frames.TASKS, CREW, {"tasks": [[7, -1, 1]], "width": 1}),
    (frames.TASKS, CREW, {"tasks": [[7, 1 << 40, 1]], "width": 1}),
    (frames.TASKS, CREW, {"tasks": [["7", 1, 1]], "width": 1}),
    (frames.TASKS, CREW, {"tasks": [[-7, 1, 1]], "width": 1}),
    (frames.TASKS, CREW, {"tasks": [], "width": "one"}),
    (frames.TASKS, CREW, {"tasks": [], "width": -1}),
    (frames.TASKS, CREW, {"tasks": [[7, 1, 1]] * 100_000, "width": 1}),
    (frames.KILL, CREW, {"why": 5, "grace_ms": "long"}),
    (frames.DEADLINE, FIRST, {"limit_ms": 1}),
    (frames.DEADLINE, CREW, {"limit_ms": "soon"}),
    (frames.SIGNAL, FIRST, {"signal": 999}),
    (frames.SIGNAL, FIRST, {"signal": "HUP"}),
    (frames.SIGNAL, CREW, {"signal": 15}),
]


@pytest.mark.parametrize(("kind", "number", "body"), HOSTILE)
def test_an_odd_frame_hurts_no_task(
    keeper: KeeperProcess, kind: int, number: int, body: Any, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    agent = keeper.connect()
    crew = PlayedCrew(keeper, f"[ $UPDRAFT_TASK_INDEX != 0 ] || read x <{gate}")
    crew.open(agent)
    crew.feed(agent, range(3))
    agent.wait_started(FIRST)
    agent.send(kind, number, body=body)
    while not agent.closed and agent.receive(0.1):
        pass
    newer = keeper.connect()
    newer.send(frames.TASKS, CREW, body={"tasks": [], "width": 1})
    gate.write_text("go\n")
    assert [newer.wait_end(FIRST + index).get("status") for index in range(3)] == [0, 0, 0]


def test_an_empty_keeper_leaves_for_another_and_one_with_a_crew_stays(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "sleep 0.2")
    crew.open(agent)
    crew.feed(agent, range(2))
    agent.wait_started(FIRST)
    agent.send(frames.STOP, body={"cancel": False, "again": True})
    assert [agent.wait_end(FIRST + index)["status"] for index in range(2)] == [0, 0]


def test_a_keeper_that_drains_recalls_what_waits_and_lets_the_rest_end(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "sleep 0.3")
    crew.open(agent)
    crew.feed(agent, range(2))
    agent.wait_started(FIRST)
    agent.send(frames.STOP, body={"cancel": False})
    assert agent.wait_end(FIRST + 1)["unstarted"]
    assert agent.wait_end(FIRST)["status"] == 0
    agent.send(frames.FORGET, body={"attempts": [FIRST, FIRST + 1, CREW]})
    assert keeper.process.wait(30) == 0


def test_a_keeper_that_is_stopped_ends_its_crews(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "exec sleep 1000")
    crew.open(agent)
    crew.feed(agent, range(2))
    pid = agent.wait_started(FIRST)
    agent.send(frames.STOP, body={"cancel": True})
    assert agent.wait_end(FIRST)["why"] == "stop"
    assert agent.wait_end(FIRST + 1)["unstarted"]
    wait_gone(pid)
    agent.send(frames.FORGET, body={"attempts": [FIRST, FIRST + 1, CREW]})
    assert keeper.process.wait(30) == 0


def test_what_a_machine_that_shuts_down_ends_is_lost_and_may_run_elsewhere(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    crew = PlayedCrew(keeper, "exec sleep 1000")
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_started(FIRST)
    keeper.process.send_signal(signal.SIGTERM)
    assert agent.wait_end(FIRST)["lost"] == "its runner was stopped"


def test_a_crew_that_is_forgotten_leaves_no_process_and_no_notes(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    PlayedCrew(keeper, "true", 3).run(agent, 50)
    agent.send(frames.FORGET, body={"attempts": [*range(FIRST, FIRST + 50), CREW]})
    until(lambda: not workers(keeper))
    assert list((keeper.folder / "crews").iterdir()) == []
    assert name_of(keeper.process.pid) == "updraft-keeper"

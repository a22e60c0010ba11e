"""Whatever comes over its socket, and whatever it lacks, a keeper keeps its tasks."""

import contextlib
import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runner.bare_agent import BareAgent
from tests.runner.keeper_process import KeeperProcess
from tests.waiting import until
from updraft.wire import frames
from updraft.wire.packing import pack

KINDS = sorted(
    value
    for name, value in vars(frames).items()
    if name in {"HELLO", "SIGNAL", "RESIZE", "DATA", "LIMIT", "EOF", "CLOSE", "SPAWN", "KILL"}
    or name in {"FORGET", "DEADLINE", "PING", "ERROR", "GREW", "ACK", "REPORT", "EXITED"}
)
ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, -1, 65536, 2**31, 2**62]),
    st.binary(max_size=4),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    st.lists(st.integers(-1, 2**40), max_size=4),
    st.dictionaries(st.sampled_from(["rows", "a"]), st.integers(-9, 9), max_size=2),
)
FIELDS = [
    *("signal", "rows", "columns", "why", "grace_ms", "limit_ms", "attempts", "cancel", "pid"),
    *("job", "folder", "beside"),
]
BODIES = st.dictionaries(st.sampled_from(FIELDS), ODD, max_size=6).map(pack)
ENDING = frozenset(
    [frames.SIGNAL, frames.CLOSE, frames.EOF, frames.DEADLINE, frames.DATA, frames.KILL]
)
"""These may well end the bystander, as they are meant to."""
_NUMBERS = iter(range(100, 1 << 30))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    """One keeper for all examples, with a task that must outlive them."""
    keeper = KeeperProcess(tmp_path_factory.mktemp("shared") / "runner")
    try:
        agent = keeper.connect()
        agent.spawn(1, keeper.spec("cat", tty={**TTY}))
        pid = agent.wait_started(1)
        yield keeper
        assert Path(f"/proc/{pid}").exists(), "the bystander was ended"
    finally:
        keeper.end()


TTY: dict[str, Any] = {"rows": 24, "columns": 80, "attributes": None, "stderr": True}


def is_well(keeper: KeeperProcess) -> None:
    """Fail unless a keeper takes a new agent, and starts and ends a task for it."""
    agent = keeper.connect()
    attempt = next(_NUMBERS)
    agent.spawn(attempt, keeper.spec("true"))
    assert agent.wait_end(attempt).get("status") == 0
    agent.send(frames.FORGET, body={"attempts": [attempt]})
    agent.close()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=4), st.booleans())
def test_random_bytes_end_their_connection_at_most(
    shared: KeeperProcess, sent: list[bytes], greet: bool
) -> None:
    agent = shared.connect(greet=greet)
    for data in sent:
        agent.send_bytes(data)
    agent.close()
    is_well(shared)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(KINDS),
            st.sampled_from([1 << 2, 1 << 2 | 1, 1 << 2 | 2, 1 << 2 | 3, 0, 77 << 2, 2**64 - 1]),
            st.sampled_from([0, 1, 2**63 - 1, 2**64 - 1]),
            BODIES | st.binary(max_size=10) | st.just(b""),
        ),
        max_size=5,
    )
)
def test_odd_orders_end_their_connection_at_most(
    shared: KeeperProcess, sent: list[tuple[int, int, int, bytes]]
) -> None:
    agent = shared.connect()
    for frame in sent:
        if frame[0] not in ENDING or frame[1] >> 2 != 1:
            agent.send_bytes(frames.frame(*frame))
    agent.close()
    is_well(shared)


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_an_odd_spec_is_started_or_refused_and_never_hangs(
    shared: KeeperProcess, data: st.DataObject
) -> None:
    spec = shared.spec("true")
    fields = sorted(set(spec) - {"argv", "environment", "job", "folder"})
    for field in data.draw(st.lists(st.sampled_from(fields), min_size=1, max_size=2)):
        if data.draw(st.booleans(), label=f"{field} is missing"):
            spec.pop(field, None)
        else:
            spec[field] = data.draw(ODD, label=field)
    if isinstance(spec.get("limits"), list):
        spec["limits"] = [frames.NO_LIMIT, *spec["limits"]]  # 0 holds it back for ever
    attempt = next(_NUMBERS)
    agent = shared.connect()
    agent.spawn(attempt, spec)
    agent.until(lambda: attempt in agent.started or attempt in agent.ends)
    if attempt not in agent.ends:
        agent.send(frames.KILL, attempt, body={"why": "cancel", "grace_ms": 0})
        for stream in (frames.STDOUT, frames.STDERR):
            agent.send(frames.CLOSE, attempt, stream)
        agent.wait_end(attempt)
    agent.send(frames.FORGET, body={"attempts": [attempt]})
    agent.close()
    is_well(shared)


@pytest.mark.parametrize(
    "attributes", [5, [], [1, 2], ["a"] * 7, [2**40] * 7, [0, 0, 0, 0, 0, 0, [b"x"]], b"1234567"]
)
def test_odd_attributes_of_a_terminal_are_no_reason_to_fail(
    keeper: KeeperProcess, agent: BareAgent, attributes: Any
) -> None:
    agent.spawn(1, keeper.spec("true", tty={**TTY, "attributes": attributes}))
    assert "status" in agent.wait_end(1) or "refused" in agent.ends[1]
    is_well(keeper)


@pytest.mark.parametrize("number", [0, -1, 65, 9999, 2**40, -(2**40)])
def test_a_signal_that_there_is_none_of_is_passed_over(
    keeper: KeeperProcess, agent: BareAgent, number: int
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    agent.send(frames.SIGNAL, 1, body={"signal": number})
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


def test_a_frame_about_a_stream_that_there_is_none_of_ends_no_connection(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    for stream in (frames.STDIN, 3):
        agent.send(frames.CLOSE, 1, stream)
        agent.send(frames.LIMIT, 1, stream, at=100)
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


@pytest.mark.parametrize("order", [{"set_environment": 5}, {"set_environment": ["text"]}])
def test_an_odd_order_for_a_command_beside_a_task_is_refused(
    keeper: KeeperProcess, agent: BareAgent, order: dict[str, Any]
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    agent.spawn(2, {**keeper.spec("true"), "beside": 1, **order})
    assert agent.wait_end(2)["refused"] == "start"
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


def test_a_terminal_that_cannot_be_made_leaves_no_descriptor_open(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("true"))
    agent.wait_end(1)
    until(lambda: len(keeper.leaders()) >= 2)
    before = descriptors(keeper.process.pid, "/dev/p")
    for attempt in range(2, 6):
        agent.spawn(attempt, keeper.spec("true", tty={**TTY, "rows": -1}))
        assert agent.wait_end(attempt)["refused"] == "start"
    assert descriptors(keeper.process.pid, "/dev/p") == before


def test_a_leader_that_cannot_start_its_command_refuses_and_goes_on(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    until(lambda: len(keeper.leaders()) == 2)
    leaders = keeper.leaders()
    limits = resource.prlimit(keeper.process.pid, resource.RLIMIT_NOFILE)
    for pid in leaders:
        room = descriptors(pid) + 3  # for the task's streams, and nothing more
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (room, limits[1]))
    agent.spawn(1, keeper.spec("true"))
    end = agent.wait_end(1)
    assert (end["refused"], end["message"]) == ("start", "Too many open files")
    assert set(leaders) <= set(keeper.leaders())
    for pid in leaders:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    is_well(keeper)


def test_a_leader_that_takes_no_order_holds_up_nobody_for_ever(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    until(lambda: len(keeper.leaders()) == 3)
    busy = keeper.leader_of(agent.started[1]["pid"])
    for pid in keeper.leaders():
        if pid != busy:
            os.kill(pid, signal.SIGSTOP)
    large = b"PATH=/bin:/usr/bin" + b"".join(b"\0V%d=%b" % (n, bytes(1000)) for n in range(1000))
    agent.spawn(2, keeper.spec("true", environment=large))
    agent.until(lambda: 2 in agent.ends, 30)
    assert agent.ends[2]["message"] == "the runner cannot start it: its leader does not answer"
    for pid in keeper.leaders():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0
    is_well(keeper)


def descriptors(pid: int, of: str = "") -> int:
    found = [str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()]
    return sum(1 for target in found if target.startswith(of))


def test_a_keeper_without_descriptors_refuses_and_goes_on_when_it_has_some(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    pid = keeper.process.pid
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    until(lambda: len(keeper.leaders()) == 3)
    before, pipes = descriptors(pid), descriptors(pid, "pipe:")
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    for room in range(8):
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (before + room, limits[1]))
        attempt = 10 + room
        agent.spawn(attempt, keeper.spec("true"))
        end = agent.wait_end(attempt)
        assert end.get("status") == 0 or "Too many open files" in end["message"], end
        agent.send(frames.FORGET, body={"attempts": [attempt]})
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2).get("status") == 0
    assert descriptors(pid, "pipe:") == pipes, "a refused task left some open"
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0


def test_an_agent_that_takes_nothing_is_given_up_when_too_much_waits_for_it(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    agent.spawn(1, {"job": "j", "folder": bytes(1 << 20), "beside": 77})
    agent.wait_end(1)
    hello = frames.message(frames.HELLO, {"pid": os.getpid()})
    agent.send_bytes(hello * 100)  # each is answered with a report
    while agent.receive(1):
        if agent.closed:
            break
    assert agent.closed
    keeper.connect().send(frames.FORGET, body={"attempts": [1]})
    is_well(keeper)


def test_an_agent_is_heard_although_tasks_have_all_descriptors(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    """Else nobody could end them."""
    pid = keeper.process.pid
    agent.spawn(1, keeper.spec("cat"))
    agent.wait_started(1)
    until(lambda: len(keeper.leaders()) == 3)
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    used = {int(entry.name) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    free = min(set(range(len(used) + 1)) - used)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, limits[1]))
    agent.spawn(2, keeper.spec("true"))
    assert "Too many open files" in agent.wait_end(2)["message"]
    newer = keeper.connect()
    newer.send(frames.EOF, 1, at=0)
    assert newer.wait_end(1)["status"] == 0
    resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    is_well(keeper)


def test_an_agent_that_cannot_be_started_is_tried_again_and_tasks_go_on(tmp_path: Path) -> None:
    program = tmp_path / "agent"
    keeper = KeeperProcess(tmp_path / "runner", [str(program)])
    try:
        agent = keeper.connect()
        agent.spawn(1, keeper.spec("true"))
        assert agent.wait_end(1)["status"] == 0
        program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexec cat\n")
        program.chmod(0o755)
        until(lambda: (tmp_path / "started").exists())
    finally:
        keeper.end()


def test_output_that_is_held_back_after_the_end_costs_no_time(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    """On a terminal the leader ends with its command; its closed socket is no news for ever."""
    spec = keeper.spec("echo", "0123456789", tty=TTY, limits=[4, frames.NO_LIMIT])
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 4)
    until(lambda: not Path(f"/proc/{pid}").exists())
    began = cpu_seconds(keeper.process.pid)
    while agent.receive(0.3):
        pass
    assert cpu_seconds(keeper.process.pid) - began <= 0.05
    agent.send(frames.LIMIT, 1, frames.STDOUT, at=100)
    assert agent.wait_end(1)["stdout"] == 12


def cpu_seconds(pid: int) -> float:
    stat = Path(f"/proc/{pid}/stat").read_text()
    fields = stat[stat.rindex(")") + 2 :].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

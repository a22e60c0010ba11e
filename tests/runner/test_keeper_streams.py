"""P3 and P8 on a runner: bytes go through whole, in order and once, and in bounded memory."""

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess
from tests.waiting import until
from updraft.runner.keeper.processes import resident_bytes
from updraft.wire import frames

MIB = 1 << 20
WINDOW = frames.OUTPUT_WINDOW_BYTES


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KeeperProcess]:
    """One keeper for all examples of a property."""
    keeper = KeeperProcess(tmp_path_factory.mktemp("shared") / "runner")
    try:
        yield keeper
    finally:
        keeper.end()


def blocked_in_write(pid: int) -> bool:
    """Whether a process waits for room in a pipe."""
    return Path(f"/proc/{pid}/wchan").read_text() in ("pipe_write", "anon_pipe_write", "pipe_wait")


# -- input


def typed(length: int) -> bytes:
    return bytes((at * 7 + at // 256) % 256 for at in range(length))


_ATTEMPTS = iter(range(1, 1 << 30))


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 120), st.integers(0, 60)), max_size=12),
    st.integers(0, 120),
)
def test_input_is_taken_once_whatever_is_sent_twice_overlaps_or_leaves_gaps(
    shared: KeeperProcess, sent: list[tuple[int, int]], end: int
) -> None:
    agent = shared.connect()
    attempt = next(_ATTEMPTS)
    spec = shared.spec("cat")
    agent.spawn(attempt, spec)
    content = typed(200)
    expected = 0
    for start, length in sent:
        agent.send(frames.DATA, attempt, at=start, data=content[start : start + length])
        if start <= expected:
            expected = max(expected, start + length)
    # The end is told early: what is before it is still awaited.
    agent.send(frames.EOF, attempt, at=end)
    if expected < end:
        agent.send(frames.DATA, attempt, at=expected, data=content[expected:end])
    expected = max(expected, end)
    assert agent.wait_end(attempt)["status"] == 0
    assert output(spec) == content[:expected]
    agent.send(frames.FORGET, body={"attempts": [attempt]})
    agent.close()


def test_input_of_any_size_arrives_when_it_is_sent_again_from_what_was_taken(
    keeper: KeeperProcess, agent: BareAgent, seed: int
) -> None:
    content = random.Random(seed).randbytes(5 * MIB)
    spec = keeper.spec("sha256sum")
    agent.spawn(1, spec)
    channel = frames.stream_channel(1, frames.STDIN)
    # More than its window at once: it takes what it has room for, and says up to where.
    while (at := agent.taken.get(channel, 0)) < len(content):
        for start in range(at, min(at + 2 * frames.INPUT_WINDOW_BYTES, len(content)), 256 * 1024):
            part = content[start : start + 256 * 1024]
            agent.send(frames.DATA, 1, at=start, data=part)
        agent.until(lambda: agent.taken.get(channel, 0) > at)
    agent.send(frames.EOF, 1, at=len(content))
    agent.wait_end(1)
    assert output(spec).split()[0].decode() == hashlib.sha256(content).hexdigest()


def test_input_that_nobody_reads_does_not_pile_up(keeper: KeeperProcess, agent: BareAgent) -> None:
    agent.spawn(1, keeper.spec("sleep", "1000"))
    agent.wait_started(1)
    before = resident_bytes(keeper.process.pid) or 0
    sent = 0
    for _ in range(64):
        agent.send(frames.DATA, 1, at=sent, data=bytes(MIB))
        sent += MIB
    agent.spawn(2, keeper.spec("true"))
    agent.wait_end(2)
    assert (resident_bytes(keeper.process.pid) or 0) - before < 8 * MIB
    assert agent.taken[frames.stream_channel(1, frames.STDIN)] <= MIB


def test_a_new_agent_learns_where_the_input_goes_on(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.spec("cat")
    agent.spawn(1, spec)
    content = typed(1000)
    agent.send(frames.DATA, 1, at=0, data=content[:400])
    agent.wait_output(1, frames.STDOUT, 400)
    newer = keeper.connect()
    at = newer.attempts[1]["input"]
    assert at == 400
    newer.send(frames.DATA, 1, at=0, data=content[:600])
    newer.send(frames.DATA, 1, at=600, data=content[600:])
    newer.send(frames.EOF, 1, at=1000)
    newer.wait_end(1)
    assert output(spec) == content


def test_a_command_without_input_sees_an_empty_one(keeper: KeeperProcess, agent: BareAgent) -> None:
    spec = keeper.shell("cat; echo end", stdin=False)
    agent.spawn(1, spec)
    agent.send(frames.DATA, 1, data=b"not for it")
    agent.wait_end(1)
    assert output(spec) == b"end\n"


def test_who_types_learns_that_the_command_reads_no_more(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("exec <&-; echo closed; exec sleep 1000")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 7)
    agent.send(frames.DATA, 1, data=b"too late")
    agent.until(lambda: (frames.CLOSE, 1) in agent.said)


def test_the_end_of_input_comes_with_half_of_the_connection_open(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("cat; echo and more; sleep 0; echo of it")
    agent.spawn(1, spec)
    agent.send(frames.DATA, 1, data=b"typed\n")
    agent.send(frames.EOF, 1, at=6)
    agent.wait_end(1)
    assert output(spec) == b"typed\nand more\nof it\n"


# -- output


def test_output_is_held_back_at_its_limit_and_goes_on_when_it_is_raised(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    total = 3 * WINDOW
    spec = keeper.spec("head", "-c", str(total), "/dev/zero", limits=[WINDOW, frames.NO_LIMIT])
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, WINDOW)
    until(lambda: blocked_in_write(pid), "the writer to be held back")
    assert len(output(spec)) == WINDOW
    # A tiny step is a step.
    agent.send(frames.LIMIT, 1, frames.STDOUT, at=WINDOW + 1)
    agent.wait_output(1, frames.STDOUT, WINDOW + 1)
    # An older, lower limit that comes late takes nothing back.
    agent.send(frames.LIMIT, 1, frames.STDOUT, at=10)
    agent.send(frames.LIMIT, 1, frames.STDOUT, at=2 * WINDOW)
    agent.wait_output(1, frames.STDOUT, 2 * WINDOW)
    until(lambda: blocked_in_write(pid), "the writer to be held back again")
    assert len(output(spec)) == 2 * WINDOW
    assert 1 not in agent.ends
    agent.send(frames.LIMIT, 1, frames.STDOUT, at=frames.NO_LIMIT)
    assert agent.wait_end(1)["stdout"] == total
    assert len(output(spec)) == total


def test_the_streams_are_held_back_each_on_its_own(keeper: KeeperProcess, agent: BareAgent) -> None:
    script = "head -c 1000000 /dev/zero; head -c 1000000 /dev/zero >&2; echo done >&2"
    spec = keeper.shell(script, limits=[frames.NO_LIMIT, 10])
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 1_000_000)
    agent.wait_output(1, frames.STDERR, 10)
    assert len(output(spec, frames.STDERR)) == 10
    agent.send(frames.LIMIT, 1, frames.STDERR, at=frames.NO_LIMIT)
    end = agent.wait_end(1)
    assert (end["stdout"], end["stderr"]) == (1_000_000, 1_000_005)


def test_an_end_does_not_wait_for_a_reader(keeper: KeeperProcess, agent: BareAgent) -> None:
    """What the pipe still holds then is bounded, and has room in the spool."""
    spec = keeper.shell("echo 0123456789; read line; echo over", limits=[4, frames.NO_LIMIT])
    agent.spawn(1, spec)
    agent.wait_started(1)
    agent.wait_output(1, frames.STDOUT, 4)
    agent.spawn(2, keeper.spec("true"))
    agent.wait_end(2)
    assert output(spec) == b"0123"
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["stdout"] == 16
    assert output(spec) == b"0123456789\nover\n"


def test_a_reader_that_goes_gives_the_writer_a_broken_pipe(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    # `yes` is held back when its reader goes.
    spec = keeper.spec("yes", limits=[WINDOW, frames.NO_LIMIT])
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, WINDOW)
    agent.send(frames.CLOSE, 1, frames.STDOUT)
    assert agent.wait_end(1)["status"] == signal.SIGPIPE
    # And one that only writes afterwards, and lives on to say so.
    spec = keeper.shell("read line; cat /etc/passwd; echo $? >&2")
    agent.spawn(2, spec)
    agent.wait_started(2)
    for _ in range(2):
        agent.send(frames.CLOSE, 2, frames.STDOUT)
    agent.send(frames.DATA, 2, data=b"typed\n")
    assert agent.wait_end(2)["stdout"] == 0
    assert int(output(spec, frames.STDERR)) == 128 + signal.SIGPIPE


def test_an_end_comes_after_all_output_is_spooled(
    keeper: KeeperProcess, agent: BareAgent, seed: int
) -> None:
    """Told lengths are what is there, for many commands that end at once."""
    chosen = random.Random(seed)
    sizes = {attempt: chosen.randrange(0, 300_000) for attempt in range(1, 31)}
    specs = {}
    for attempt, size in sizes.items():
        script = f"head -c {size} /dev/zero; head -c {size // 3} /dev/zero >&2"
        specs[attempt] = keeper.shell(script)
        agent.spawn(attempt, specs[attempt])
    for attempt, size in sizes.items():
        end = agent.wait_end(attempt)
        assert (end["stdout"], end["stderr"]) == (size, size // 3)
        assert len(output(specs[attempt])) == size
        assert len(output(specs[attempt], frames.STDERR)) == size // 3


def test_binary_output_is_kept_as_it_is(
    keeper: KeeperProcess, agent: BareAgent, seed: int, tmp_path: Path
) -> None:
    content = random.Random(seed).randbytes(3 * MIB) + bytes(range(256))
    (tmp_path / "content").write_bytes(content)
    spec = keeper.spec("cat", str(tmp_path / "content"))
    agent.spawn(1, spec)
    assert agent.wait_end(1)["stdout"] == len(content)
    assert output(spec) == content


def test_one_output_keeps_the_order_of_both_streams(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    spec = keeper.shell("echo 1; echo 2 >&2; echo 3; echo 4 >&2", one_output=True)
    agent.spawn(1, spec)
    end = agent.wait_end(1)
    assert (end["stdout"], end["stderr"]) == (8, 0)
    assert output(spec) == b"1\n2\n3\n4\n"


def test_an_unread_command_runs_freely_and_what_is_kept_is_bounded(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    before = resident_bytes(keeper.process.pid) or 0
    spec = keeper.spec("head", "-c", str(100 * MIB), "/dev/zero", quota_bytes=MIB)
    agent.spawn(1, spec)
    assert agent.wait_end(1)["stdout"] == 100 * MIB
    kept = sum(
        file.stat().st_size
        for file in Path(os.fsdecode(spec["folder"])).iterdir()
        if file.name.startswith("stdout")
    )
    assert MIB * 7 // 8 <= kept <= MIB
    assert (resident_bytes(keeper.process.pid) or 0) - before < 8 * MIB


def test_an_agent_that_does_not_listen_costs_no_memory(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    before = resident_bytes(keeper.process.pid) or 0
    spec = keeper.shell("i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done")
    agent.spawn(1, spec)
    # Nothing is received meanwhile.
    until(lambda: output(spec).endswith(b"\n19999\n"))
    assert (resident_bytes(keeper.process.pid) or 0) - before < 4 * MIB
    assert agent.wait_end(1)["stdout"] == len(output(spec))


def test_who_writes_on_without_end_while_its_command_is_stopped_holds_up_nobody(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    flood = "for i in 1 2 3 4 5 6 7 8; do setsid yes & done"
    spec = keeper.shell(f"{flood}; exec sleep 1000", quota_bytes=MIB)
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 2 * MIB)
    for _ in range(3):
        agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGSTOP})
        agent.until(lambda: (frames.STOPPED, 1) in agent.said)
        agent.said.clear()
        agent.send(frames.SIGNAL, 1, body={"signal": signal.SIGCONT})
        agent.until(lambda: (frames.CONTINUED, 1) in agent.said)
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["status"] == 0
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    assert agent.wait_end(1)["why"] == "cancel"


def test_an_outsider_who_writes_on_without_end_keeps_no_task_from_its_end(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    if keeper.isolation is not None:
        pytest.skip("isolated tasks see no stream of each other's")
    spec = keeper.spec("cat", quota_bytes=MIB)
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    flood = f"for i in 1 2 3 4 5 6 7 8; do yes >/proc/{pid}/fd/1 2>/dev/null & done; wait"
    agent.spawn(2, keeper.shell(flood))
    agent.wait_output(1, frames.STDOUT, 2 * MIB)
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0
    assert agent.wait_end(2)["status"] == 0


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_umask_is_the_commands_and_not_the_spools(
    keeper: KeeperProcess, agent: BareAgent, tmp_path: Path, umask: int
) -> None:
    spec = keeper.shell(f"umask; : > {tmp_path}/made; echo err >&2", umask=umask, quota_bytes=32)
    agent.spawn(1, spec)
    agent.wait_end(1)
    assert int(output(spec), 8) == umask
    assert (tmp_path / "made").stat().st_mode & 0o777 == 0o666 & ~umask
    files = list(Path(os.fsdecode(spec["folder"])).iterdir())
    assert {"stdout", "stderr"} <= {file.name for file in files}
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
    assert Path(os.fsdecode(spec["folder"])).stat().st_mode & 0o777 == 0o700

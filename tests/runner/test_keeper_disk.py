"""A full disk under a keeper: writers wait, nothing is lost, and it goes on when there is room."""

import hashlib
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent, output
from tests.runner.keeper_process import KeeperProcess
from tests.small_disk import fill, make_room, small_disk
from tests.waiting import until, wait_gone
from updraft.runner.keeper.processes import descendants
from updraft.wire import frames

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", kib=4096) as disk:
        yield disk


@pytest.fixture
def on_disk(disk: Path) -> Iterator[KeeperProcess]:
    """A keeper whose folder is on the small disk."""
    keeper = KeeperProcess(disk / "runner")
    try:
        yield keeper
    finally:
        keeper.end()


def limit_files(keeper: KeeperProcess, limit_bytes: int) -> None:
    """Let no file that the keeper itself writes grow over a limit; its idle leaders are exempt."""
    hard = resource.prlimit(keeper.process.pid, resource.RLIMIT_FSIZE)[1]
    resource.prlimit(keeper.process.pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))


def write_content(folder: Path, seed: int, size: int) -> bytes:
    content = random.Random(seed).randbytes(size)
    (folder / "content").write_bytes(content)
    return content


def test_a_writer_waits_for_room_and_all_of_it_arrives(
    keeper: KeeperProcess, agent: BareAgent, seed: int, tmp_path: Path
) -> None:
    content = write_content(tmp_path, seed, 3 * MIB)
    agent.spawn(9, keeper.spec("cat"))
    agent.wait_started(9)
    until(lambda: len(keeper.leaders()) == 3)
    limit_files(keeper, 300_000)
    spec = keeper.spec("cat", str(tmp_path / "content"))
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 300_000)
    # It is held back, and the others are not.
    agent.send(frames.DATA, 9, data=b"typed\n")
    agent.wait_output(9, frames.STDOUT, 6)
    assert 1 not in agent.ends
    assert output(spec) == content[:300_000]
    limit_files(keeper, 1 * MIB)
    agent.wait_output(1, frames.STDOUT, 1 * MIB)
    limit_files(keeper, resource.RLIM_INFINITY)
    assert agent.wait_end(1)["stdout"] == len(content)
    assert output(spec) == content


def test_an_end_waits_until_the_last_bytes_are_stored(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    until(lambda: len(keeper.leaders()) == 2)
    limit_files(keeper, 10)
    spec = keeper.shell("echo 0123456789; echo 9876543210 >&2")
    agent.spawn(1, spec)
    pid = agent.wait_started(1)
    wait_gone(pid)
    agent.wait_output(1, frames.STDOUT, 10)
    newer = keeper.connect()
    assert newer.attempts[1]["end"] is None
    limit_files(keeper, resource.RLIM_INFINITY)
    end = newer.wait_end(1)
    assert (end["status"], end["stdout"], end["stderr"]) == (0, 11, 11)
    assert output(spec, frames.STDERR) == b"9876543210\n"


def test_a_leader_that_is_killed_while_its_task_waits_for_room_is_no_loss(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    until(lambda: len(keeper.leaders()) == 2)
    limit_files(keeper, 10)
    agent.spawn(1, keeper.shell("echo 0123456789; read x"))
    leader = keeper.leader_of(agent.wait_started(1))
    agent.wait_output(1, frames.STDOUT, 10)
    agent.send(frames.EOF, 1, at=0)
    until(lambda: not descendants(leader), "its task to end")
    os.kill(leader, signal.SIGKILL)
    wait_gone(leader)
    limit_files(keeper, resource.RLIM_INFINITY)
    assert agent.wait_end(1)["stdout"] == 11
    agent.spawn(2, keeper.spec("true"))
    assert agent.wait_end(2)["status"] == 0


def test_who_waits_for_room_can_be_cancelled(keeper: KeeperProcess, agent: BareAgent) -> None:
    until(lambda: len(keeper.leaders()) == 2)
    limit_files(keeper, 1000)
    spec = keeper.spec("yes")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 1000)
    pid = agent.wait_started(1)
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    wait_gone(pid)
    limit_files(keeper, resource.RLIM_INFINITY)
    end = agent.wait_end(1)
    assert end["why"] == "cancel"
    assert end["stdout"] == len(output(spec)) >= 1000
    assert output(spec) == (b"y\n" * len(output(spec)))[: len(output(spec))]


def test_bytes_that_were_read_are_stored_even_if_their_reader_goes(
    keeper: KeeperProcess, agent: BareAgent
) -> None:
    until(lambda: len(keeper.leaders()) == 2)
    limit_files(keeper, 4)
    spec = keeper.shell("echo 0123456789; exec sleep 1000")
    agent.spawn(1, spec)
    agent.wait_output(1, frames.STDOUT, 4)
    agent.send(frames.CLOSE, 1, frames.STDOUT)
    agent.send(frames.KILL, 1, body={"why": "cancel", "grace_ms": 0})
    wait_gone(agent.wait_started(1))
    limit_files(keeper, resource.RLIM_INFINITY)
    assert agent.wait_end(1)["stdout"] == 11
    assert output(spec) == b"0123456789\n"


@pytest.mark.root
def test_a_disk_that_is_really_full_holds_writers_back(
    on_disk: KeeperProcess, disk: Path, seed: int, tmp_path: Path
) -> None:
    content = write_content(tmp_path, seed, 2 * MIB)
    agent = on_disk.connect()
    spec = on_disk.shell(f"read line; cat {tmp_path}/content; echo done >&2")
    agent.spawn(1, spec)
    agent.spawn(2, on_disk.shell("cat; echo end >&2"))
    agent.wait_started(1)
    agent.wait_started(2)
    fill(disk)
    agent.send(frames.DATA, 1, data=b"go\n")
    agent.send(frames.DATA, 2, data=b"typed\n")
    agent.send(frames.EOF, 2, at=6)
    # An attempt that cannot be recorded does not start.
    refused = on_disk.spec("touch", str(tmp_path / "touched"))
    agent.spawn(3, refused)
    end = agent.wait_end(3)
    assert end["refused"] == "start"
    assert "No space left" in end["message"]
    assert not (tmp_path / "touched").exists()
    assert not {1, 2} & set(agent.ends)
    make_room(disk)
    assert agent.wait_end(1)["stdout"] == len(content)
    assert hashlib.sha256(output(spec)).digest() == hashlib.sha256(content).digest()
    assert output(spec, frames.STDERR) == b"done\n"
    assert agent.wait_end(2)["stdout"] == 6
    agent.spawn(4, on_disk.spec("true"))
    assert agent.wait_end(4)["status"] == 0


@pytest.mark.root
def test_a_keeper_starts_on_a_full_disk_and_tells_what_it_finds(
    on_disk: KeeperProcess, disk: Path
) -> None:
    agent = on_disk.connect()
    agent.spawn(1, on_disk.shell("echo ended; exit 3"))
    agent.spawn(2, on_disk.shell("echo running; exec sleep 1000"))
    end = agent.wait_end(1)
    agent.wait_output(2, frames.STDOUT, 8)
    for pid in on_disk.kill():
        wait_gone(pid)
    fill(disk)
    on_disk.start()
    newer = on_disk.connect()
    assert newer.attempts[1]["end"] == end
    assert "lost" in newer.attempts[2]["end"]
    assert newer.attempts[2]["end"]["stdout"] == 8
    make_room(disk)
    newer.spawn(3, on_disk.spec("true"))
    assert newer.wait_end(3)["status"] == 0


@pytest.mark.root
def test_an_end_that_finds_no_room_is_told_all_the_same(on_disk: KeeperProcess, disk: Path) -> None:
    agent = on_disk.connect()
    agent.spawn(1, on_disk.spec("cat"))
    agent.wait_started(1)
    fill(disk)
    record = on_disk.folder / "attempts" / "1"
    # Its record is on a block with room; take that, too.
    with record.open("ab") as file:
        file.write(bytes(4096 - record.stat().st_size))
    agent.send(frames.EOF, 1, at=0)
    assert agent.wait_end(1)["status"] == 0
    assert record.stat().st_size == 4096

"""A full disk under a crew: its tasks wait, nothing is lost, and its notes stay true."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.runner.bare_agent import BareAgent
from tests.runner.crews import FIRST, PlayedCrew, kill, workers
from tests.runner.keeper_process import KeeperProcess
from tests.runner.test_keeper_disk import write_content
from tests.runner.users import ALICE, owner
from tests.small_disk import fill, limited_file_size, make_room, small_disk
from tests.waiting import wait_gone
from updraft.runner.keeper import journal
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


@pytest.mark.root
def test_a_crew_on_a_full_disk_waits_and_all_of_its_output_arrives(
    on_disk: KeeperProcess, disk: Path, seed: int, tmp_path: Path
) -> None:
    content = write_content(tmp_path, seed, 2 * MIB)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    agent = on_disk.connect()
    crew = PlayedCrew(on_disk, f"read x <{gate}; cat {tmp_path}/content; echo done >&2")
    crew.open(agent)
    crew.feed(agent, [0])
    agent.wait_started(FIRST)
    fill(disk)
    gate.write_text("go\n")
    while agent.receive(0.5):
        pass
    assert FIRST not in agent.ends
    make_room(disk)
    end = agent.wait_end(FIRST)
    assert (end["status"], end["stdout"], end["stderr"]) == (0, len(content), 5)
    assert crew.output(0) == content


@pytest.mark.root
def test_a_task_that_ends_on_a_full_disk_is_not_lost(
    on_disk: KeeperProcess, disk: Path, tmp_path: Path
) -> None:
    """Its process is gone, and its last words wait in the pipe."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    agent = on_disk.connect()
    crew = PlayedCrew(on_disk, f"read x <{gate}; echo last; echo words >&2; exit 3")
    crew.open(agent)
    crew.feed(agent, [0])
    pid = agent.wait_started(FIRST)
    found = workers(on_disk)
    fill(disk)
    gate.write_text("go\n")
    wait_gone(pid)
    while agent.receive(0.5):
        pass
    assert FIRST not in agent.ends
    make_room(disk)
    end = agent.wait_end(FIRST)
    assert os.waitstatus_to_exitcode(end["status"]) == 3
    assert (crew.output(0), crew.output(0, frames.STDERR)) == (b"last\n", b"words\n")
    assert workers(on_disk) == found


@pytest.mark.root
def test_what_cannot_be_noted_does_not_start(
    on_disk: KeeperProcess, disk: Path, tmp_path: Path
) -> None:
    agent = on_disk.connect()
    crew = PlayedCrew(on_disk, f"echo x >>{tmp_path}/log")
    crew.run(agent, 1)
    fill(disk)
    for notes in (on_disk.folder / "crews").iterdir():
        with notes.open("ab") as file:  # its last block has room
            file.write(bytes(-notes.stat().st_size % 4096))
    crew.feed(agent, [1])
    end = agent.wait_end(FIRST + 1)
    assert (end["refused"], end["errno"]) == ("start", 28)
    assert (tmp_path / "log").read_text() == "x\n"
    make_room(disk)
    crew.feed(agent, [2])
    assert agent.wait_end(FIRST + 2)["status"] == 0


def test_notes_without_room_for_their_other_side_stay_what_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = str(tmp_path / "notes")
    notes = journal.Journal(path, {"crew": 1, "job": "j", "folder": b"f"})
    notes.note(journal.start_note(5, 0, 1))
    monkeypatch.setattr(journal, "_FULL_BYTES", 1)
    with limited_file_size(0):
        for _ in range(3):
            with pytest.raises(OSError, match="too large"):
                notes.note(journal.start_note(6, 1, 1))
    assert journal.read_both(path)[1] == {5: (0, 1, None)}
    notes.note(journal.start_note(7, 2, 1))
    assert set(journal.read_both(path)[1]) == {5, 7}


@pytest.mark.root
def test_isolated_tasks_have_leaders_and_their_owners_rights(
    isolating: None, tmp_path: Path
) -> None:
    keeper = KeeperProcess(tmp_path / "runner", isolation=owner(ALICE, tmp_path / "place"))
    try:
        agent = keeper.connect()
        crew = PlayedCrew(keeper, "id -u; echo $UPDRAFT_TASK_INDEX", 2, fallback_directory=False)
        assert {end.get("status") for end in crew.run(agent, 5)} == {0}
        assert [crew.output(n) for n in range(5)] == [b"%d\n%d\n" % (ALICE, n) for n in range(5)]
        assert workers(keeper) == []
    finally:
        keeper.end()


@pytest.mark.root
def test_a_shared_runner_starts_no_crew_that_does_not_say_whose_it_is(tmp_path: Path) -> None:
    keeper = KeeperProcess(tmp_path / "runner", shared=True)
    try:
        agent = keeper.connect()
        crew = PlayedCrew(keeper, f"touch {tmp_path}/touched", 2)
        ends = crew.run(agent, 5)
        assert {end["refused"] for end in ends} == {"start"}
        assert not (tmp_path / "touched").exists()
    finally:
        keeper.end()


def test_a_stopped_worker_holds_up_nobody_for_ever(keeper: KeeperProcess, agent: BareAgent) -> None:
    crew = PlayedCrew(keeper, "exec sleep 1000")
    crew.open(agent)
    crew.feed(agent, range(2))
    agent.wait_started(FIRST)
    (worker,) = workers(keeper)
    os.kill(worker, signal.SIGSTOP)
    for _ in range(5000):
        agent.send(frames.SIGNAL, FIRST, body={"signal": 0})
    agent.until(lambda: FIRST in agent.ends, 30)
    assert "lost" in agent.ends[FIRST]
    agent.wait_started(FIRST + 1)
    kill(agent, FIRST + 1)
    agent.wait_end(FIRST + 1)

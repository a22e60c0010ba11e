"""Runners that cannot be reached: who waits for whom, who gives up on whom, and what is taken."""

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.team.conftest import ALICE, CARETAKER
from tests.team.team import Person, Team, TeamRunner, a_team, processes_of, wait_for_line
from tests.waiting import until

LOST_SECONDS = 4.0
TELLS = """
echo begin $UPDRAFT_ATTEMPT >>"$1"
echo "attempt $UPDRAFT_ATTEMPT"
until [ -e "$1.go" ]; do sleep 0.05; done
echo end $UPDRAFT_ATTEMPT >>"$1"
echo "end of attempt $UPDRAFT_ATTEMPT"
exit $((40 + $UPDRAFT_ATTEMPT))
"""


@pytest.fixture(scope="module")
def hasty() -> Iterator[Team]:
    """A server that soon gives up on a runner: two in one pool, one with a clock of its own."""
    with a_team(suspect_after="2s", lost_after=f"{LOST_SECONDS:g}s") as team:
        team.person("alice", ALICE, team.network.host("desk"))
        for name in ("one", "two"):
            team.runner(team.network.host(name, clock=name == "two"), uid=CARETAKER, serves="alice")
        team.wait_ready()
        yield team


@pytest.fixture
def alice(hasty: Team) -> Iterator[Person]:
    """Alice, with nothing left over from the test before."""
    yield hasty.people["alice"]
    for host in hasty.network:
        host.link.heal()
    hasty.wait_ready()


def told(hasty: Team, name: str) -> str:
    """A file that tasks write to, on whichever machine: they share their files."""
    path = hasty.folder / f"told-{name}"
    path.touch()
    os.chown(path, CARETAKER, CARETAKER)
    return str(path)


def lines_of(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def runner_of(hasty: Team, alice: Person, job: str) -> TeamRunner:
    shown = json.loads(alice.said("updraft", "job", "show", "--json", job))
    return hasty.runners[shown["attempts"][-1]["runner"]]


def attempts_of(alice: Person, job: str) -> list[dict[str, str]]:
    shown = json.loads(alice.said("updraft", "job", "show", "--json", job))
    found: list[dict[str, str]] = shown["attempts"]
    return found


def go(path: str) -> None:
    Path(f"{path}.go").touch()


def test_a_lost_runners_job_is_tried_again_and_the_stale_attempt_is_ended_unheard(
    hasty: Team, alice: Person
) -> None:
    path = told(hasty, "retried")
    job = alice.said("ubatch", "--retries", "1", "--", "sh", "-c", TELLS, "sh", path)
    until(lambda: lines_of(path), "the first attempt")
    cut = runner_of(hasty, alice, job)
    cut.host.link.cut()
    until(lambda: lines_of(path) == ["begin 1", "begin 2"], "the second attempt", 30)
    assert runner_of(hasty, alice, job) is not cut
    stale = tasks_of(hasty, cut)
    assert stale, "the cut runner keeps its task as long as it hears nothing"
    cut.host.link.heal()
    hasty.wait_ready(cut.name)
    until(lambda: not tasks_of(hasty, cut), "the end of the stale attempt")
    go(path)
    assert alice.run("updraft", "job", "wait", job).returncode == 42
    assert lines_of(path) == ["begin 1", "begin 2", "end 2"]
    # What the first wrote before the cut is stored, and told apart; its end never was.
    assert b"end of attempt 1" not in alice.run("updraft", "logs", job).stdout
    first, second = attempts_of(alice, job)
    assert first["state"] == "LOST", first
    assert second["state"] == "ENDED", second


def tasks_of(hasty: Team, runner: TeamRunner) -> list[int]:
    """The tasks that run on a host: those whose network is the host's."""
    wanted = Path(runner.host.namespaces["net"]).stat().st_ino
    found = []
    for pid, words in processes_of(hasty.folder):
        try:
            here = Path(f"/proc/{pid}/ns/net").stat().st_ino == wanted
        except OSError:
            continue
        if here and os.fsencode(TELLS) in words:
            found.append(pid)
    return found


def test_without_retries_the_loss_is_told_as_what_it_is(hasty: Team, alice: Person) -> None:
    path = told(hasty, "failed")
    with alice.popen("urun", "sh", "-c", TELLS, "sh", path) as running:
        wait_for_line(running, b"attempt 1\n")
        listed = alice.said("updraft", "job", "list", "--json")
        job = json.loads(listed)[0]["id"]
        cut = runner_of(hasty, alice, job)
        cut.host.link.cut()
        out, err = running.communicate(timeout=30)
    assert running.returncode == 125
    assert out == b""
    assert f"its runner {cut.name} was not heard of for".encode() in err
    cut.host.link.heal()
    hasty.wait_ready(cut.name)
    until(lambda: not tasks_of(hasty, cut), "the end of the stale attempt")


@pytest.mark.parametrize("way", ["both", "up", "down"])
def test_a_runner_that_comes_back_in_time_keeps_its_tasks(
    hasty: Team, alice: Person, way: str
) -> None:
    path = told(hasty, f"kept-{way}")
    job = alice.said("ubatch", "--", "sh", "-c", TELLS, "sh", path)
    until(lambda: lines_of(path), "its start")
    cut = runner_of(hasty, alice, job)
    cut.host.link.cut(way)  # type: ignore[arg-type]
    until(lambda: hasty.states()[cut.name] == "away", "the server to notice", 10)
    cut.host.link.heal()
    hasty.wait_ready(cut.name)
    go(path)
    assert alice.run("updraft", "job", "wait", job).returncode == 41
    assert alice.said("updraft", "logs", job) == "attempt 1\nend of attempt 1"
    assert lines_of(path) == ["begin 1", "end 1"]


def test_a_silent_runner_gets_no_new_tasks(hasty: Team, alice: Person) -> None:
    """Neither what comes while it is suspect, nor what comes when it is lost."""
    one = hasty.runners["one"]
    one.host.link.cut()
    until(lambda: hasty.states()["one"] == "away", "the server to notice", 10)
    for _ in range(6):
        assert alice.said("urun", "hostname") == "two"
    until(lambda: hasty.states()["one"] == "lost", "the lease to end", 10)
    assert alice.said("urun", "hostname") == "two"


def test_a_server_that_stood_still_loses_nobody(hasty: Team, alice: Person) -> None:
    assert hasty.server is not None
    path = told(hasty, "stopped")
    job = alice.said("ubatch", "--", "sh", "-c", TELLS, "sh", path)
    until(lambda: lines_of(path), "its start")
    hasty.server.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1.5 * LOST_SECONDS)  # the thing itself: a standstill of this length
    finally:
        hasty.server.send_signal(signal.SIGCONT)
    hasty.wait_ready()
    go(path)
    assert alice.run("updraft", "job", "wait", job).returncode == 41
    assert [attempt["state"] for attempt in attempts_of(alice, job)] == ["ENDED"]


@pytest.mark.parametrize("role", ["agent", "keeper"])
def test_a_part_of_a_runner_that_stood_still_loses_no_task(
    hasty: Team, alice: Person, role: str
) -> None:
    path = told(hasty, f"still-{role}")
    job = alice.said("ubatch", "--", "sh", "-c", TELLS, "sh", path)
    until(lambda: lines_of(path), "its start")
    runner = runner_of(hasty, alice, job)
    assert runner.signal(role, signal.SIGSTOP) == 1
    try:
        if role == "agent":
            until(lambda: hasty.states()[runner.name] == "away", "the server to notice", 10)
        else:
            time.sleep(1)
    finally:
        runner.signal(role, signal.SIGCONT)
    hasty.wait_ready()
    go(path)
    assert alice.run("updraft", "job", "wait", job).returncode == 41
    assert lines_of(path) == ["begin 1", "end 1"]


@pytest.mark.parametrize("jump", [7200, -86400], ids=["two-hours-on", "a-day-back"])
def test_a_jump_of_a_runners_clock_changes_nothing(hasty: Team, alice: Person, jump: int) -> None:
    path = told(hasty, f"jump{jump}")
    hasty.network["one"].link.cut()  # so that it runs on the other
    until(lambda: hasty.states()["one"] != "ready", "the server to notice", 10)
    began = time.monotonic()
    job = alice.said("ubatch", "--time", "1h", "--", "sh", "-c", TELLS, "sh", path)
    with alice.popen("urun", "--time", "3s", "sleep", "1000") as limited:
        until(lambda: lines_of(path), "its start")
        hasty.network["two"].clock_offset(jump)
        try:
            assert limited.wait(20) == 124
            assert time.monotonic() - began > 3
            assert hasty.states()["two"] == "ready"
            go(path)
            assert alice.run("updraft", "job", "wait", job).returncode == 41
            assert alice.said("urun", "echo", "more") == "more"
        finally:
            hasty.network["two"].clock_offset(0)
    assert alice.said("updraft", "logs", "--since", "1m", job).endswith("end of attempt 1")
    assert alice.said("updraft", "logs", "--since", "1h", job).startswith("attempt 1")
    shown = json.loads(alice.said("updraft", "job", "show", "--json", job))
    times = [shown["times"][name] for name in ("submitted", "started", "ended")]
    assert times == sorted(times), "all of them are the server's, or go by its clock"

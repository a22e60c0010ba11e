"""Killed processes come back without a user's call, and what ran is told truly."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lifecycle.looking import (
    ENDED,
    another,
    client,
    events,
    is_alive,
    jobs,
    kill,
    last_job,
    only,
    rows,
    wait_state,
)
from tests.waiting import until, wait_gone
from updraft.testing.instance import Instance

ROLES = ("server", "agent", "keeper")
SURVIVORS = ("server", "agent", "keeper")


@contextlib.contextmanager
def job(own: Instance, folder: Path, *flags: str) -> Iterator["Job"]:
    """Run an attached job with a process that left its session; wait until both are there."""
    folder.mkdir()
    left = "echo $$ >left; exec sleep 300"
    escaped = left.replace("$", r"\$")
    script = (
        f'echo "attempt $UPDRAFT_ATTEMPT" >>log; setsid sh -c "{escaped}" & '
        'echo started; echo $$ >"main.$UPDRAFT_ATTEMPT"; exec sleep 300'
    )
    with client(own, *flags, "sh", "-c", script, cwd=folder) as process:
        made = Job(process, folder)
        made.wait_attempt(1)
        yield made


class Job:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.client = process
        self.folder = folder

    def wait_attempt(self, number: int) -> list[int]:
        """Wait until an attempt runs; return its processes."""
        main, left = self.folder / f"main.{number}", self.folder / "left"
        until(lambda: has_line(main) and has_line(left), f"attempt {number}", 30)
        return [int(main.read_text()), int(left.read_text())]

    def end(self) -> tuple[int, str]:
        """Wait for the client's end; return its exit code and what it said."""
        assert self.client.stderr is not None
        code = self.client.wait(30)
        return code, self.client.stderr.read().decode()


def has_line(path: Path) -> bool:
    return path.exists() and path.read_text().endswith("\n")


def all_back(own: Instance, killed: dict[str, int]) -> None:
    """Wait until each role is filled by one process that was not killed."""

    def look() -> bool:
        found = {role: own.processes(role) for role in ROLES}
        return all(len(pids) == 1 and killed.get(role) not in pids for role, pids in found.items())

    until(look, f"{', '.join(killed)} to come back", 30)


@pytest.mark.parametrize("survivor", SURVIVORS)
def test_all_but_one_come_back_by_themselves(survivor: str, running: Instance) -> None:
    killed = {role: only(running, role) for role in ROLES if role != survivor}
    for pid in killed.values():
        kill(pid)
    all_back(running, killed)
    result = running.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout, result.stderr) == (0, b"hi\n", b"")


def test_a_limit_that_is_extended_while_the_agent_is_away_holds(running: Instance) -> None:
    job = running.run("ubatch", "--time", "5s", "sleep", "6").stdout.decode().strip()
    wait_state(running, "RUNNING")
    keeper, agent = only(running, "keeper"), only(running, "agent")
    os.kill(keeper, signal.SIGSTOP)  # so that it starts no other agent
    kill(agent)
    wait_gone(agent)
    extended = running.run("updraft", "job", "extend", job, "1h")
    os.kill(keeper, signal.SIGCONT)
    assert extended.returncode == 0, extended.stderr
    assert running.run("updraft", "job", "wait", job).returncode == 0


@pytest.mark.parametrize("role", ["server", "agent"])
def test_a_job_does_not_notice_a_kill(role: str, running: Instance, tmp_path: Path) -> None:
    script = 'read line; echo "got $line"; read line; echo "got $line"; exit 7'
    with client(running, "-q", "sh", "-c", script) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"one\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"got one\n"
        pid = only(running, role)
        kill(pid)
        another(running, role, pid)
        process.stdin.write(b"two\n")
        process.stdin.flush()
        assert process.stdout.read() == b"got two\n"
        assert process.wait(30) == 7
        assert process.stderr is not None
        assert process.stderr.read() == b""


def test_a_killed_keeper_ends_its_tasks_and_the_job_says_so(
    running: Instance, tmp_path: Path
) -> None:
    with job(running, tmp_path / "job") as ran:
        processes = ran.wait_attempt(1)
        killed = {"keeper": only(running, "keeper")}
        kill(killed["keeper"])
        for pid in processes:
            wait_gone(pid)
        code, said = ran.end()
        assert code == 125
        assert "its keeper was killed" in said
        assert said.count("\n") == 1
        assert ran.client.stdout is not None
        assert ran.client.stdout.read() == b"started\n"
    row = last_job(running)
    assert (row["state"], row["exit_code"]) == ("FAILURE", None)
    assert "its keeper was killed" in row["message"]
    all_back(running, killed)


def test_a_job_whose_keeper_was_killed_is_retried_if_it_asked(
    running: Instance, tmp_path: Path
) -> None:
    with job(running, tmp_path / "job", "--retries", "1") as ran:
        first = ran.wait_attempt(1)
        kill(only(running, "keeper"))
        second = ran.wait_attempt(2)
        assert not any(is_alive(pid) for pid in first)
        kill(only(running, "keeper"))
        code, said = ran.end()
        assert code == 125
        assert "trying again" in said
        assert not any(is_alive(pid) for pid in second)
        assert (ran.folder / "log").read_text() == "attempt 1\nattempt 2\n"
    attempts = rows(running, "SELECT number, state FROM attempts ORDER BY serial")
    assert [(row["number"], row["state"]) for row in attempts][-2:] == [(1, "LOST"), (2, "LOST")]
    kinds = [event["kind"] for event in events(running)][-5:]
    assert kinds == ["IN_QUEUE", "RUNNING", "IN_QUEUE", "RUNNING", "FAILURE"]


def test_a_killed_leader_ends_its_task_and_the_job_says_so(
    running: Instance, tmp_path: Path
) -> None:
    with job(running, tmp_path / "job") as ran:
        main, left = ran.wait_attempt(1)
        leader = parent_of(main)
        assert leader in running.processes("leader")
        keeper = only(running, "keeper")
        kill(leader)
        for pid in (main, left):
            wait_gone(pid)
        code, said = ran.end()
        assert code == 125
        assert "its leader process was killed" in said
    assert only(running, "keeper") == keeper
    assert running.run("urun", "echo", "hi").stdout == b"hi\n"


def test_after_all_are_killed_the_next_call_starts_all_and_tells_of_what_was_lost(
    running: Instance, tmp_path: Path
) -> None:
    lost = running.run("ubatch", "--retries", "0", "sleep", "300").stdout.decode().strip()
    waiting = running.run("ubatch", "--cpus", all_cpus(), "echo", "hi").stdout.decode().strip()
    wait_running(running, lost)
    pid = rows(running, "SELECT pid FROM attempts ORDER BY serial DESC")[0]["pid"]
    for role in ROLES:
        running.kill(role)
    wait_gone(pid)
    until(lambda: not running.processes(), "all to be gone")
    result = running.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert b"started a server" in result.stderr
    code = running.run("updraft", "job", "wait", lost, waiting).returncode
    assert code == 125
    shown = {each["id"]: each for each in jobs(running)}
    assert shown[lost]["state"] == "FAILURE"
    assert "killed" in shown[lost]["message"]
    assert (shown[waiting]["state"], shown[waiting]["exit_code"]) == ("SUCCESS", 0)


def test_a_detached_job_survives_every_server_and_agent(running: Instance, tmp_path: Path) -> None:
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done; echo done; exit 3"
    submitted = running.run("ubatch", "sh", "-c", script).stdout.decode().strip()
    wait_running(running, submitted)
    for _ in range(2):
        killed = {role: only(running, role) for role in ("server", "agent")}
        for pid in killed.values():
            kill(pid)
        all_back(running, killed)
    (tmp_path / "go").touch()
    row = wait_state(running, *ENDED)
    assert (row["state"], row["exit_code"]) == ("SUCCESS", 3)
    assert running.run("updraft", "logs", submitted).stdout == b"done\n"


def test_nothing_is_brought_back_for_a_stopped_instance(running: Instance) -> None:
    assert running.run("updraft", "stop").returncode == 0
    assert running.processes() == []
    result = running.run("updraft", "status", "--json")
    assert running.processes() == []
    assert result.returncode != 0 or json.loads(result.stdout)


# -- looking


def parent_of(pid: int) -> int:
    text = Path(f"/proc/{pid}/stat").read_bytes()
    return int(text[text.rindex(b")") + 2 :].split()[1])


def wait_running(own: Instance, submitted: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        found = rows(own, "SELECT * FROM jobs WHERE id = ? AND state = 'RUNNING'", submitted)
        return found[0] if found else None

    found = until(look, f"job {submitted} to run")
    assert found is not None
    return found


def all_cpus() -> str:
    return str(len(os.sched_getaffinity(0)))

"""`updraft stop`, and the end that an idle instance makes of itself."""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.lifecycle.looking import (
    another,
    client,
    is_alive,
    jobs,
    kept,
    kill,
    last_job,
    only,
    wait_state,
)
from tests.waiting import until, wait_gone
from updraft.testing.instance import Instance


def stop(own: Instance, *flags: str) -> subprocess.CompletedProcess[bytes]:
    return own.run("updraft", "stop", *flags, timeout=60)


@contextlib.contextmanager
def drain(own: Instance) -> Iterator[subprocess.Popen[bytes]]:
    """Let ``updraft stop --drain`` run beside a ``with`` block."""
    command = own.command("updraft", "stop", "--drain")
    process = subprocess.Popen(command, env=own.environment, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def nothing_is_left(own: Instance) -> None:
    """Everything is gone by the time that `stop` returns, and stays gone."""
    assert own.processes() == []
    for name in ("server.lock", "runner/keeper.lock"):
        with (own.state / name).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_stop_ends_everything_and_again_says_that_nothing_runs(running: Instance) -> None:
    pids = running.processes()
    assert len(pids) >= 3
    assert stop(running).returncode == 0
    nothing_is_left(running)
    assert not any(is_alive(pid) for pid in pids)
    again = stop(running)
    assert again.returncode == 0
    assert b"not running" in again.stderr
    nothing_is_left(running)


def test_stop_before_the_first_start_makes_nothing(own: Instance) -> None:
    result = stop(own)
    assert result.returncode == 0
    assert own.processes() == []
    assert not (own.home / "state").exists()


def test_stop_is_refused_in_one_line_while_jobs_live(running: Instance) -> None:
    with client(running, "sleep", "300") as process:
        wait_state(running, "RUNNING")
        before = kept(running)
        result = stop(running)
        assert result.returncode == 1
        assert result.stdout == b""
        assert result.stderr.count(b"\n") == 1
        assert b"--drain" in result.stderr
        assert b"--cancel" in result.stderr
        assert kept(running) == before
        assert last_job(running)["state"] == "RUNNING"
        assert running.run("urun", "echo", "still here").stdout == b"still here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 143
    assert stop(running).returncode == 0
    nothing_is_left(running)


def test_stop_with_drain_waits_for_what_runs_and_what_waits(
    running: Instance, tmp_path: Path
) -> None:
    whole = str(len(os.sched_getaffinity(0)))
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    for _ in range(2):  # the second waits for the first
        assert running.run("ubatch", "--cpus", whole, "sh", "-c", script).returncode == 0
    with drain(running) as draining:
        refused = until(lambda: refusal(running), "new jobs to be refused")
        assert b"stopping" in refused
        assert draining.poll() is None
        assert only(running, "server")
        (tmp_path / "go").touch()
        assert draining.wait(30) == 0
    assert {row["state"] for row in jobs(running)} == {"SUCCESS"}
    nothing_is_left(running)


def test_stop_with_cancel_ends_all_jobs_and_tells_attached_clients(running: Instance) -> None:
    whole = str(len(os.sched_getaffinity(0)))
    with (
        client(running, "--cpus", whole, "sleep", "300") as first,
        client(running, "--cpus", whole, "sleep", "300") as second,
    ):
        until(lambda: len(jobs(running)) == 3, "both jobs")
        wait_for_state(running, 1, "RUNNING")
        assert stop(running, "--cancel").returncode == 0
        for process in (first, second):
            _, said = process.communicate(timeout=20)
            assert process.returncode == 143
            assert b"cancelled" in said.splitlines()[-1]
    assert [row["state"] for row in jobs(running)[1:]] == ["CANCELLED", "CANCELLED"]
    nothing_is_left(running)


def test_a_slow_reader_has_all_output_before_a_drained_server_ends(running: Instance) -> None:
    with client(running, "-q", "seq", "3000000", stderr=None) as reader:
        assert reader.stdout is not None
        first = reader.stdout.read(4096)
        with drain(running) as draining:
            until(lambda: refusal(running), "the server to drain")
            rest = reader.stdout.read()
            assert reader.wait(20) == 0
            assert first + rest == b"".join(b"%d\n" % number for number in range(1, 3000001))
            assert draining.wait(30) == 0


def test_stop_works_while_the_agent_is_away(running: Instance) -> None:
    agent = only(running, "agent")
    for _ in range(3):  # its keeper waits longer each time before it starts another
        kill(agent)
        agent = another(running, "agent", agent)
    kill(agent)
    assert stop(running).returncode == 0
    nothing_is_left(running)


def test_stop_works_while_the_server_is_away(running: Instance) -> None:
    kill(only(running, "server"))
    result = stop(running)
    assert result.returncode == 0, result.stderr
    nothing_is_left(running)


def test_after_a_stop_a_kill_brings_nothing_back(running: Instance) -> None:
    agent, keeper = only(running, "agent"), only(running, "keeper")
    assert stop(running).returncode == 0
    for pid in (agent, keeper):
        wait_gone(pid)
    nothing_is_left(running)


def test_status_of_what_was_stopped_starts_nothing(running: Instance) -> None:
    assert stop(running).returncode == 0
    result = running.run("updraft", "status", "--json")
    assert running.processes() == []
    if result.returncode == 0:
        assert json.loads(result.stdout)["server"] is None


# -- idle


@pytest.fixture
def idle_after(own: Instance) -> Callable[[str], Instance]:
    """An instance that ends itself when it was idle for so long; it runs."""

    def begin(duration: str) -> Instance:
        path = own.home / "config" / "updraft.toml"
        path.parent.mkdir()
        path.write_text(f'[server]\nidle_stop = "{duration}"\n')
        assert own.run("urun", "-q", "true").returncode == 0
        return own

    return begin


def test_an_idle_instance_ends_itself_and_the_next_call_starts_it(
    idle_after: Callable[[str], Instance],
) -> None:
    own = idle_after("300ms")
    until(lambda: not own.processes(), "all to end")
    assert not list(own.home.glob("state/*/server.sock"))
    result = own.run("urun", "echo", "hi")
    assert (result.returncode, result.stdout) == (0, b"hi\n")
    assert b"started a server" in result.stderr
    until(lambda: not own.processes(), "all to end again")


def test_a_running_job_keeps_its_instance(
    idle_after: Callable[[str], Instance], tmp_path: Path
) -> None:
    own = idle_after("300ms")
    server = only(own, "server")
    script = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
    assert own.run("ubatch", "sh", "-c", script).returncode == 0
    began = time.monotonic()
    until(lambda: time.monotonic() - began > 1.0, "longer than the idle time")
    assert only(own, "server") == server
    (tmp_path / "go").touch()
    until(lambda: not own.processes(), "all to end")
    assert last_job(own)["state"] == "SUCCESS"


def test_calls_during_the_closing_all_work(idle_after: Callable[[str], Instance]) -> None:
    """Each call comes about when the server closes its door after the one before."""
    own = idle_after("100ms")
    starts = 0
    for number in range(8):
        pause = 0.06 + 0.02 * number  # around the closing, on either side of it
        time.sleep(pause)
        result = own.run("urun", "echo", str(number))
        assert (result.returncode, result.stdout) == (0, b"%d\n" % number), result.stderr
        starts += b"started a server" in result.stderr
    assert starts >= 2
    assert len(own.processes("server")) <= 1
    until(lambda: not own.processes(), "all to end")


def test_a_killed_server_that_was_about_to_close_leaves_nothing(
    idle_after: Callable[[str], Instance],
) -> None:
    own = idle_after("200ms")
    kill(only(own, "server"))
    until(lambda: not own.processes(), "the next server to have been idle, and all to end")


# -- looking


def refusal(own: Instance) -> bytes:
    """Return what a new job is told while the server is draining, nothing before."""
    result = own.run("ubatch", "--cpus", "0", "true")
    return result.stderr if result.returncode == 125 else b""


def wait_for_state(own: Instance, index: int, state: str) -> None:
    until(lambda: jobs(own)[index]["state"] == state, f"job {index} to be {state}")

"""Clients that go away, come back, read slowly or type while everything is killed."""

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fidelity.conversation import Setting
from tests.fidelity.terminal import Terminal
from tests.lifecycle.looking import (
    another,
    client,
    is_alive,
    jobs,
    kill,
    last_job,
    only,
    wait_state,
)
from tests.waiting import until, wait_gone
from updraft.testing.instance import Instance
from updraft.wire import frames
from updraft.wire.sockets import connect_unix

WHOLE = str(len(os.sched_getaffinity(0)))
PATCHED_SERVER = """
import sys
from updraft.server import __main__, services
from updraft.server.services import attendance
attendance.SERVER_RESTART_WINDOW_SECONDS = 1.0
sys.exit(__main__.main([]))
"""


def serves(own: Instance) -> bool:
    """Whether there is a server that takes connections."""
    try:
        connect_unix(str(own.state / "server.sock")).close()
    except OSError:
        return False
    return True


def waiting_script(folder: Path, first: str | None = None) -> str:
    """A command that tells of its start, and of a hangup, and ends when it is told to."""
    first = first or f"trap 'echo hangup >{folder}/hangup; exit 9' HUP"
    return (
        f"{first}; echo $$ >{folder}/pid; echo started; "
        f"while [ ! -e {folder}/go ]; do sleep 0.02; done; echo over; exit 3"
    )


def has_pid(folder: Path) -> bool:
    path = folder / "pid"
    return path.exists() and path.read_text().endswith("\n")


def never(look: object, seconds: float, what: str) -> None:
    """Watch for a while that something does not happen."""
    assert callable(look)
    began = time.monotonic()
    until(lambda: time.monotonic() - began > seconds or look(), what)
    assert not look(), what


# -- a client that is killed


def test_a_killed_client_hangs_up_at_once(running: Instance, tmp_path: Path) -> None:
    with client(running, "sh", "-c", waiting_script(tmp_path)) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        process.kill()
        until((tmp_path / "hangup").exists, "the hangup")
    row = wait_state(running, "SUCCESS")
    assert row["exit_code"] == 9


def test_a_killed_client_hangs_up_its_terminal(running: Instance, tmp_path: Path) -> None:
    environment = {os.fsencode(k): os.fsencode(v) for k, v in running.environment.items()}
    command = running.command("urun", "sh", "-c", waiting_script(tmp_path))
    with Terminal(command, Setting(tmp_path, environment, 30.0)) as terminal:
        terminal.expect(b"started")
        os.kill(terminal.pid, signal.SIGKILL)
        until((tmp_path / "hangup").exists, "the hangup")
    assert wait_state(running, "SUCCESS")["exit_code"] == 9


def test_a_client_that_dies_while_the_agent_is_away_hangs_up(
    running: Instance, tmp_path: Path
) -> None:
    with client(running, "sh", "-c", waiting_script(tmp_path)) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        agent = only(running, "agent")
        os.kill(agent, signal.SIGSTOP)
        kill(agent)
        process.kill()
        until((tmp_path / "hangup").exists, "the hangup")


def test_a_command_that_ignores_hangups_goes_on_without_its_client(
    running: Instance, tmp_path: Path
) -> None:
    """As under nohup: nothing else ends it."""
    script = waiting_script(tmp_path, "trap '' HUP")
    with client(running, "sh", "-c", script) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        process.kill()
        process.wait()
        (tmp_path / "go").touch()
        assert wait_state(running, "SUCCESS")["exit_code"] == 3


def test_a_queued_job_whose_client_goes_is_cancelled(running: Instance, tmp_path: Path) -> None:
    with client(running, "--cpus", WHOLE, "sh", "-c", waiting_script(tmp_path)) as first:
        until(lambda: has_pid(tmp_path), "the command to start")
        with client(running, "--cpus", WHOLE, "touch", str(tmp_path / "ran")) as second:
            until(lambda: len(jobs(running)) == 3, "the second job")
            second.kill()
            row = wait_state(running, "CANCELLED")
        assert "client went away" in row["message"]
        assert row["started_ns"] is None
        (tmp_path / "go").touch()
        assert first.wait(20) == 3
    assert not (tmp_path / "ran").exists()


def test_a_job_that_is_kept_alive_can_be_taken_up_again(running: Instance, tmp_path: Path) -> None:
    script = f'read line; echo "got $line"; {waiting_script(tmp_path)}; '
    with client(running, "--keep-alive", "60s", "sh", "-c", script) as process:
        row = wait_state(running, "RUNNING")
        process.kill()
        process.wait()
        never((tmp_path / "hangup").exists, 0.5, "a hangup")
        attached = subprocess.Popen(
            running.command("updraft", "attach", row["id"]),
            env=running.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert attached.stdin is not None
        attached.stdin.write(b"line\n")
        attached.stdin.flush()
        until(lambda: has_pid(tmp_path), "the command to go on")
        (tmp_path / "go").touch()
        stdout, _ = attached.communicate(timeout=20)
        assert (attached.returncode, stdout) == (3, b"got line\nstarted\nover\n")


def test_a_job_is_kept_alive_only_as_long_as_was_asked(running: Instance, tmp_path: Path) -> None:
    with client(running, "--keep-alive", "600ms", "sh", "-c", waiting_script(tmp_path)) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        process.kill()
        died = time.monotonic()
        until((tmp_path / "hangup").exists, "the hangup")
        assert time.monotonic() - died > 0.5


def flood(folder: Path) -> str:
    """A script that writes more than a client is sent ahead, hears no hangup, and then says so."""
    return f"trap '' HUP; head -c 20000000 /dev/zero; touch {folder}/written"


def wait_held(own: Instance) -> None:
    """Wait until the writer is held back: its output is stored up to what the client may have."""

    def stored() -> int:
        return sum(path.stat().st_size for path in own.home.glob("state/*/logs/*/0.1/stdout*"))

    until(lambda: stored() >= frames.OUTPUT_WINDOW_BYTES, "the writer to be held back")


def test_a_client_that_dies_while_the_agent_is_away_holds_no_writer_back(
    running: Instance, tmp_path: Path
) -> None:
    with client(running, "sh", "-c", flood(tmp_path)) as process:
        wait_held(running)
        keeper, agent = only(running, "keeper"), only(running, "agent")
        os.kill(keeper, signal.SIGSTOP)  # so that it starts no other agent yet
        kill(agent)
        wait_gone(agent)
        process.kill()
        process.wait()
        os.kill(keeper, signal.SIGCONT)
        until((tmp_path / "written").exists, "the writer to go on")
        assert wait_state(running, "SUCCESS")["exit_code"] == 0


def test_a_cancelled_job_ends_although_its_reader_reads_nothing(running: Instance) -> None:
    with client(running, "-q", "seq", "100000000") as process:
        wait_held(running)
        job = last_job(running)["id"]
        assert running.run("updraft", "job", "cancel", job).returncode == 0
        wait_state(running, "CANCELLED", seconds=5)
        assert process.stdout is not None
        shown = process.stdout.read()
        assert process.wait(20) == 143
    lines = b"".join(b"%d\n" % number for number in range(1, 3_000_000))
    assert shown == lines[: len(shown)]
    assert len(shown) > frames.OUTPUT_WINDOW_BYTES


# -- a server that is restarted


@contextlib.contextmanager
def restarted_with_a_short_window(own: Instance) -> Iterator[None]:
    """Kill the server; another one comes that waits for its clients 1 s instead of 30."""
    agent = only(own, "agent")
    os.kill(agent, signal.SIGSTOP)
    server = only(own, "server")
    kill(server)
    wait_gone(server)
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", PATCHED_SERVER],
        env=own.environment,
        stderr=subprocess.DEVNULL,
    )
    try:
        # Not for its socket: the killed one's lies there, and the agent would start a third.
        until(lambda: serves(own), "the server")
        os.kill(agent, signal.SIGCONT)
        yield
    finally:
        process.kill()
        process.wait()
        another(own, "server", server)


def test_a_client_that_does_not_come_back_to_a_new_server_hangs_up_after_its_window(
    running: Instance, tmp_path: Path
) -> None:
    with client(running, "sh", "-c", waiting_script(tmp_path)) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        process.send_signal(signal.SIGSTOP)  # it is there, but does not come
        with restarted_with_a_short_window(running):
            began = time.monotonic()
            until((tmp_path / "hangup").exists, "the hangup")
            assert time.monotonic() - began > 0.3
        process.kill()


def test_a_client_that_does_not_come_back_holds_no_writer_back_after_its_window(
    running: Instance, tmp_path: Path
) -> None:
    with client(running, "sh", "-c", flood(tmp_path)) as process:
        wait_held(running)
        process.send_signal(signal.SIGSTOP)
        with restarted_with_a_short_window(running):
            until((tmp_path / "written").exists, "the writer to go on")
        process.kill()
    assert wait_state(running, "SUCCESS")["exit_code"] == 0


def test_a_client_that_comes_back_to_a_new_server_keeps_its_job(
    running: Instance, tmp_path: Path
) -> None:
    with client(running, "sh", "-c", waiting_script(tmp_path)) as process:
        until(lambda: has_pid(tmp_path), "the command to start")
        with restarted_with_a_short_window(running):
            never((tmp_path / "hangup").exists, 1.5, "a hangup")
            (tmp_path / "go").touch()
            assert process.wait(20) == 3


# -- nothing typed or shown is lost or doubled


class Killer:
    """Kills the server, the agent or both, again and again, until it is told to stop.

    Mostly a server that serves: on a busy machine one that starts would be killed before it does,
    time and again, until clients rightly give up.
    """

    def __init__(self, own: Instance, seed: int) -> None:
        self._own = own
        self._dice = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.kills = 0

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._dice.uniform(0.05, 0.3)):
            starting_too = self._dice.random() < 0.25
            while not (starting_too or serves(self._own) or self._over.is_set()):
                self._over.wait(0.01)
            for role in self._dice.choice([("server",), ("agent",), ("server", "agent")]):
                self.kills += self._own.kill(role)


@pytest.mark.chaos
@pytest.mark.parametrize("pace", ["steady", "flood"])
def test_what_is_typed_arrives_once_and_in_order_whatever_is_killed(
    pace: str, running: Instance, tmp_path: Path, seed: int
) -> None:
    copy = tmp_path / "copy"
    kills = 5
    with client(running, "-q", "sh", "-c", f"cat >{copy}; exit 5") as process:
        assert process.stdin is not None
        sent = bytearray()
        with Killer(running, seed) as killer:
            number = 0
            while killer.kills < kills:
                count = 1 if pace == "steady" else 20_000
                lines = b"".join(b"%d\n" % each for each in range(number, number + count))
                number += count
                process.stdin.write(lines)
                process.stdin.flush()
                sent += lines
                if pace == "steady":
                    time.sleep(0.002)  # as fast as anybody types
        process.stdin.close()
        assert process.wait(60) == 5, process.stderr.read() if process.stderr else b""
    assert copy.read_bytes() == bytes(sent)


@pytest.mark.chaos
def test_what_is_shown_is_complete_for_a_slow_reader_whatever_is_killed(
    running: Instance, seed: int
) -> None:
    last = 1_500_000
    with client(running, "-q", "-I", "sh", "-c", f"seq {last}; echo end >&2; exit 6") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        shown = bytearray()
        with Killer(running, seed) as killer:
            while killer.kills < 5:
                part = os.read(process.stdout.fileno(), 1000)  # never more than is there
                assert part, (len(shown), killer.kills, process.wait(60), process.stderr.read())
                shown += part
                time.sleep(0.001)
        shown += process.stdout.read()
        assert process.wait(60) == 6
        assert process.stderr.read() == b"end\n"
    assert bytes(shown) == b"".join(b"%d\n" % number for number in range(1, last + 1))


# -- clients of odd beginnings


def test_under_nohup_neither_client_nor_command_hears_a_hangup(
    running: Instance, tmp_path: Path
) -> None:
    script = waiting_script(tmp_path, "grep SigIgn /proc/self/status")
    command = ["nohup", *running.command("urun", "sh", "-c", script)]
    with subprocess.Popen(
        command, env=running.environment, stdin=subprocess.DEVNULL, stdout=-1, stderr=-1
    ) as process:
        assert process.stdout is not None
        ignored = int(process.stdout.readline().split()[1], 16)
        assert ignored & 1 << signal.SIGHUP - 1
        until(lambda: has_pid(tmp_path), "the command to start")
        process.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        assert process.wait(20) == 3


def test_a_client_whose_standard_streams_are_closed_runs_its_command(
    running: Instance, tmp_path: Path
) -> None:
    script = f'"$@" sh -c "echo hi >{tmp_path}/out; exit 4" <&- >&- 2>&-'
    result = subprocess.run(
        ["sh", "-c", script, "sh", *running.command("urun")],
        env=running.environment,
        timeout=30,
        check=False,
    )
    assert result.returncode == 4
    assert (tmp_path / "out").read_text() == "hi\n"


def test_in_the_background_of_a_shell_it_is_not_stopped_by_the_terminal(
    running: Instance, tmp_path: Path
) -> None:
    environment = {os.fsencode(k): os.fsencode(v) for k, v in running.environment.items()}
    urun = " ".join(running.command("urun", "-q"))
    script = f"{urun} sh -c 'sleep 0.3; exit 7' & wait $!; echo code $?; jobs; echo end"
    with Terminal(
        ["bash", "-m", "-c", script], Setting(tmp_path, environment, 20.0), typed=b"not for it\n"
    ) as terminal:
        terminal.expect(b"code 7")
        terminal.expect(b"end")
        assert b"Stopped" not in terminal.stdout


def test_brought_to_the_foreground_it_takes_the_keyboard(running: Instance, tmp_path: Path) -> None:
    environment = {os.fsencode(k): os.fsencode(v) for k, v in running.environment.items()}
    urun = " ".join(running.command("urun", "-q"))
    script = (
        f"{urun} sh -c 'echo $$ >pid; read line; echo \"<$line>\"; exit 8' & "
        "while [ ! -s pid ]; do sleep 0.02; done; echo ready; fg %1; echo code $?"
    )
    with Terminal(["bash", "-m", "-c", script], Setting(tmp_path, environment, 20.0)) as terminal:
        terminal.expect(b"ready")
        terminal.send(b"typed\n")
        terminal.expect(b"<typed>")
        terminal.expect(b"code 8")


def test_interrupting_a_client_ends_it_as_locally(running: Instance) -> None:
    with client(running, "sleep", "300") as process:
        row = wait_state(running, "RUNNING")
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130
    assert last_job(running)["id"] == row["id"]
    assert last_job(running)["state"] == "SUCCESS"
    assert re.search("signal", last_job(running)["message"])
    assert is_alive(only(running, "keeper"))

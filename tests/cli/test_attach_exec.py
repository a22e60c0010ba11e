"""``updraft attach`` and ``updraft exec``."""

import os
import pty
import signal
import subprocess
import termios
from pathlib import Path

import pytest

from tests.cli.calling import (
    Gate,
    ask,
    call,
    ended,
    finish,
    start,
    submit,
    updraft,
    wait_state,
)
from tests.waiting import until
from updraft.testing.instance import Instance


def read_until(fd: int, mark: bytes) -> bytes:
    """Read a terminal's output until it holds ``mark``."""
    seen = b""
    while mark not in seen:
        seen += os.read(fd, 4096)
    return seen


# -- attach


def test_attach_takes_over_output_from_now_on_signals_and_the_exit_code(
    updraft_home: Instance,
) -> None:
    script = (
        "trap 'echo told; exit 9' USR1; echo before; sleep 0.2; "
        "while :; do echo tick; sleep 0.05; done"
    )
    job = submit(updraft_home, "sh", "-c", script)
    until(lambda: "tick" in updraft(updraft_home, "logs", job).out, "the trap")
    attached = start(updraft_home, "updraft", "attach", job)
    assert attached.stdout is not None
    assert attached.stdout.readline() == b"tick\n"
    attached.send_signal(signal.SIGUSR1)
    said = finish(attached)

    assert said.code == 9
    assert "before" not in said.out
    assert said.out.endswith("told\n")
    assert updraft(updraft_home, "job", "wait", job).code == 9


def on_terminal(own: Instance, fd: int, program: str, *arguments: str) -> "subprocess.Popen[bytes]":
    """Start a command on a terminal, as a shell's only job."""
    return subprocess.Popen(
        own.command(program, *arguments),
        env=own.environment, stdin=fd, stdout=fd, stderr=fd,
        start_new_session=True, preexec_fn=lambda: os.login_tty(os.dup(fd)),
    )  # fmt: skip


def test_a_terminal_is_left_with_keys_and_taken_up_again_in_its_new_size(
    updraft_home: Instance,
) -> None:
    main, other = pty.openpty()
    termios.tcsetwinsize(other, (24, 80))
    script = "trap 'stty size' WINCH; while read line; do echo got $line; done; exit 4"
    first = on_terminal(
        updraft_home, other, "urun", "--detach-keys", "ctrl-p,ctrl-q", "bash", "-c", script
    )
    os.write(main, b"one\n")
    read_until(main, b"got one\r\n")
    os.write(main, b"\x10\x11")
    job = ask(updraft_home, "job", "list")[0]["id"]
    told = f"urun: detached; job {job} goes on, come back to it: updraft attach {job}\r\n"
    read_until(main, told.encode())
    assert first.wait(30) == 0
    termios.tcsetwinsize(other, (40, 100))
    second = on_terminal(updraft_home, other, "updraft", "attach", job)
    os.write(main, b"two\n")
    # A shell runs its trap when the read has ended.
    seen = read_until(main, b"got two\r\n")
    if b"40 100\r\n" not in seen:
        read_until(main, b"40 100\r\n")
    os.write(main, b"\x04")

    assert second.wait(30) == 4
    os.close(main)
    os.close(other)


_TICKS = "trap 'echo told' INT; while :; do echo tick; sleep 0.05; done"


def test_a_job_without_a_terminal_is_left_with_keys_and_gets_ctrl_c(updraft_home: Instance) -> None:
    job = submit(updraft_home, "sh", "-c", _TICKS)
    main, other = pty.openpty()
    before = termios.tcgetattr(other)
    attached = on_terminal(updraft_home, other, "updraft", "attach", job)
    read_until(main, b"tick\r\n")
    os.write(main, b"\x04\x03")
    seen = read_until(main, b"told\r\n")
    os.write(main, b"\x10\x11")

    assert attached.wait(30) == 0
    assert b"^" not in seen  # what nobody reads is not shown
    assert termios.tcgetattr(other) == before
    assert ask(updraft_home, "job", "show", job)["state"] == "RUNNING"
    updraft(updraft_home, "job", "cancel", job)
    os.close(main)
    os.close(other)


def test_a_detached_job_goes_on_when_the_terminal_of_its_client_closes(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    ticks = "while :; do echo tick; sleep 0.05; done"
    script = f"{ticks} & {gate.read()}; kill $!; exit 3"
    job = submit(updraft_home, "sh", "-c", script)
    main, other = pty.openpty()
    attached = on_terminal(updraft_home, other, "updraft", "attach", job)
    os.close(other)
    read_until(main, b"tick\r\n")
    os.close(main)

    assert attached.wait(30) == -signal.SIGHUP
    gate.open()
    assert updraft(updraft_home, "job", "wait", job).code == 3


def test_lines_are_edited_here_for_a_job_that_reads_them_without_a_terminal(
    updraft_home: Instance,
) -> None:
    main, other = pty.openpty()
    command = updraft_home.command("urun", "--detach-keys", "ctrl-p,ctrl-q", "cat")
    first = subprocess.Popen(
        command, env=updraft_home.environment, stdin=other, stdout=subprocess.PIPE,
        start_new_session=True,
    )  # fmt: skip
    assert first.stdout is not None
    os.write(main, b"wrong\x15one\n")
    assert first.stdout.readline() == b"one\n"
    os.write(main, b"\x10\x11")
    assert first.wait(30) == 0
    job = ask(updraft_home, "job", "list")[0]["id"]
    second = on_terminal(updraft_home, other, "updraft", "attach", job)
    os.write(main, b"two\n")
    read_until(main, b"two\r\ntwo\r\n")
    os.write(main, b"\x04")

    assert second.wait(30) == 0
    first.stdout.close()
    os.close(main)
    os.close(other)


def test_what_is_piped_into_attach_reaches_the_job(updraft_home: Instance) -> None:
    first = subprocess.Popen(
        updraft_home.command("urun", "--keep-alive", "1m", "-n", "kept", "head", "-n", "2"),
        env=updraft_home.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )  # fmt: skip
    job = until(
        lambda: next(
            (j["id"] for j in ask(updraft_home, "job", "list") if j["name"] == "kept"), ""
        ),
        "the job",
    )
    wait_state(updraft_home, job, "RUNNING")
    said = call(updraft_home, "updraft", "attach", job, data=b"typed\nlater\n")

    finish(first)
    assert (said.out, said.code) == ("typed\nlater\n", 0)


def test_attach_refuses_a_job_that_has_ended(updraft_home: Instance) -> None:
    job = ended(updraft_home, "true")
    said = updraft(updraft_home, "attach", job)

    line = f"updraft: job {job} has ended; see: updraft logs {job}"
    assert (said.error, said.code) == (line, 125)


def test_attach_to_nothing_is_one_line(updraft_home: Instance) -> None:
    said = updraft(updraft_home, "attach", "nothing")

    assert said.code == 125
    assert said.error == "updraft: there is no job 'nothing'; see: updraft job list --all"


def test_detach_keys_are_checked(updraft_home: Instance) -> None:
    said = updraft(updraft_home, "attach", "--detach-keys", "hyper-x", "nothing")

    assert said.code == 2
    assert "'hyper-x' is no key; write detach keys as ctrl-p,ctrl-q" in said.error


# -- exec


def test_exec_runs_beside_a_job_in_its_surroundings(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "-e", "SET=by -e", "-C", str(tmp_path), "sh", "-c", gate.read())
    wait_state(updraft_home, job, "RUNNING")
    script = 'echo "$UPDRAFT_JOB_ID $SET $MORE $(pwd)"; cat; echo err >&2; exit 7'
    said = call(
        updraft_home, "updraft", "exec", "-e", "MORE=more", job, "sh", "-c", script, data=b"typed\n"
    )

    assert said.out == f"{job} by -e more {tmp_path}\ntyped\n"
    assert said.err == "err\n"
    assert said.code == 7
    gate.open()
    assert updraft(updraft_home, "job", "wait", job).code == 0
    assert updraft(updraft_home, "logs", job).out == ""


def test_everything_behind_the_id_is_the_command_s(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", gate.read())
    wait_state(updraft_home, job, "RUNNING")
    said = updraft(updraft_home, "exec", job, "printf", "%s\\n", "-e", "--tty", "--help")

    assert (said.out, said.code) == ("-e\n--tty\n--help\n", 0)
    dashed = updraft(updraft_home, "exec", job, "--", "printf", "%s", "--")
    assert (dashed.out, dashed.code) == ("--", 0)
    missing = updraft(updraft_home, "exec", job, "/no/such/command")
    assert missing.code == 127
    gate.open()


def test_exec_refuses_a_job_that_does_not_run(updraft_home: Instance) -> None:
    job = ended(updraft_home, "true")
    said = updraft(updraft_home, "exec", job, "true")

    assert said.code == 125
    assert said.error == f"updraft: job {job} has ended; exec needs a running one"


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["x"], "updraft exec: missing argument 'COMMAND [ARG]…'; see: updraft exec --help"),
        (
            ["-e", "=x", "x", "true"],
            "updraft exec: invalid value for '-e' / '--env': '=x' has no name; write it as "
            "KEY=VALUE or KEY; see: updraft exec --help",
        ),
    ],
)
def test_a_wrong_command_line_is_one_line(
    updraft_home: Instance, arguments: list[str], line: str
) -> None:
    said = updraft(updraft_home, "exec", *arguments)

    assert (said.error, said.code) == (line, 2)

"""``updraft logs``: what a job wrote, in part and in whole, as it comes and afterwards."""

import hashlib
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.cli.calling import (
    Gate,
    ask,
    ended,
    finish,
    interrupt,
    start,
    submit,
    updraft,
    wait_state,
)
from updraft.testing.instance import Instance

TALK = "for n in 1 2 3; do echo out $n; sleep 0.02; echo err $n >&2; sleep 0.02; done"


def logs(own: Instance, *arguments: str) -> tuple[str, str]:
    """Return stdout and stderr of ``updraft logs``, which must succeed."""
    said = updraft(own, "logs", *arguments)
    assert said.code == 0
    return said.out, said.err


def test_each_stream_comes_out_where_it_went_in(updraft_home: Instance) -> None:
    job = ended(updraft_home, "sh", "-c", TALK)

    out, err = "out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"
    assert logs(updraft_home, job) == (out, err)
    assert logs(updraft_home, "-f", job) == (out, err)
    assert logs(updraft_home, "--stdout", job) == (out, "")
    assert logs(updraft_home, "--stderr", job) == ("", err)
    assert logs(updraft_home, job[:9]) == (out, err)


def test_the_streams_are_in_the_order_in_which_they_were_written(updraft_home: Instance) -> None:
    job = ended(updraft_home, "sh", "-c", TALK)
    both = subprocess.run(
        updraft_home.command("updraft", "logs", job),
        env=updraft_home.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
    )  # fmt: skip

    assert both.stdout == b"out 1\nerr 1\nout 2\nerr 2\nout 3\nerr 3\n"


@pytest.mark.parametrize(
    ("count", "out", "err"),
    [
        (0, "", ""),
        (1, "", "err 3\n"),
        (3, "out 3\n", "err 2\nerr 3\n"),
        (100, "out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n"),
    ],
)
def test_tail_counts_the_lines_of_both_streams(
    updraft_home: Instance, count: int, out: str, err: str
) -> None:
    job = ended(updraft_home, "sh", "-c", TALK)

    assert logs(updraft_home, "--tail", str(count), job) == (out, err)


def test_tail_of_one_stream_counts_its_lines(updraft_home: Instance) -> None:
    job = ended(updraft_home, "sh", "-c", TALK)

    assert logs(updraft_home, "--tail", "2", "--stdout", job) == ("out 2\nout 3\n", "")


def test_since_leaves_out_what_is_older(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"echo old; echo old >&2; {gate.read()}; {TALK}")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert following.stdout.readline() == b"old\n"
    time.sleep(0.2)  # the index tells times to a tenth of a second
    moment = datetime.now(UTC)
    gate.open()
    finish(following)

    expected = ("out 1\nout 2\nout 3\n", "err 1\nerr 2\nerr 3\n")
    assert logs(updraft_home, "--since", moment.isoformat(), job) == expected
    local = moment.astimezone().replace(tzinfo=None)
    assert logs(updraft_home, "--since", local.isoformat(), job) == expected
    assert logs(updraft_home, "--since", moment.isoformat(), "--tail", "1", job) == ("", "err 3\n")
    assert logs(updraft_home, "--since", "1h", "--stdout", job)[0].startswith("old\nout 1\n")
    assert logs(updraft_home, "--since", "0s", job) == ("", "")


def test_follow_shows_output_as_it_comes_and_ends_with_the_job(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gates = {word: Gate(tmp_path, word) for word in ("one", "two")}
    reads = "; ".join(f"{gate.read()}; echo got $line" for gate in gates.values())
    job = submit(updraft_home, "sh", "-c", f"echo first; {reads}; sleep 60")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert following.stdout.readline() == b"first\n"
    for word, gate in gates.items():
        gate.open(word)
        assert following.stdout.readline() == f"got {word}\n".encode()
    assert logs(updraft_home, "--tail", "1", job) == ("got two\n", "")
    updraft(updraft_home, "job", "cancel", job)

    assert finish(following).code == 0


def test_follow_from_the_last_lines_on(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"echo one; echo two; {gate.read()}; echo three")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert [following.stdout.readline() for _ in range(2)] == [b"one\n", b"two\n"]
    from_last = start(updraft_home, "updraft", "logs", "-f", "--tail", "1", job)
    assert from_last.stdout is not None
    assert from_last.stdout.readline() == b"two\n"
    gate.open()

    assert finish(from_last).out == "three\n"
    assert finish(following).out == "three\n"


def test_bytes_come_out_as_they_went_in(updraft_home: Instance) -> None:
    program = "import os; os.write(1, bytes(range(256)) * 9000); os.write(2, bytes(range(256)))"
    job = ended(updraft_home, sys.executable, "-c", program)
    result = updraft_home.run("updraft", "logs", job)

    assert result.stdout == bytes(range(256)) * 9000
    assert result.stderr == bytes(range(256))


def test_a_follower_of_a_killed_server_misses_and_repeats_nothing(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gates = [Gate(tmp_path, str(n)) for n in range(3)]
    block = "head -c 300000 /dev/zero | tr '\\0' {}; echo; "
    script = "".join(block.format(n) + f"{gate.read()}; " for n, gate in enumerate(gates))
    job = submit(updraft_home, "sh", "-c", script)
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    seen = b""
    for gate in gates:
        seen += following.stdout.readline()
        assert updraft_home.kill("server") == 1
        gate.open()
    said = finish(following)

    assert (said.err, said.code) == ("", 0)
    whole = b"".join(str(n).encode() * 300000 + b"\n" for n in range(3))
    got = seen + said.out.encode()
    assert hashlib.sha256(got).digest() == hashlib.sha256(whole).digest(), len(got)


def test_a_follower_of_a_killed_agent_misses_and_repeats_nothing(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"echo one; {gate.read()}; echo two")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert following.stdout.readline() == b"one\n"
    assert updraft_home.kill("agent") == 1
    gate.open()

    assert finish(following).out == "two\n"


def test_a_reader_that_has_seen_enough_is_no_error(updraft_home: Instance) -> None:
    job = ended(updraft_home, "sh", "-c", "yes | head -c 2000000")
    reading = start(updraft_home, "updraft", "logs", job)
    assert reading.stdout is not None
    assert reading.stdout.read(4) == b"y\ny\n"
    reading.stdout.close()
    assert reading.stderr is not None
    assert reading.stderr.read() == b""
    assert reading.wait(30) == 141
    reading.stderr.close()


def test_ctrl_c_leaves_the_job_alone(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"echo here; {gate.read()}")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    following.stdout.readline()
    said = interrupt(following)
    gate.open()

    assert (said.out, said.err, said.code) == ("", "", 130)
    assert updraft(updraft_home, "job", "wait", job).code == 0


def test_a_job_that_waits_is_said_to(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    cpus = ask(updraft_home, "status")["runner"]["cpus"]
    holder = submit(updraft_home, "--cpus", str(cpus), "sh", "-c", gate.read())
    wait_state(updraft_home, holder, "RUNNING")
    job = submit(updraft_home, "echo", "late")
    said = updraft(updraft_home, "logs", job)

    assert said.code == 0
    assert said.error.startswith(f"updraft: job {job} has not started: next in pool local, waits")
    following = start(updraft_home, "updraft", "logs", "-f", job)
    gate.open()
    assert finish(following).out == "late\n"


def test_a_cut_is_told_where_it_is(tmp_path: Path) -> None:
    from updraft.testing.instance import instance

    home = tmp_path / "home"
    (home / "config").mkdir(parents=True)
    (home / "config" / "updraft.toml").write_text('[server]\noutput_quota = "1M"\n')
    with instance(home) as own:
        assert own.run("urun", "-q", "true").returncode == 0
        job = ended(own, "sh", "-c", "yes | head -c 8000000")
        result = own.run("updraft", "logs", job)

    (line,) = result.stderr.decode().splitlines()
    kept = len(result.stdout)
    assert kept < 2 << 20
    assert line == (
        f"updraft: {8_000_000 - kept} bytes are not stored: the stream was over its quota"
    )


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (["nothing"], 1, "updraft: there is no job 'nothing'; see: updraft job list --all"),
        (
            ["--tail", "-1", "x"],
            2,
            "updraft logs: invalid value for '-n' / '--tail': -1 is not in the range "
            "0<=x<=1000000; see: updraft logs --help",
        ),
        (
            ["--since", "soon", "x"],
            2,
            "updraft logs: invalid value for '--since': 'soon' is no time; write it like 10m (ago) "
            "or 2026-01-31T12:00; see: updraft logs --help",
        ),
    ],
)
def test_bad_input_is_one_line(
    updraft_home: Instance, arguments: list[str], code: int, line: str
) -> None:
    said = updraft(updraft_home, "logs", *arguments)

    assert (said.error, said.code) == (line, code)

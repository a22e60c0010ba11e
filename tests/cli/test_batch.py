"""``ubatch``: the id alone, and following."""

import re
from pathlib import Path

from tests.cli.calling import Gate, ask, call, finish, interrupt, start, updraft
from tests.waiting import until
from updraft.testing.instance import Instance, instance


def test_the_id_comes_alone_on_stdout(updraft_home: Instance) -> None:
    said = call(updraft_home, "ubatch", "-n", "detached", "true")

    assert re.fullmatch(r"[a-z][a-z0-9]{9}\n", said.out)
    assert (said.err, said.code) == ("", 0)
    assert ask(updraft_home, "job", "show", said.out.strip())["name"] == "detached"
    assert updraft(updraft_home, "batch", "true").code == 0


def test_follow_shows_states_and_output_and_exits_as_the_job(updraft_home: Instance) -> None:
    said = call(updraft_home, "ubatch", "-f", "sh", "-c", "echo out; echo err >&2; exit 5")

    job, out = said.out.splitlines()
    assert out == "out"
    # Output and states come on two ways; each is in its order.
    lines = said.err.splitlines()
    assert [line for line in lines if line != "err"] == [
        f"ubatch: job {job} IN_QUEUE: submitted",
        f"ubatch: job {job} RUNNING: started",
        f"ubatch: job {job} SUCCESS: exited with 5",
    ]
    assert lines.count("err") == 1
    assert said.code == 5


def test_follow_quietly_shows_output_only(updraft_home: Instance) -> None:
    said = call(
        updraft_home, "ubatch", "-q", "-f", "--time", "100ms", "sh", "-c", "echo a; sleep 9"
    )

    assert said.out.splitlines()[1:] == ["a"]
    assert (said.err, said.code) == ("", 124)


def test_ctrl_c_while_following_leaves_the_job_and_says_how_to_go_on(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    following = start(updraft_home, "ubatch", "-f", "sh", "-c", f"echo here; {gate.read()}")
    assert following.stdout is not None
    job = following.stdout.readline().decode().strip()
    assert following.stdout.readline() == b"here\n"
    said = interrupt(following)

    assert said.code == 130
    assert said.err.splitlines()[-1] == (
        f"ubatch: job {job} goes on; to follow it again: updraft logs -f {job}; "
        f"to cancel it: updraft job cancel {job}"
    )
    gate.open()
    assert updraft(updraft_home, "job", "wait", job).code == 0


def test_follow_goes_on_after_a_killed_server(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    following = start(
        updraft_home, "ubatch", "-f", "sh", "-c", f"echo one; {gate.read()}; echo two"
    )
    assert following.stdout is not None
    following.stdout.readline()
    assert following.stdout.readline() == b"one\n"
    assert updraft_home.kill("server") == 1
    gate.open()
    said = finish(following)

    assert (said.out, said.code) == ("two\n", 0)
    assert [line.split()[3] for line in said.err.splitlines()] == [
        "IN_QUEUE:", "RUNNING:", "SUCCESS:",
    ]  # fmt: skip


def test_the_first_call_says_that_it_starts_a_server(tmp_path: Path) -> None:
    with instance(tmp_path / "home") as own:
        said = call(own, "ubatch", "true")
        assert said.err == (
            "ubatch: started a server for you on this machine; it ends by itself when idle\n"
        )
        assert said.code == 0
        until(lambda: not ask(own, "job", "list"), "the job to end")


def test_a_detached_job_has_an_empty_stdin_and_no_terminal(updraft_home: Instance) -> None:
    said = call(updraft_home, "ubatch", "-q", "-f", "sh", "-c", "cat; test -t 0 || echo none")

    assert said.out.splitlines()[1:] == ["none"]


def test_bad_flags_are_one_line_and_leave_no_job(updraft_home: Instance) -> None:
    before = ask(updraft_home, "job", "list", "--all")
    said = call(updraft_home, "ubatch", "--memory", "12Q", "true")

    assert said.code == 125
    assert said.error == ("ubatch: --memory: '12Q' is not a size; write it like 512M, 2G or 1.5G")
    assert [job["id"] for job in ask(updraft_home, "job", "list", "--all")] == [
        job["id"] for job in before
    ]

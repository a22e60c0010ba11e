"""What people say wrongly about arrays gets one clear line, and changes nothing."""

from collections.abc import Iterator

import pytest

from updraft.testing.instance import Instance, instance

from .calling import ask, call, ended, submit, updraft, wait_state

USAGE, REFUSED, FAILED = 2, 1, 125


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    with instance(tmp_path_factory.mktemp("arrays") / "home") as made:
        assert made.run("urun", "-q", "true").returncode == 0
        yield made


@pytest.fixture(scope="module")
def array(own: Instance) -> str:
    """An array of three tasks that has ended, of which the last one is not ok."""
    return ended(
        own, "-N", "3", "sh", "-c", "echo $UPDRAFT_TASK_INDEX; test $UPDRAFT_TASK_INDEX -lt 2"
    )


FAR = "is too far away; choose an earlier time"

BAD_FLAGS = [
    ("-N", "0", "-N: '0' is not a count; write it as 1, 2, 3 …"),
    ("-N", "x", "-N: 'x' is not a count; write it as 1, 2, 3 …"),
    ("-N", "-4", "-N: '-4' is not a count; write it as 1, 2, 3 …"),
    ("-N", "٣", "-N: '٣' is not a count; write it as 1, 2, 3 …"),
    ("-N", "10000001", "-N: 10000001 tasks are too many; a job has at most 10000000"),
    ("--max-parallel", "0", "--max-parallel: '0' is not a count; write it as 1, 2, 3 …"),
    ("--max-parallel", "2", "--max-parallel is about several tasks; say how many with -N"),
    ("--retries", "x", "--retries: 'x' is not a count; write it as 0, 1, 2 …"),
    ("--retries", "٣", "--retries: '٣' is not a count; write it as 0, 1, 2 …"),
    ("--retry-on", "luck", "--retry-on: 'luck' is none of lost, exit, oom, expired"),
    ("--retry-on", "exit,", "--retry-on: '' is none of lost, exit, oom, expired"),
    ("--retry-on", "exit", "--retry-on is about retries; say how many with --retries"),
    ("--backoff", "1s", "--backoff is about retries; say how many with --retries"),
    ("--backoff", "2h", "--backoff: '2h' is longer than 1h; the wait doubles with each retry"),
    ("--priority", "high", "--priority: 'high' is no priority; write it as a number like 10 or -5"),
    ("--not-before", "2999-01-01", f"--not-before: '2999-01-01' {FAR}"),
    ("--deadline", "9999-12-31", f"--deadline: '9999-12-31' {FAR}"),
    ("--deadline", "2020-01-01", "its deadline is over already; choose a later one"),
    ("--deadline", "1900-01-01", "its deadline is over already; choose a later one"),
    (
        "--deadline",
        "soon",
        "--deadline: 'soon' is no time; write it like 10m (from now) or 2026-01-31T12:00",
    ),
]  # fmt: skip


TOGETHER = [
    (["urun", "--prefix"], "--prefix is about several tasks; say how many with -N"),
    (["ubatch", "-N", "2", "--prefix"], "--prefix is about the output; to see it here, add -f"),
    (["urun", "-N", "2", "--tty"], "--tty is about one task: those of -N have no terminal"),
    (
        ["urun", "-N", "2", "--detach-keys", "x"],
        "--detach-keys is about one task: those of -N have no terminal",
    ),
    (
        ["urun", "--not-before", "10m", "--deadline", "5m"],
        "its deadline comes before the time it may start; choose a later one",
    ),
    (["urun", "--prefix=1"], "--prefix takes no value"),
]


def test_bad_flags_get_one_line_with_the_mend_and_make_no_job(own: Instance) -> None:
    before = ask(own, "job", "list", "--all")
    wrong = [(["urun", flag, value], line) for flag, value, line in BAD_FLAGS] + TOGETHER
    for words, line in wrong:
        said = call(own, *words, "true")
        assert (said.error, said.code) == (f"{words[0]}: {line}", FAILED)
    assert ask(own, "job", "list", "--all") == before


@pytest.mark.parametrize("flags", [["--tail", "3"], ["--since", "3m"]])
def test_a_part_of_the_output_is_of_one_task(own: Instance, array: str, flags: list[str]) -> None:
    said = updraft(own, "logs", *flags, array)
    line = (
        f"updraft: job {array} has 3 tasks; a part of the output is of one of them: {array}/INDEX"
    )
    assert (said.error, said.code) == (line, REFUSED)
    assert updraft(own, "logs", *flags, f"{array}/1").out == "1\n"


@pytest.mark.parametrize("words", [["logs"], ["job", "show"]])
def test_a_task_that_is_not_there_is_named_with_those_that_are(
    own: Instance, array: str, words: list[str]
) -> None:
    said = updraft(own, *words, f"{array}/3")
    line = f"updraft: job {array} has no task 3; its tasks are 0 to 2"
    assert (said.error, said.code) == (line, REFUSED)
    said = updraft(own, *words, f"{array}/x")
    assert f"'{array}/x': write a task of an array as ID/INDEX, as {array}/17" in said.error
    assert said.code == USAGE


@pytest.mark.parametrize("words", [["job", "wait"], ["job", "watch"], ["job", "rerun"], ["attach"]])
def test_what_is_of_whole_jobs_says_so(own: Instance, array: str, words: list[str]) -> None:
    said = updraft(own, *words, f"{array}/1")
    assert f"'{array}/1' is one task; this is of whole jobs, as {array}" in said.error
    assert said.code == USAGE


def test_an_array_that_has_ended_is_left_as_it_is(own: Instance, array: str) -> None:
    before = ask(own, "job", "show", array)
    for words in (["cancel", array], ["cancel", f"{array}/2"], ["retry", f"{array}/2"]):
        said = updraft(own, "job", *words)
        assert f"job {array} has ended" in said.error
        assert said.code == REFUSED
    said = updraft(own, "job", "retry", array)
    assert f"name one task, as {array}/17" in said.error
    assert said.code == USAGE
    assert ask(own, "job", "show", array) == before


def test_nothing_is_run_again_where_all_is_ok(own: Instance) -> None:
    job = ended(own, "-N", "2", "true")
    said = updraft(own, "job", "rerun", "--failed", job)
    line = f"updraft: all tasks of job {job} are ok; nothing is to be run again"
    assert (said.error, said.code) == (line, REFUSED)


def test_a_live_array_has_no_terminal_to_attach_to(own: Instance) -> None:
    job = submit(own, "-N", "2", "--max-parallel", "1", "sleep", "1000")
    wait_state(own, job, "RUNNING")
    said = updraft(own, "attach", job)
    line = f"updraft: job {job} has 2 tasks; follow them: updraft logs -f {job}"
    assert (said.error, said.code) == (line, FAILED)
    said = updraft(own, "logs", f"{job}/1")
    assert (said.error, said.code) == (f"updraft: task {job}/1 has not started", 0)
    assert updraft(own, "job", "cancel", f"{job}/1").code == 0
    assert "ENDED, cancelled before it started" in updraft(own, "job", "show", f"{job}/1").out
    said = updraft(own, "job", "cancel", f"{job}/1")
    assert (said.error, said.code) == (f"updraft: task {job}/1 has ended", REFUSED)
    said = updraft(own, "exec", job, "true")
    assert f"job {job}" in said.error
    assert said.code == FAILED
    updraft(own, "job", "cancel", job)

"""``updraft job show``, ``wait``, ``watch``, ``cancel``, ``extend`` and ``rerun``."""

import json
import re
from pathlib import Path

import pytest

from tests.cli.calling import (
    Gate,
    ask,
    call,
    ended,
    finish,
    interrupt,
    start,
    submit,
    updraft,
    wait_state,
)
from tests.waiting import until
from updraft.testing.instance import Instance
from updraft.wire import schemas

CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


# -- show


def test_show_tells_all_but_values_of_the_environment(
    updraft_home: Instance, tmp_path: Path
) -> None:
    job = ended(
        updraft_home,
        "-n", "a name", "-l", "team=a b", "-e", "SECRET=hunter2", "-e", "A=hunter2",
        "--cpus", "0.5", "--memory", "1G", "--time", "90s", "--retries", "1", "-C", str(tmp_path),
        "sh", "-c", "exit 3",
    )  # fmt: skip
    said = updraft(updraft_home, "job", "show", job)

    assert (said.err, said.code) == ("", 0)
    lines = said.out.splitlines()
    assert lines[:14] == [
        f"id          {job}",
        "name        a name",
        "state       SUCCESS",
        "ok          no",
        "exit code   3",
        "reason      exited with 3",
        "command     sh -c 'exit 3'",
        f"directory   {tmp_path}",
        "set by -e   A SECRET",
        "labels      team=a b",
        "pool        local",
        "resources   0.5 CPUs, 1.0 GiB of memory",
        "time limit  1m30s",
        "retries     1",
    ]
    for line, label in zip(lines[14:17], ("submitted", "started", "ended"), strict=True):
        assert re.fullmatch(rf"{label:<10}  {CLOCK}", line)
    assert re.fullmatch(r"attempt 1   ENDED on local, exited with 3, ran \d+\.\ds.*", lines[17])
    assert len(lines) == 18
    assert "hunter2" not in said.out


def test_show_json_has_every_field_of_the_api(updraft_home: Instance) -> None:
    job = ended(updraft_home, "-e", "SECRET=hunter2", "true")
    found = ask(updraft_home, "job", "show", job)

    assert schemas.Job.model_validate(found).model_dump(mode="json") == found
    assert set(found) == set(schemas.Job.model_fields)
    assert (found["id"], found["state"], found["ok"], found["exit_code"]) == (
        job, "SUCCESS", True, 0,
    )  # fmt: skip
    assert found["reason"] == "exited with 0"
    assert found["environment"] == ["SECRET"]
    assert found["resources"] == {"cpus": 1.0, "memory_bytes": None, "gpus": 0}
    assert found["times"]["submitted"] <= found["times"]["started"] <= found["times"]["ended"]
    (attempt,) = found["attempts"]
    assert (attempt["number"], attempt["state"], attempt["exit_code"]) == (1, "ENDED", 0)
    assert attempt["stdout_bytes"] == attempt["stderr_bytes"] == 0
    assert "hunter2" not in json.dumps(found)


def test_ids_may_be_cut_short(updraft_home: Instance) -> None:
    job = ended(updraft_home, "true")
    known = [each["id"] for each in ask(updraft_home, "job", "list", "--all", "--limit", "500")]
    length = next(n for n in range(1, 11) if sum(i.startswith(job[:n]) for i in known) == 1)

    assert ask(updraft_home, "job", "show", job[:length])["id"] == job


@pytest.mark.parametrize("command", ["show", "watch", "cancel", "rerun"])
def test_a_job_that_is_not_there_is_one_line_and_code_1(
    updraft_home: Instance, command: str
) -> None:
    said = updraft(updraft_home, "job", command, "nothing")

    line = "updraft: there is no job 'nothing'; see: updraft job list --all"
    assert (said.error, said.code) == (line, 1)


@pytest.mark.parametrize("command", ["show", "wait", "watch", "cancel", "rerun", "extend"])
def test_an_id_is_asked_for(updraft_home: Instance, command: str) -> None:
    said = updraft(updraft_home, "job", command)

    assert said.code == 2
    assert said.error.startswith(f"updraft job {command}: missing argument 'ID")


def test_an_empty_id_is_no_list(updraft_home: Instance) -> None:
    said = updraft(updraft_home, "job", "show", "")

    assert said.code == 1
    assert said.error == "updraft: a job's id is needed; see: updraft job list --all"


# -- wait


@pytest.mark.parametrize(
    ("flags", "script", "code", "line"),
    [
        ([], "exit 0", 0, ""),
        ([], "exit 3", 3, ""),
        ([], "kill -KILL $$", 137, ""),
        ([], "exec /no/such/command", 127, ""),
        (["--time", "50ms"], "sleep 60", 124, "EXPIRED: its time limit was reached; raise --time"),
    ],
)
def test_wait_exits_as_the_job_did(
    updraft_home: Instance, flags: list[str], script: str, code: int, line: str
) -> None:
    job = submit(updraft_home, *flags, "sh", "-c", script)
    said = updraft(updraft_home, "job", "wait", job)

    assert (said.out, said.code) == ("", code)
    assert said.err == (f"updraft: job {job} ended as {line}\n" if line else "")


def test_wait_waits_and_tells_a_cancelled_job(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", gate.read())
    wait_state(updraft_home, job, "RUNNING")
    waiting = start(updraft_home, "updraft", "job", "wait", job)
    assert updraft(updraft_home, "job", "cancel", job).code == 0

    said = finish(waiting)
    assert (said.err, said.code) == (f"updraft: job {job} ended as CANCELLED: cancelled\n", 143)


def test_wait_for_several_exits_as_the_first_that_is_not_ok(updraft_home: Instance) -> None:
    good = [submit(updraft_home, "true") for _ in range(2)]
    bad = [submit(updraft_home, "sh", "-c", f"exit {code}") for code in (5, 6)]

    assert updraft(updraft_home, "job", "wait", *good).code == 0
    assert updraft(updraft_home, "job", "wait", good[0], bad[1], good[1], bad[0]).code == 6
    result = updraft(updraft_home, "job", "wait", "--json", *good, *bad)
    assert [job["id"] for job in json.loads(result.out)] == [*good, *bad]
    assert result.code == 5


def test_wait_fails_with_125_where_updraft_does(updraft_home: Instance) -> None:
    # 1 would be a command's.
    said = updraft(updraft_home, "job", "wait", "nothing")

    assert said.code == 125
    assert said.error == "updraft: there is no job 'nothing'; see: updraft job list --all"


def test_wait_outlives_its_server(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"{gate.read()}; exit $line")
    wait_state(updraft_home, job, "RUNNING")
    waiting = start(updraft_home, "updraft", "job", "wait", job)
    assert updraft_home.kill("server") == 1
    gate.open("7")

    assert finish(waiting).code == 7


# -- watch


def test_watch_shows_old_events_and_new_ones_to_the_end(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", f"{gate.read()}; exit 3")
    watching = start(updraft_home, "updraft", "job", "watch", job)
    assert watching.stdout is not None
    first = watching.stdout.readline().decode()
    second = watching.stdout.readline().decode()
    gate.open()
    said = finish(watching)

    assert re.fullmatch(rf"{CLOCK}  IN_QUEUE   submitted\n", first)
    assert re.fullmatch(rf"{CLOCK}  RUNNING    started\n", second)
    assert re.fullmatch(rf"{CLOCK}  SUCCESS    exited with 3\n", said.out)
    assert (said.err, said.code) == ("", 0)
    again = updraft(updraft_home, "job", "watch", job)
    assert again.out == first + second + said.out


def test_watch_json_is_an_object_a_line(updraft_home: Instance) -> None:
    job = ended(updraft_home, "true")
    said = updraft(updraft_home, "job", "watch", "--json", job)

    events = [json.loads(line) for line in said.out.splitlines()]
    assert [event["kind"] for event in events] == ["IN_QUEUE", "RUNNING", "SUCCESS"]
    assert [event["attempt"] for event in events] == [None, 1, 1]
    for event in events:
        assert schemas.Event.model_validate(event).model_dump(mode="json") == event


def test_watch_goes_on_after_a_killed_server_without_a_repetition(
    updraft_home: Instance, tmp_path: Path
) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", gate.read())
    watching = start(updraft_home, "updraft", "job", "watch", job)
    assert watching.stdout is not None
    seen = [watching.stdout.readline() for _ in range(2)]
    assert updraft_home.kill("server") == 1
    gate.open()
    said = finish(watching)

    kinds = [line.split()[2].decode() for line in [*seen, *said.out.encode().splitlines()]]
    assert kinds == ["IN_QUEUE", "RUNNING", "SUCCESS"]
    assert (said.err, said.code) == ("", 0)


def test_ctrl_c_leaves_what_is_watched_alone(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "sh", "-c", gate.read())
    watching = start(updraft_home, "updraft", "job", "watch", job)
    assert watching.stdout is not None
    watching.stdout.readline()
    said = interrupt(watching)
    gate.open()

    assert (said.err, said.code) == ("", 130)
    assert updraft(updraft_home, "job", "wait", job).code == 0


# -- cancel, extend, rerun


def test_cancel_ends_jobs_and_says_what_it_could_not(
    updraft_home: Instance, tmp_path: Path
) -> None:
    running = [submit(updraft_home, "--cpus", "0", "sleep", "60") for _ in range(2)]
    over = ended(updraft_home, "true")
    said = updraft(updraft_home, "job", "cancel", running[0], over, "nothing", running[1])

    assert (said.out, said.code) == ("", 1)
    # Whether they have ended by the time of the answer is chance.
    told = said.err.replace("was cancelled", "is being cancelled")
    assert set(told.splitlines()) == {
        f"updraft: job {over} has ended (SUCCESS: exited with 0)",
        "updraft: there is no job 'nothing'; see: updraft job list --all",
        f"updraft: job {running[0]} is being cancelled",
        f"updraft: job {running[1]} is being cancelled",
    }
    for job in running:
        assert wait_state(updraft_home, job, "CANCELLED")["ok"] is False
    again = updraft(updraft_home, "job", "cancel", running[0])
    assert (again.err, again.code) == (f"updraft: job {running[0]} was cancelled\n", 0)


def test_extend_adds_to_the_limit_of_a_running_job(updraft_home: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    job = submit(updraft_home, "--time", "1h", "sh", "-c", gate.read())
    said = updraft(updraft_home, "job", "extend", job, "90m")

    line = f"updraft: job {job} now has 2h30m, counted from its start"
    assert (said.error, said.code) == (line, 0)
    assert ask(updraft_home, "job", "show", job)["time_limit_seconds"] == 9000
    gate.open()
    assert updraft(updraft_home, "job", "wait", job).code == 0


def test_an_extended_job_outlives_its_first_limit(updraft_home: Instance, tmp_path: Path) -> None:
    job = submit(updraft_home, "--time", "2s", "sleep", "3")
    assert updraft(updraft_home, "job", "extend", job, "60s").code == 0

    assert updraft(updraft_home, "job", "wait", job).code == 0


@pytest.mark.parametrize("amount", ["soon", "-5m", ""])
def test_extend_refuses_what_is_no_duration(updraft_home: Instance, amount: str) -> None:
    said = updraft(updraft_home, "job", "extend", "--", "nothing", amount)

    assert said.code == 2
    assert f"'TIME': {amount!r} is not a duration; write it like 90s" in said.error


def test_rerun_is_a_new_linked_job_in_the_callers_environment(
    updraft_home: Instance, tmp_path: Path
) -> None:
    script = 'echo "$SET $FORWARDED $(pwd) $PWD"'
    updraft_home.environment["FORWARDED"] = "then"
    job = ended(updraft_home, "-e", "SET=by -e", "-C", str(tmp_path), "sh", "-c", script)
    updraft_home.environment["FORWARDED"] = "now"
    try:
        said = updraft(updraft_home, "job", "rerun", job)
    finally:
        del updraft_home.environment["FORWARDED"]

    assert (said.err, said.code) == ("", 0)
    new = said.out.strip()
    assert updraft(updraft_home, "job", "wait", new).code == 0
    assert updraft(updraft_home, "logs", job).out == f"by -e then {tmp_path} {tmp_path}\n"
    assert updraft(updraft_home, "logs", new).out == f"by -e now {tmp_path} {tmp_path}\n"
    assert ask(updraft_home, "job", "show", new)["source"] == job
    assert ask(updraft_home, "job", "show", job)["linked"] == [new]
    assert f"reruns      {job}" in updraft(updraft_home, "job", "show", new).out.splitlines()
    assert f"rerun as    {new}" in updraft(updraft_home, "job", "show", job).out.splitlines()


def test_an_attached_job_is_rerun_without_its_client(updraft_home: Instance) -> None:
    assert call(updraft_home, "urun", "-n", "attached", "cat", data=b"typed").out == "typed"
    job = ask(updraft_home, "job", "list", "--all")[0]["id"]
    new = updraft(updraft_home, "job", "rerun", job).out.strip()

    assert updraft(updraft_home, "job", "wait", new).code == 0
    assert updraft(updraft_home, "logs", new).out == ""


def test_a_retried_job_is_watched_through_all_its_attempts(
    tmp_path: Path, updraft_home: Instance
) -> None:
    gate = Gate(tmp_path)
    job = submit(
        updraft_home, "--retries", "1", "sh", "-c", f"echo $UPDRAFT_ATTEMPT; {gate.read()}"
    )
    watching = start(updraft_home, "updraft", "job", "watch", job)
    following = start(updraft_home, "updraft", "logs", "-f", job)
    assert following.stdout is not None
    assert following.stdout.readline() == b"1\n"
    assert updraft_home.kill("keeper") == 1
    assert following.stdout.readline() == b"2\n"
    gate.open()

    kinds = [line.split()[2] for line in finish(watching).out.splitlines()]
    assert kinds == ["IN_QUEUE", "RUNNING", "IN_QUEUE", "RUNNING", "SUCCESS"]
    said = finish(following)
    assert (said.out, said.err, said.code) == ("", "updraft: attempt 2 begins\n", 0)
    shown = ask(updraft_home, "job", "show", job)
    assert [attempt["state"] for attempt in shown["attempts"]] == ["LOST", "ENDED"]
    until(lambda: updraft_home.processes("keeper"), "the keeper to be back")

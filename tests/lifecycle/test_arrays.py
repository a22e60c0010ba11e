"""Arrays on a personal instance: each task runs once, whatever happens to those around it."""

import os
import re
import signal
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from tests.cli.calling import ask, call, finish, start, submit, updraft, wait_state
from tests.waiting import until
from updraft.testing.instance import Instance

SECONDS = 60.0


def appending(trace: Path) -> str:
    """Return a shell command by which a task notes its index, in one write."""
    return f"echo $UPDRAFT_TASK_INDEX >> {trace}"


def ran(trace: Path) -> Counter[int]:
    """Return how often each task has noted itself."""
    return Counter(map(int, trace.read_text().split())) if trace.exists() else Counter()


def wait_lines(trace: Path, count: int) -> None:
    """Wait until tasks have written so many lines."""
    until(lambda: ran(trace).total() >= count, f"{count} lines of tasks", SECONDS)


def attempts(own: Instance, job: str, index: int) -> list[dict[str, Any]]:
    """Return a task's attempts."""
    found: list[dict[str, Any]] = ask(own, "job", "show", f"{job}/{index}")
    return found


def wait_task(own: Instance, job: str, index: int, state: str) -> None:
    """Wait until the last attempt of a task is in this state."""

    def look() -> bool:
        made = attempts(own, job, index)
        return bool(made) and made[-1]["state"] == state

    until(look, f"task {job}/{index} to be {state}", SECONDS)


def test_every_task_runs_once_and_knows_which_it_is(running: Instance, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    said = call(
        running, "urun", "-q", "-N", "50", "sh", "-c",
        f"{appending(trace)}; echo $UPDRAFT_TASK_INDEX/$UPDRAFT_TASK_COUNT",
    )  # fmt: skip
    assert (said.err, said.code) == ("", 0)
    assert sorted(said.out.split()) == sorted(f"{index}/50" for index in range(50))
    assert ran(trace) == Counter(range(50))


def test_an_array_with_failing_tasks_names_them_as_ranges(running: Instance) -> None:
    said = call(
        running, "urun", "-N", "10", "sh", "-c",
        "case $UPDRAFT_TASK_INDEX in 2|3|4) exit 3;; 8) exit 1;; esac",
    )  # fmt: skip
    assert re.fullmatch(
        r"urun: job \w+ ended as SUCCESS: 6 of 10 tasks ok; not ok: 2-4,8", said.error
    )
    assert said.code == 3


def test_output_is_that_of_one_task_or_of_all_with_their_indices(running: Instance) -> None:
    job = submit(
        running, "-N", "4", "sh", "-c",
        "echo out $UPDRAFT_TASK_INDEX; echo err $UPDRAFT_TASK_INDEX >&2",
    )  # fmt: skip
    followed = updraft(running, "logs", "-f", "--prefix", job)
    assert sorted(followed.out.splitlines()) == [f"[{at}] out {at}" for at in range(4)]
    assert sorted(followed.err.splitlines()) == [f"[{at}] err {at}" for at in range(4)]
    one = updraft(running, "logs", f"{job}/2")
    assert (one.out, one.err, one.code) == ("out 2\n", "err 2\n", 0)
    assert sorted(updraft(running, "logs", "--stdout", job).out.split("\n")[:-1]) == [
        f"out {at}" for at in range(4)
    ]


def test_one_waiting_task_one_running_task_and_all_can_be_cancelled(running: Instance) -> None:
    job = submit(running, "-N", "20", "--max-parallel", "1", "sleep", "1000")
    wait_task(running, job, 0, "RUNNING")
    assert updraft(running, "job", "cancel", f"{job}/15", f"{job}/0").code == 0
    wait_task(running, job, 0, "ENDED")
    (waiting,) = attempts(running, job, 15)
    assert (waiting["outcome"], waiting["started"]) == ("CANCELLED", None)
    assert attempts(running, job, 0)[0]["outcome"] == "CANCELLED"
    wait_task(running, job, 1, "RUNNING")
    assert updraft(running, "job", "cancel", job).code == 0
    waited = updraft(running, "job", "wait", job)
    assert waited.code == 143
    assert wait_state(running, job, "CANCELLED")["tasks"]["ok"] == 0


def test_a_task_that_failed_is_tried_again_while_the_array_goes_on(
    running: Instance, tmp_path: Path
) -> None:
    there = tmp_path / "there"
    job = submit(
        running, "-N", "2", "sh", "-c",
        f"test $UPDRAFT_TASK_INDEX = 0 && exec sleep 1000; test -e {there}",
    )  # fmt: skip
    wait_task(running, job, 1, "ENDED")
    there.touch()
    assert updraft(running, "job", "retry", f"{job}/1").code == 0
    until(
        lambda: [each["exit_code"] for each in attempts(running, job, 1)] == [1, 0],
        "its second attempt", SECONDS,
    )  # fmt: skip
    updraft(running, "job", "cancel", job)


def test_rerun_failed_keeps_the_indices_and_links_the_jobs(
    running: Instance, tmp_path: Path
) -> None:
    trace = tmp_path / "trace"
    job = submit(
        running, "-N", "9", "sh", "-c", f"{appending(trace)}; exit $((UPDRAFT_TASK_INDEX % 4 == 3))"
    )
    assert updraft(running, "job", "wait", job).code == 1
    assert ran(trace) == Counter(range(9))
    trace.unlink()
    again = updraft(running, "job", "rerun", "--failed", job).out.strip()
    assert updraft(running, "job", "wait", again).code == 1
    assert ran(trace) == Counter([3, 7])
    assert ask(running, "job", "show", again)["source"] == job
    assert ask(running, "job", "show", job)["linked"] == [again]


def test_no_more_tasks_run_at_a_time_than_were_allowed(running: Instance, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    said = call(
        running, "urun", "-N", "12", "--max-parallel", "1", "--cpus", "0", "sh", "-c",
        f"mkdir {lock} && sleep 0.02 && rmdir {lock}",
    )  # fmt: skip
    assert (said.err, said.code) == ("", 0)


def test_tasks_are_tried_again_after_an_exit_if_that_was_asked(
    running: Instance, tmp_path: Path
) -> None:
    said = call(
        running, "urun", "-q", "--name", "tried", "-N", "3", "--retries", "2", "--retry-on",
        "exit", "--backoff", "10ms", "sh", "-c",
        f"cd {tmp_path}; mkdir $UPDRAFT_TASK_INDEX && exit 5; exit 0",
    )  # fmt: skip
    assert said.code == 0
    (job,) = [
        each["id"] for each in ask(running, "job", "list", "--all") if each["name"] == "tried"
    ]
    for index in range(3):
        made = attempts(running, job, index)
        assert [(each["number"], each["exit_code"]) for each in made] == [(1, 5), (2, 0)]


def test_an_array_does_not_start_before_its_time(running: Instance) -> None:
    later = submit(running, "-N", "2", "--not-before", "1h", "true")
    assert "at the earliest" in wait_state(running, later, "IN_QUEUE")["reason"]
    updraft(running, "job", "cancel", later)
    soon = submit(running, "-N", "2", "--not-before", "300ms", "true")
    wait_state(running, soon, "SUCCESS")
    times = ask(running, "job", "show", soon)["times"]
    assert times["started"] > times["submitted"]


def test_a_deadline_ends_what_runs_and_what_waits(running: Instance) -> None:
    job = submit(running, "-N", "5", "--max-parallel", "1", "--deadline", "1s", "sleep", "1000")
    assert updraft(running, "job", "wait", job).code == 124
    shown = wait_state(running, job, "EXPIRED")
    assert "deadline" in shown["reason"]
    waiting = submit(running, "-N", "5", "--not-before", "1h", "--deadline", "1h", "true")
    updraft(running, "job", "cancel", waiting)
    queued = submit(running, "--cpus", "0", "-N", "1", "--max-parallel", "1", "sleep", "1000")
    assert updraft(running, "job", "cancel", queued).code == 0


def following(own: Instance, trace: Path) -> tuple["subprocess.Popen[bytes]", str]:
    """Start an array that ends with its client; return the client and the job, once tasks run."""
    client = start(
        own, "urun", "--name", "followed", "-N", "4", "sh", "-c",
        f"{appending(trace)}; exec sleep 1000",
    )  # fmt: skip
    wait_lines(trace, 1)
    (job,) = [each["id"] for each in ask(own, "job", "list") if each["name"] == "followed"]
    return client, job


def test_an_array_ends_with_its_client(running: Instance, tmp_path: Path) -> None:
    client, job = following(running, tmp_path / "trace")
    client.kill()
    client.communicate()
    wait_state(running, job, "CANCELLED", "SUCCESS", "FAILURE")


def test_ctrl_c_cancels_an_array(running: Instance, tmp_path: Path) -> None:
    client, job = following(running, tmp_path / "trace")
    client.send_signal(signal.SIGINT)
    said = finish(client)
    assert said.code == 143
    assert "CANCELLED" in said.err
    assert "Traceback" not in said.err
    wait_state(running, job, "CANCELLED")


def test_a_second_ctrl_c_leaves_at_once(running: Instance, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    client = start(
        running, "urun", "--name", "deaf", "-N", "2", "sh", "-c",
        f"trap '' TERM HUP INT; {appending(trace)}; while :; do sleep 1; done",
    )  # fmt: skip
    wait_lines(trace, 1)
    (job,) = [each["id"] for each in ask(running, "job", "list") if each["name"] == "deaf"]
    client.send_signal(signal.SIGINT)
    until(lambda: ask(running, "job", "show", job)["wanted"] == "cancel", "cancelling", SECONDS)
    client.send_signal(signal.SIGINT)
    said = finish(client)
    assert said.code == 130
    assert "Traceback" not in said.err


def test_a_killed_server_runs_no_task_twice_and_leaves_none_out(
    running: Instance, tmp_path: Path
) -> None:
    trace, count = tmp_path / "trace", 300
    job = submit(running, "-N", str(count), "sh", "-c", appending(trace))
    for share in (0.1, 0.4, 0.7):
        wait_lines(trace, int(count * share))
        for pid in running.processes("server"):
            os.kill(pid, signal.SIGKILL)
    assert updraft(running, "job", "wait", job).code == 0
    assert ran(trace) == Counter(range(count))
    shown = ask(running, "job", "show", job)
    assert (shown["tasks"]["ok"], shown["reason"]) == (count, f"all {count} tasks are ok")

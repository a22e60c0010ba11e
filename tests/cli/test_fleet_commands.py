"""``updraft pool`` and ``updraft runner``: what they say and do; limits of what runs at a time."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.cli.calling import Gate, ask, call, submit, updraft, wait_state
from tests.cli.test_access_commands import done, refused, table
from tests.waiting import until
from updraft import __version__
from updraft.testing.instance import Instance


@pytest.fixture
def own(updraft_home: Instance) -> Instance:
    """The module's instance; each test takes names of its own."""
    return updraft_home


def test_a_pool_is_made_shown_changed_and_deleted(own: Instance) -> None:
    done(
        updraft(own, "pool", "create", "gpu", "--cpus", "4", "--memory", "8G", "--gpus", "a100=2",
                "--label", "disk=fast", "--region", "eu-1", "--jurisdiction", "eu",
                "--peer-network", "lan", "--project", "default", "--preemptible",
                "--price", "2.50", "--time-limit", "2h", "--max-runners", "3"),
        "pool gpu was made; let machines join it: updraft runner token gpu",
    )  # fmt: skip
    refused(
        updraft(own, "pool", "create", "gpu"),
        "there is a pool gpu already; see: updraft pool list",
    )
    missing = "there is no project 'nosuch'; see: updraft project list"
    refused(updraft(own, "pool", "create", "new", "--project", "nosuch"), missing)
    refused(updraft(own, "pool", "update", "gpu", "--project", "nosuch", "--cpus", "9"), missing)
    assert [pool["name"] for pool in ask(own, "pool", "list")] == ["gpu", "local"]
    assert updraft(own, "pool", "show", "gpu").out == (
        "name          gpu\n"
        "ready         0 of 0\n"
        "free cpus     0 of 0\n"
        "free memory   0 B of 0 B\n"
        "free gpus     0 of 0\n"
        "running       0\n"
        "queued        0\n"
        "reason        -\n"
        "draining      no\n"
        "from          updraft pool create\n"
        "cpus each     4\n"
        "memory each   8.0 GiB\n"
        "gpus each     a100=2\n"
        "labels        disk=fast\n"
        "region        eu-1\n"
        "jurisdiction  eu\n"
        "peer network  lan\n"
        "projects      default\n"
        "preemptible   yes\n"
        "price         2.50 an hour\n"
        "time limit    2h00m\n"
        "max runners   3\n"
    )
    done(
        updraft(own, "pool", "update", "gpu", "--cpus", "all", "--label", "none", "--price", "none",
                "--not-preemptible"),
        "pool gpu was changed",
    )  # fmt: skip
    settings = ask(own, "pool", "show", "gpu")["settings"]
    assert (settings["cpus"], settings["labels"], settings["price_per_hour"]) == (None, {}, None)
    assert (settings["preemptible"], settings["region"]) == (False, "eu-1")
    done(
        updraft(own, "pool", "drain", "gpu"),
        "pool gpu takes no new jobs; 0 run and 0 wait in it",
    )
    assert table(updraft(own, "pool", "list"))[1] == [
        "gpu", "0 of 0", "0 of 0", "0 B of 0 B", "0 of 0", "0", "0", "draining"
    ]  # fmt: skip
    done(updraft(own, "pool", "drain", "gpu", "--undo"), "pool gpu takes jobs again")
    done(updraft(own, "pool", "delete", "gpu"), "pool gpu was deleted")
    refused(
        updraft(own, "pool", "delete", "gpu"),
        "there is no pool 'gpu'; the pools are: local",
    )


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--cpus", "0", "'0' is too little for any job; write it like 2 or 0.5, or all"),
        ("--memory", "1K", "'1K' is too little for any job; the least is 1M, or all"),
        ("--gpus", "a100", "'a100' is no pair; write it like a100=8, or none"),
        ("--gpus", "a100=x", "a100=x: a number is needed, as in a100=8"),
        ("--price", "-1", "'-1' is no price of an hour; write it like 2.50, or none"),
        ("--max-runners", "0", "'0' is no number of runners; write it like 8, or unlimited"),
    ],
)
def test_a_setting_that_is_none_is_refused_in_one_line(
    own: Instance, option: str, value: str, said: str
) -> None:
    answer = updraft(own, "pool", "create", "new", option, value)
    assert answer.code == 2
    assert said in answer.error


def test_runners_are_listed_with_what_is_free(own: Instance) -> None:
    headers, row = table(updraft(own, "runner", "list"))
    assert headers == [
        "NAME", "POOL", "STATE", "SEEN", "CPUS", "MEMORY", "GPUS", "TASKS", "SERVES", "RELEASE",
    ]  # fmt: skip
    assert row[:4] == ["local", "local", "ready", "now"]
    assert row[7:] == ["0", "everybody", __version__]
    (runner,) = ask(own, "runner", "list")
    assert ask(own, "runner", "show", "local")["cpus"] == runner["cpus"]
    assert updraft(own, "runner", "show", "local").out.startswith(
        "name     local\npool     local\n"
    )
    local = "the local runner is this server's own; end it: updraft stop"
    refused(updraft(own, "runner", "drain", "local"), local)
    refused(updraft(own, "runner", "remove", "local"), local)
    refused(
        updraft(own, "runner", "remove", "nosuch"),
        "there is no runner 'nosuch'; see: updraft runner list",
    )


def test_join_tokens_are_listed_and_revoked(own: Instance) -> None:
    token = updraft(own, "runner", "token", "local", "--uses", "3").out.strip()
    headers, row = table(updraft(own, "runner", "tokens", "list"))
    assert headers == ["ID", "POOL", "MADE BY", "CREATED", "EXPIRES", "USED"]
    assert row[0] in token
    assert (row[1], row[3:]) == ("local", ["CLOCK", "CLOCK", "0 of 3"])
    (listed,) = ask(own, "runner", "tokens", "list")
    done(
        updraft(own, "runner", "tokens", "revoke", listed["id"]),
        f"nothing joins with token {listed['id']} any more",
    )
    done(
        updraft(own, "runner", "tokens", "list"),
        "there is no join token; make one: updraft runner token POOL",
    )


def test_jobs_above_a_projects_limit_wait_and_say_so(own: Instance, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    updraft(own, "project", "limits", "default", "--running-jobs", "1")
    try:
        first = submit(own, "--cpus", "0.1", "sh", "-c", gate.read())
        second = submit(own, "--cpus", "0.1", "true")
        wait_state(own, first, "RUNNING")
        said = ask(own, "job", "show", second)
        assert (said["state"], said["reason"]) == (
            "IN_QUEUE",
            "project default has 1 of 1 running jobs, its limit; waits for one of its running "
            "jobs to end",
        )
        (pool,) = ask(own, "pool", "list")
        assert (pool["running"], pool["queued"], pool["reason"]) == (1, 1, said["reason"])
        # Raising the limit starts it, with nothing else that happens.
        updraft(own, "project", "limits", "default", "--running-jobs", "2")
        assert wait_state(own, second, "SUCCESS")["exit_code"] == 0
    finally:
        gate.open()
        updraft(own, "project", "limits", "default", "--running-jobs", "none")
    wait_state(own, first, "SUCCESS")
    until(lambda: ask(own, "pool", "list")[0]["running"] == 0, "nothing to run", 10)


def test_stages_of_a_pipeline_do_not_wait_for_each_others_limit(own: Instance) -> None:
    updraft(own, "project", "limits", "default", "--running-jobs", "1")
    try:
        urun = own.command("urun")[0]
        done = subprocess.run(
            ["/bin/sh", "-c", f"{urun} seq 100000 | {urun} tail -n 1"],
            env=own.environment, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.stdout, done.stderr, done.returncode) == (b"100000\n", b"", 0)
    finally:
        updraft(own, "project", "limits", "default", "--running-jobs", "none")


def test_output_counts_against_a_limit_as_soon_as_its_job_has_ended(own: Instance) -> None:
    limit = ("project", "limits", "default", "--stored")
    assert updraft(own, *limit, "1G").code == 0
    try:
        assert call(own, "urun", "true").code == 0
        assert updraft(own, *limit, "1M").code == 0
        written = call(own, "urun", "head", "-c", "2M", "/dev/zero")
        assert (written.code, len(written.out)) == (0, 2 << 20)
        refused = call(own, "urun", "true")
        assert refused.code == 125
        assert "project default: 2 of 1 MiB of output are stored" in refused.error
    finally:
        updraft(own, *limit, "none")


def test_a_job_that_is_above_a_limit_by_itself_is_refused(own: Instance) -> None:
    updraft(own, "project", "limits", "default", "--cpus", "1")
    try:
        answer = updraft(own, "batch", "--cpus", "2", "true")
        assert answer.code == 125
        assert re.search(r"this job alone is above a limit of project default", answer.error)
    finally:
        updraft(own, "project", "limits", "default", "--cpus", "none")

"""``[limits.project]`` and ``[limits.user]`` of updraft.toml, through the real server."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import ask, call, submit, updraft, wait_state
from updraft.testing.instance import Instance, instance

ME = f"uid:{os.geteuid()}"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Instance]:
    home = tmp_path_factory.mktemp("limits") / "home"
    with instance(home) as made:
        config = Path(home) / "config"
        config.mkdir()
        (config / "updraft.toml").write_text(
            '[limits.project]\nrunning_jobs = 1\nmemory = "64G"\n[limits.user]\ncpus = 0.5\n'
        )
        yield made


def test_defaults_are_shown_as_such_and_give_way_to_limits_of_ones_own(own: Instance) -> None:
    updraft(own, "project", "create", "beta")
    assert updraft(own, "project", "limits", "beta").out.splitlines() == [
        "running jobs   1 (default)",
        "cpus           none",
        "gpus           none",
        "memory         64.0 GiB (default)",
        "stored output  none",
    ]
    # What is set beside a default leaves that a default.
    assert updraft(own, "project", "limits", "beta", "--running-jobs", "3").out.splitlines() == [
        "running jobs   3",
        "cpus           none",
        "gpus           none",
        "memory         64.0 GiB (default)",
        "stored output  none",
    ]
    assert "running jobs   3" in updraft(own, "project", "show", "beta").out
    again = ask(own, "project", "limits", "beta", "--running-jobs", "none")
    assert (again["running_jobs"], again["defaults"]) == (1, ["running_jobs", "memory_bytes"])
    updraft(own, "user", "add", "fred")
    updraft(own, "project", "members", "beta", "--add", "fred")
    mine = ask(own, "project", "limits", "beta", "--user", "fred")
    assert (mine["cpus"], mine["running_jobs"], mine["defaults"]) == (0.5, None, ["cpus"])
    mine = ask(own, "project", "limits", "beta", "--user", "fred", "--cpus", "2")
    assert (mine["cpus"], mine["defaults"]) == (2, [])


def test_a_job_above_a_projects_default_waits_until_the_limit_is_raised(own: Instance) -> None:
    first = submit(own, "--cpus", "0.1", "sleep", "600")
    wait_state(own, first, "RUNNING")
    second = submit(own, "--cpus", "0.1", "sleep", "600")
    assert ask(own, "job", "show", second)["reason"] == (
        "project default has 1 of 1 running jobs, its limit; waits for one of its running jobs "
        "to end"
    )
    updraft(own, "project", "limits", "default", "--running-jobs", "2")
    wait_state(own, second, "RUNNING")
    updraft(own, "job", "cancel", first, second)
    for job in (first, second):
        wait_state(own, job, "CANCELLED")


def test_a_job_that_alone_is_above_a_users_default_is_refused(own: Instance) -> None:
    before = ask(own, "job", "list", "--all")
    said = call(own, "urun", "--cpus", "1", "true")
    assert (said.error, said.code) == (
        "urun: this job alone is above a limit of you in project default, with 0 of 0.5 CPUs used; "
        "ask for less",
        125,
    )
    assert ask(own, "job", "list", "--all") == before

"""Tasks on shared runners, behind NAT too, submit jobs over TLS by their own tokens."""

import json
import os
from pathlib import Path

import pytest

from tests.team.team import Person, Team
from tests.waiting import until

CPUS = str(os.cpu_count() or 1)


@pytest.fixture(params=["main", "other"])
def pool(request: pytest.FixtureRequest) -> str:
    """Of a shared runner: `other` is one that cannot be dialled."""
    name: str = request.param
    return name


@pytest.fixture
def bob(team: Team) -> Person:
    return team.people["bob"]


def script(person: Person, text: str) -> list[str]:
    """A shell's command line where Updraft's commands are found."""
    return ["sh", "-c", f"PATH={person.commands}:$PATH; {text}"]


def shown(person: Person, job: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(person.said("updraft", "job", "show", "--json", job))
    return found


def test_a_task_runs_jobs_where_it_is(bob: Person, pool: str) -> None:
    text = """
        cd $HOME; echo of the parent >file
        urun sh -c 'pwd; cat file; id -un; cat; echo $UPDRAFT_URL >&2; echo child >>file; exit 7'
        echo $?; pwd; tail -n 1 file
    """
    done = bob.run("urun", "-P", pool, "--cpus", CPUS, *script(bob, text), data=b"typed\n")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    assert lines[1:5] == ["of the parent", "bob", "typed", "7"], (lines, done.stderr)
    assert lines[0] == lines[5]  # the parent's workspace, which the child sees too
    assert lines[6] == "child"
    assert bob.environment["UPDRAFT_URL"].encode() in done.stderr


def test_full_runners_with_nested_calls_come_to_their_end(bob: Person, pool: str) -> None:
    text = "urun sh -c 'urun sh -c \"urun echo deep\"'"
    argv = script(bob, text)
    with (
        bob.popen("urun", "-P", pool, "--cpus", CPUS, *argv) as one,
        bob.popen("urun", "-P", pool, "--cpus", CPUS, *argv) as two,
    ):
        for each in (one, two):
            out, err = each.communicate(timeout=60)
            assert out == b"deep\n", err


def test_children_are_their_submitters_and_known_as_children(bob: Person, pool: str) -> None:
    text = "echo $UPDRAFT_JOB_ID; ubatch true; updraft job show $UPDRAFT_JOB_ID | grep -c bob"
    done = bob.run("urun", "-P", pool, *script(bob, text))
    parent, child, *_ = done.stdout.decode().split()
    found = shown(bob, child)
    assert (found["parent"], found["owner"], found["pool"]) == (parent, "bob", pool)
    listed = json.loads(bob.said("updraft", "job", "list", "--all", "--json", "--parent", parent))
    assert [each["id"] for each in listed] == [child]


def test_a_task_may_not_touch_what_it_did_not_submit(bob: Person, pool: str) -> None:
    other = bob.said("ubatch", "-P", pool, "--cpus", "0", "sleep", "1000")
    text = f"updraft job cancel {other}; echo $?; updraft token create mine; echo $?"
    done = bob.run("urun", "-P", pool, *script(bob, text))
    assert done.stdout.split() == [b"1", b"1"], done.stderr
    assert b"was not submitted by job" in done.stderr
    assert shown(bob, other)["wanted"] == "run"
    bob.said("updraft", "job", "cancel", other)


def test_a_cancelled_parent_takes_its_children_along(bob: Person, pool: str) -> None:
    text = "ubatch --cpus 0 sleep 1000; exec urun --cpus 0 sleep 1000"
    parent = bob.said("ubatch", "-P", pool, *script(bob, text))

    def children() -> list[dict[str, object]]:
        listed = bob.said("updraft", "job", "list", "--all", "--json", "--parent", parent)
        found: list[dict[str, object]] = json.loads(listed)
        return found

    until(lambda: [each["state"] for each in children()] == ["RUNNING"] * 2, "both children")
    bob.said("updraft", "job", "cancel", parent)
    # The attached one may have had the signal from its client, which was ended too.
    until(lambda: [each["ok"] for each in children()] == [False] * 2, "their end")
    assert "CANCELLED" in {each["state"] for each in children()}


def test_a_token_is_good_for_as_long_as_its_task(bob: Person, pool: str, tmp_path: Path) -> None:
    done = bob.run("urun", "-P", pool, *script(bob, "echo $UPDRAFT_TOKEN; urun -q true; echo $?"))
    token, code = done.stdout.decode().split()
    assert code == "0", done.stderr
    late = Person(bob.name, bob.uid, bob.host, bob.commands, bob.home,
                  {**bob.environment, "UPDRAFT_TOKEN": token})  # fmt: skip
    refused = late.run("urun", "-P", pool, "true")
    assert refused.returncode == 125
    assert refused.stderr == b"urun: the job that this token belongs to has ended\n"


def test_the_submitters_own_token_does_not_reach_the_task(bob: Person, pool: str) -> None:
    done = bob.run("urun", "-P", pool, "env")
    assert bob.environment["UPDRAFT_TOKEN"].encode() not in done.stdout

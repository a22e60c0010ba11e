"""``updraft user``, ``token``, ``project``, ``admin audit``, ``whoami``: what they say and do."""

import os
import re

import pytest

from tests.cli.calling import Said, ask, call, submit, updraft, wait_state
from updraft.testing.instance import Instance
from updraft.wire import access_schemas

ME = f"uid:{os.geteuid()}"
CLOCK = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def own(updraft_home: Instance) -> Instance:
    """The module's instance; each test takes names of its own."""
    return updraft_home


def done(said: Said, line: str) -> None:
    """Check that a command did what it was to do and says so in one line."""
    assert (said.error, said.code) == (f"updraft: {line}", 0)


def refused(said: Said, line: str) -> None:
    assert (said.error, said.code) == (f"updraft: {line}", 1)


def table(said: Said) -> list[list[str]]:
    assert (said.err, said.code) == ("", 0)
    text = re.sub(CLOCK, "CLOCK", said.out)
    return [re.split(r" {2,}", line) for line in text.splitlines()]


def test_whoami_on_ones_own_machine(own: Instance) -> None:
    said = updraft(own, "whoami")

    assert said.out.splitlines()[:4] == [
        f"name          {ME}",
        "project       default (admin)",
        "scope         admin",
        "server admin  yes",
    ]
    access_schemas.Me.model_validate(ask(own, "whoami"))


def test_users_are_made_shown_kept_out_and_removed(own: Instance) -> None:
    password = b"a long password\n"
    said = call(
        own, "updraft", "user", "add", "anna", "--display", "Anna A.", "--email", "a@x.org",
        "--stdin", data=password,
    )  # fmt: skip
    done(said, "user anna was made; put them into a project: updraft project members")
    assert ask(own, "user", "add", "ben", "--admin")["server_admin"] is True
    rows = table(updraft(own, "user", "list"))
    assert rows[0] == ["NAME", "DISPLAY", "EMAIL", "ADMIN", "SIGNS IN BY", "DISABLED"]
    assert ["anna", "Anna A.", "a@x.org", "no", "password", "no"] in rows
    assert ["ben", "-", "-", "yes", "-", "no"] in rows
    done(updraft(own, "user", "disable", "anna"), "user anna is kept out from now on")
    shown = re.sub(CLOCK, "CLOCK", updraft(own, "user", "show", "anna").out)
    assert shown.splitlines() == [
        "name          anna",
        "display       Anna A.",
        "email         a@x.org",
        "server admin  no",
        "disabled      yes",
        "signs in by   password",
        "created       CLOCK",
    ]
    done(updraft(own, "user", "enable", "anna"), "user anna may sign in again")
    said = call(own, "updraft", "user", "password", "anna", "--stdin", data=b"another long one\n")
    done(said, "the password of anna was set")
    done(updraft(own, "user", "remove", "anna"), "user anna was removed")
    refused(updraft(own, "user", "show", "anna"), "there is no user 'anna'; see: updraft user list")
    refused(
        updraft(own, "user", "add", "anna"),
        "the name 'anna' is taken, or was: names are not given twice, since jobs and the audit "
        "refer to them",
    )


def test_bad_input_about_users_is_one_line_and_changes_nothing(own: Instance) -> None:
    before = ask(own, "user", "list")
    refused(
        updraft(own, "user", "add", "Not A Name"),
        "name: 'Not A Name' cannot be a name; small letters, digits, '.', '_' and '-' can, at "
        "most 63, beginning with a letter or a digit",
    )
    refused(
        call(own, "updraft", "user", "add", "shorty", "--stdin", data=b"short\n"),
        "password: 10 to 1000 characters are needed; choose another",
    )
    refused(
        call(own, "updraft", "user", "add", "shorty", "--stdin", data=b""),
        "stdin has no password; give it on one line",
    )
    refused(
        updraft(own, "user", "password", "nobody"),
        "there is no terminal to ask for the password; use --stdin",
    )
    assert ask(own, "user", "list") == before


def test_a_token_is_shown_once_listed_and_revoked(own: Instance) -> None:
    updraft(own, "user", "add", "carl")
    said = updraft(own, "token", "create", "ci", "--user", "carl", "--expires", "30d")
    found = re.fullmatch(r"updraft_user_([0-9a-f]{12})_[0-9a-f]{64}\n", said.out)
    assert found is not None
    identity = found[1]
    assert re.fullmatch(
        f"updraft: token {identity} expires {CLOCK}; it is shown this once\n", said.err
    )
    rows = table(updraft(own, "token", "list", "--user", "carl"))
    assert rows == [
        ["ID", "KIND", "NAME", "SCOPE", "PROJECT", "CREATED", "EXPIRES", "LAST USED"],
        [identity, "token", "ci", "run", "-", "CLOCK", "CLOCK", "-"],
    ]
    listed = updraft(own, "token", "list", "--user", "carl", "--json").out
    assert said.out.split("_")[3].strip() not in listed
    done(updraft(own, "token", "revoke", identity), f"token {identity} is revoked")
    refused(
        updraft(own, "token", "revoke", identity),
        f"there is no token '{identity}'; see: updraft token list",
    )
    done(updraft(own, "token", "list", "--user", "carl"), "there is no token and no session")
    never = ask(own, "token", "create", "x", "--user", "carl", "--expires", "never")
    assert never["expires"] is None
    refused(
        updraft(own, "token", "create", "mine"),
        f"there is no user '{ME}' to make a token for; name one: updraft token create --user NAME",
    )


def test_projects_have_members_and_keep_their_last_admin(own: Instance) -> None:
    for name in ("dora", "emil"):
        updraft(own, "user", "add", name)
    done(updraft(own, "project", "create", "alpha"), "project alpha was made")
    refused(updraft(own, "project", "create", "alpha"), "there is a project 'alpha' already")
    add = ("project", "members", "alpha", "--add")
    done(updraft(own, *add, "dora", "--role", "admin"), "dora is admin of project alpha")
    done(updraft(own, *add, "emil"), "emil is member of project alpha")
    assert table(updraft(own, "project", "members", "alpha")) == [
        ["USER", "ROLE", "DISABLED"],
        ["dora", "admin", "no"],
        ["emil", "member", "no"],
    ]
    last = (
        "dora is the last admin of project alpha; make another one first: updraft project members "
        "alpha --add NAME --role admin"
    )
    refused(updraft(own, "project", "members", "alpha", "--remove", "dora"), last)
    refused(updraft(own, *add, "dora", "--role", "viewer"), last)
    refused(updraft(own, "user", "remove", "dora"), last)
    done(updraft(own, "project", "members", "alpha", "--remove", "emil"),
         "emil is no longer in project alpha")  # fmt: skip
    rows = table(updraft(own, "project", "list"))
    assert rows[0] == ["NAME", "YOUR ROLE", "CREATED", "ARCHIVED"]
    assert ["alpha", "-", "CLOCK", "-"] in rows
    done(updraft(own, "project", "archive", "alpha"), "project alpha takes no more jobs")
    done(updraft(own, "project", "archive", "alpha", "--undo"), "project alpha takes jobs again")
    refused(
        updraft(own, "project", "show", "nosuch"),
        "there is no project 'nosuch'; see: updraft project list",
    )


def test_limits_are_set_one_by_one_and_taken_away(own: Instance) -> None:
    updraft(own, "project", "create", "beta")
    assert updraft(own, "project", "limits", "beta").out.splitlines() == [
        "running jobs   none",
        "cpus           none",
        "gpus           none",
        "memory         none",
        "stored output  none",
    ]
    updraft(own, "project", "limits", "beta", "--cpus", "1.5", "--memory", "2G")
    said = updraft(own, "project", "limits", "beta", "--running-jobs", "3", "--cpus", "none")
    assert said.out.splitlines() == [
        "running jobs   3",
        "cpus           none",
        "gpus           none",
        "memory         2.0 GiB",
        "stored output  none",
    ]
    updraft(own, "user", "add", "fred")
    updraft(own, "project", "members", "beta", "--add", "fred")
    mine = ask(own, "project", "limits", "beta", "--user", "fred", "--gpus", "1")
    assert mine == {
        "running_jobs": None, "cpus": None, "gpus": 1, "memory_bytes": None, "stored_bytes": None,
        "defaults": [],
    }  # fmt: skip
    said = updraft(own, "project", "limits", "beta", "--gpus", "many")
    assert said.code == 2
    assert "'many' is no number, or none" in said.error


def test_jobs_of_another_project_are_listed_and_cancelled_by_its_name(own: Instance) -> None:
    updraft(own, "project", "create", "gamma")
    job = submit(own, "sleep", "600")
    said = updraft(own, "job", "list", "--everyone")
    assert [line.split()[1] for line in said.out.splitlines()] == ["OWNER", ME]
    assert ask(own, "job", "list", "--project", "gamma") == []
    refused(
        updraft(own, "job", "cancel", "--project", "gamma", job),
        f"there is no job '{job}'; see: updraft job list --all",
    )
    refused(
        updraft(own, "job", "list", "--project", "nosuch"),
        "there is no project 'nosuch'; see: updraft project list",
    )
    updraft(own, "job", "cancel", job)
    wait_state(own, job, "CANCELLED")
    entries = ask(own, "admin", "audit", "--action", "list jobs")
    assert [(each["who"], each["subject"]) for each in entries] == [(ME, "gamma")]


def test_the_audit_tells_who_did_what_from_where(own: Instance) -> None:
    updraft(own, "user", "add", "gina")
    rows = table(updraft(own, "admin", "audit", "--limit", "1"))
    assert rows == [
        ["AT", "WHO", "ACTION", "SUBJECT", "DETAILS", "FROM"],
        ["CLOCK", ME, "create user", "gina", "server_admin=false", "unix socket"],
    ]
    said = updraft(own, "admin", "audit", "--user", "nobody")
    assert (said.error.partition("of: ")[0], said.code) == (
        "updraft: no entry matches; there are some ", 0,
    )  # fmt: skip
    assert ME in said.error.partition("of: ")[2].split(", ")
    said = updraft(own, "admin", "audit", "--action", "creat user")
    assert "create user" in said.error.partition("there are: ")[2].split(", ")
    assert ask(own, "admin", "audit", "--action", "creat user") == []

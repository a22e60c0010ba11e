"""``updraft login``, ``logout`` and ``profile``, with a server over TLS."""

import asyncio
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.calling import Said, ask, call, finish, start, updraft
from tests.server.https import HttpsApi, https_api, self_signed
from updraft.model.access import Principal, Role
from updraft.sdk.targets import Target, read_target
from updraft.server.services.accounts import NewUser
from updraft.server.services.sign_in import NewToken
from updraft.testing.instance import Instance

ADMIN = Principal("uid:4000000", server_admin=True)
PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsApi]:
    """A server elsewhere, with a user."""
    with https_api(tmp_path_factory.mktemp("server")) as running:
        access = running.made.access
        running.call(access.accounts.create(ADMIN, NewUser("anna", password=PASSWORD)))
        running.call(access.projects.set_member(ADMIN, "default", "anna", Role.MEMBER))
        yield running


@pytest.fixture
def own(tmp_path: Path) -> Instance:
    """A home of the test's own; nothing is started for it."""
    return Instance(tmp_path / "home")


def login(own: Instance, server: HttpsApi, *more: str, data: bytes | None = None) -> Said:
    pin = ("--fingerprint", server.fingerprint)
    return call(own, "updraft", "login", server.url, *pin, *more, data=data)


def target(own: Instance) -> Target | None:
    return read_target(own.environment)


def is_good(server: HttpsApi, token: str) -> bool:
    answer = server.call(server.made.send("GET", "/me", token))
    return answer.status_code == 200


def test_login_with_a_password_and_logout(own: Instance, server: HttpsApi) -> None:
    said = login(own, server, "--user", "anna", "--password-stdin", data=PASSWORD.encode() + b"\n")
    line = f"updraft: you are anna at {server.url}; commands go there from now on"
    assert (said.error, said.code) == (line, 0)
    found = target(own)
    assert found is not None
    assert (found.url, found.user, found.profile) == (
        server.url, "anna", f"127.0.0.1-{server.port}",
    )  # fmt: skip
    assert found.fingerprint == server.fingerprint
    assert is_good(server, found.token)
    profiles = ask(own, "profile", "list")
    assert [(each["name"], each["in_use"]) for each in profiles] == [
        ("local", False),
        (found.profile, True),
    ]
    assert found.token not in updraft(own, "profile", "list", "--json").out
    said = updraft(own, "logout")
    assert (said.error, said.code) == (f"updraft: signed out of {server.url}", 0)
    assert not is_good(server, found.token)
    assert target(own) is None
    assert own.processes() == []


def test_login_with_a_token_and_profiles_of_ones_own_naming(
    own: Instance, server: HttpsApi
) -> None:
    new = NewToken("ci", user="anna")
    _, token = server.call(server.made.access.sign_in.create_token(ADMIN, new))
    data = token.encode() + b"\n"
    more = ("--profile", "team", "--project", "default")
    assert login(own, server, "--token-stdin", *more, data=data).code == 0
    found = target(own)
    assert found is not None
    assert (found.token, found.project, found.profile) == (token, "default", "team")
    said = updraft(own, "profile", "use", "local")
    assert (said.error, said.code) == ("updraft: commands go to this machine from now on", 0)
    assert target(own) is None
    rows = updraft(own, "profile", "list").out.splitlines()
    assert [re.split(" {2,}", row) for row in rows] == [
        ["NAME", "IN USE", "SERVER", "USER", "PROJECT"],
        ["local", "yes", "this machine", "-", "-"],
        ["team", "no", server.url, "anna", "default"],
    ]
    assert updraft(own, "profile", "remove", "team").code == 0
    assert is_good(server, token)


def test_login_by_a_browser(own: Instance, server: HttpsApi) -> None:
    pin = ("--fingerprint", server.fingerprint)
    process = start(own, "updraft", "login", server.url, *pin)
    assert process.stderr is not None
    line = process.stderr.readline().decode()
    found = re.fullmatch(
        rf"updraft: open {server.url}/login\?code=(\S+) and confirm this code: \1\n", line
    )
    assert found is not None, line

    async def confirm(code: str) -> None:
        access = server.made.access
        user = await access.sign_in.check_password("anna", PASSWORD, "")
        waiting = access.devices.find(code)
        assert waiting is not None
        assert waiting.client == f"updraft on {os.uname().nodename}"
        access.devices.confirm(waiting, user)
        await asyncio.sleep(0)

    server.call(confirm(found[1]))
    said = finish(process)
    assert (said.out, said.code) == ("", 0)
    assert said.err.startswith("updraft: you are anna at ")


@pytest.mark.parametrize(
    ("arguments", "data", "line"),
    [
        (["--token-stdin"], b"updraft_user_1_2\n",
         "you are not signed in here; sign in: updraft login URL"),
        (["--token-stdin"], b"", "stdin has no token; give it on one line"),
        (["--user", "anna", "--password-stdin"], b"wrong password\n",
         "this is not a user's name with their password"),
        (["--user", "anna", "--password-stdin", "--project", "nosuch"], None,
         "there is no project 'nosuch'; see: updraft project list"),
        (["--profile", "Not a name"], b"",
         "'Not a name' cannot be a profile's name; small letters, digits, '.', '_' and '-' can"),
    ],
)  # fmt: skip
def test_a_refused_login_is_one_line_and_stores_nothing(
    own: Instance, server: HttpsApi, arguments: list[str], data: bytes | None, line: str
) -> None:
    data = PASSWORD.encode() + b"\n" if data is None else data
    said = login(own, server, *arguments, data=data)
    assert (said.error, said.code) == (f"updraft: {line}", 1)
    assert target(own) is None
    assert not (own.home / "config").exists()


def test_a_certificate_that_nobody_vouches_for_is_refused_off_a_terminal(
    own: Instance, server: HttpsApi
) -> None:
    said = updraft(own, "login", server.url, "--token-stdin")
    assert (said.error, said.code) == (
        f"updraft: no authority vouches for 127.0.0.1:{server.port}; if this is its certificate, "
        f"add: --fingerprint {server.fingerprint}",
        1,
    )


def test_another_certificate_than_the_pinned_one_gets_no_token(
    own: Instance, server: HttpsApi, tmp_path: Path
) -> None:
    _, _, another = self_signed(tmp_path)
    said = call(
        own, "updraft", "login", server.url, "--fingerprint", another, "--token-stdin",
        data=b"secret\n",
    )  # fmt: skip
    assert said.code == 1
    assert said.error == (
        f"updraft: 127.0.0.1:{server.port} has another certificate than the known one: "
        f"{server.fingerprint}; if it was renewed, give its fingerprint: --fingerprint sha256:…"
    )


def by_variables(own: Instance, server: HttpsApi, **more: str) -> None:
    """Let commands go where a CI's variables say."""
    own.environment.update(UPDRAFT_URL=server.url, UPDRAFT_TOKEN="updraft_user_1_2", **more)


def test_a_token_of_the_environment_that_is_not_good_is_named_with_its_mend(
    own: Instance, server: HttpsApi
) -> None:
    by_variables(own, server, UPDRAFT_FINGERPRINT=server.fingerprint)
    line = (
        f"updraft: {server.url} does not know the token of UPDRAFT_TOKEN: it is mistyped, expired "
        "or revoked; make a new one: updraft token create NAME"
    )
    assert updraft(own, "whoami").error == line
    assert updraft(own, "logs", "nosuch").error == line


def test_a_session_that_has_ended_is_begun_again_at_the_profiles_address(
    own: Instance, server: HttpsApi
) -> None:
    more = ("--user", "anna", "--password-stdin", "--profile", "team")
    assert login(own, server, *more, data=PASSWORD.encode() + b"\n").code == 0
    found = target(own)
    assert found is not None
    assert server.call(server.made.send("POST", "/sign-out", found.token)).is_success
    assert updraft(own, "whoami").error == (
        f"updraft: you are not signed in at {server.url} any more; sign in again: updraft login "
        f"{server.url} --profile team"
    )


@pytest.mark.parametrize("program", ["urun", "updraft"])
def test_a_certificate_of_the_environments_server_is_mended_in_the_environment(
    own: Instance, server: HttpsApi, tmp_path: Path, program: str
) -> None:
    by_variables(own, server)
    asked = ("true",) if program == "urun" else ("whoami",)
    said = call(own, program, *asked).error
    assert said.startswith(f"{program}: the certificate of 127.0.0.1:{server.port} is not to be")
    assert said.endswith("has a self-signed one, set UPDRAFT_FINGERPRINT=sha256:…")
    _, _, another = self_signed(tmp_path)
    by_variables(own, server, UPDRAFT_FINGERPRINT=another)
    assert call(own, program, *asked).error == (
        f"{program}: 127.0.0.1:{server.port} has another certificate than the known one: "
        f"{server.fingerprint}; if it was renewed, set UPDRAFT_FINGERPRINT=sha256:…"
    )


def test_another_certificate_than_a_profiles_is_mended_by_signing_in(
    own: Instance, server: HttpsApi, tmp_path: Path
) -> None:
    more = ("--user", "anna", "--password-stdin", "--profile", "team")
    assert login(own, server, *more, data=PASSWORD.encode() + b"\n").code == 0
    _, _, another = self_signed(tmp_path)
    path = own.home / "config" / "profiles" / "team"
    path.write_text(path.read_text().replace(server.fingerprint, another))
    assert updraft(own, "whoami").error.endswith(
        f"if it was renewed, sign in again: updraft login {server.url} --profile team "
        "--fingerprint sha256:…"
    )


@pytest.mark.parametrize("answer", ["y", "n"])
def test_on_a_terminal_the_person_vouches_for_the_certificate(
    own: Instance, server: HttpsApi, answer: str
) -> None:
    main, other = pty.openpty()
    process = subprocess.Popen(
        own.command("updraft", "login", server.url, "--user", "anna"),
        env=own.environment, stdin=other, stdout=other, stderr=other,
    )  # fmt: skip
    os.close(other)
    output = b""
    answers = [(b"[y/N]:", answer), (b"password of anna:", PASSWORD)]
    while True:
        try:
            output += os.read(main, 4096)
        except OSError:
            break
        if answers and answers[0][0] in output:
            os.write(main, answers.pop(0)[1].encode() + b"\n")
    os.close(main)
    assert process.wait(30) == (0 if answer == "y" else 1)
    assert server.fingerprint.encode() in output
    assert PASSWORD.encode() not in output
    found = target(own)
    assert (found.fingerprint if found else None) == (server.fingerprint if answer == "y" else None)


def test_a_wrong_command_line_is_one_line_and_code_2(own: Instance) -> None:
    said = updraft(own, "login", "https://x", "--token-stdin", "--user", "anna")
    assert (said.error, said.code) == (
        "updraft login: --token-stdin and --user are two ways to sign in; take one; see: "
        "updraft login --help",
        2,
    )
    said = updraft(own, "login", "http://x")
    assert said.error == (
        "updraft: 'http://x' is no server's address; write it as https://HOST[:PORT]"
    )

"""A change of access reaches what is open: sessions of the raw protocol, and answers that go on."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import Api
from tests.server.tcp import Peer, Tcp, with_tcp
from updraft import errors
from updraft.model.access import Principal, Role
from updraft.sdk.submission import submission
from updraft.server.auth import credentials
from updraft.server.services.accounts import NewUser
from updraft.server.services.sign_in import NewToken, SessionLimits
from updraft.store import access as queries
from updraft.wire import frames

ADMIN = Principal("uid:4000000", server_admin=True)
Change = Callable[[Api, str], Awaitable[Any]]

CHANGES: dict[str, tuple[Change, str]] = {
    "disabled": (
        lambda made, _: made.access.accounts.set_disabled(ADMIN, "anna", True), "not_signed_in",
    ),
    "removed": (lambda made, _: made.access.accounts.remove(ADMIN, "anna"), "not_signed_in"),
    "token revoked": (
        lambda made, token: made.access.sign_in.revoke(ADMIN, id_of(token)), "not_signed_in",
    ),
    "out of the project": (
        lambda made, _: made.access.projects.remove_member(ADMIN, "default", "anna"), "not_found",
    ),
    "another role": (
        lambda made, _: made.access.projects.set_member(ADMIN, "default", "anna", Role.VIEWER),
        "not_allowed",
    ),
}  # fmt: skip


def id_of(token: str) -> str:
    found = credentials.parse(token)
    assert found is not None
    return found.id


async def token_of(made: Api, name: str) -> str:
    await made.access.accounts.create(ADMIN, NewUser(name))
    await made.access.projects.set_member(ADMIN, "default", name, Role.MEMBER)
    return (await made.access.sign_in.create_token(ADMIN, NewToken("x", user=name)))[1]


def body(*, attached: bool = True) -> dict[str, Any]:
    return {**submission([b"true"], attached=attached), "cpus_milli": 0}


async def submitted(peer: Peer, *, attached: bool = True) -> str:
    """Submit a job, which waits for its runner, and return its id."""
    peer.send(frames.SUBMIT, body(attached=attached))
    kind, told = (await peer.answers(frames.ACCEPTED, frames.ERROR))[-1]
    assert kind == frames.ACCEPTED, told
    return str(told["job"])


@pytest.mark.parametrize("how", CHANGES)
def test_the_client_of_a_job_is_cut_off_and_the_job_has_lost_it(tmp_path: Path, how: str) -> None:
    change, code = CHANGES[how]

    async def check(tcp: Tcp) -> None:
        made = tcp.made
        token, bens = [await token_of(made, name) for name in ("anna", "ben")]
        anna, ben = await tcp.hello(token), await tcp.hello(bens)
        job = made.execution.live.find(await submitted(anna))
        assert job is not None
        assert job.attached
        await change(made, token)
        kind, told = (await anna.answers(frames.ERROR))[-1]
        assert (kind, told["code"]) == (frames.ERROR, code)
        assert await anna.all() == b""
        assert job.client is None
        assert job.client_gone is not None  # as of any client that went without a word
        await submitted(ben)

    with_tcp(tmp_path, check)


@pytest.mark.parametrize("role", ["client", "exec"])
@pytest.mark.parametrize("how", sorted(CHANGES.keys() - {"another role"}))
def test_a_connection_without_a_job_is_cut_off_too(tmp_path: Path, role: str, how: str) -> None:
    change, code = CHANGES[how]

    async def check(tcp: Tcp) -> None:
        token = await token_of(tcp.made, "anna")
        anna = await tcp.hello(token, role)
        while not tcp.made.access.visitors:
            await tcp.turn()
        await change(tcp.made, token)
        assert (await anna.answers(frames.ERROR))[-1][1]["code"] == code
        assert await anna.all() == b""

    with_tcp(tmp_path, check)


def test_a_viewer_of_late_submits_nothing(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        anna = await tcp.hello(await token_of(tcp.made, "anna"))
        await submitted(anna, attached=False)
        await tcp.made.access.projects.set_member(ADMIN, "default", "anna", Role.VIEWER)
        with pytest.raises(AssertionError, match="only members run jobs"):
            await submitted(anna, attached=False)

    with_tcp(tmp_path, check)


@pytest.mark.parametrize("kind", [frames.SUBMIT, frames.ATTACH])
def test_another_process_s_change_counts_at_the_next_request(tmp_path: Path, kind: int) -> None:
    async def check(tcp: Tcp) -> None:
        token = await token_of(tcp.made, "anna")
        first, anna = [await tcp.hello(token) for _ in range(2)]
        job = await submitted(first)
        await tcp.made.database.write(lambda c: queries.revoke_credential(c, id_of(token), 1))
        attach = {"job": job, "attempt": 1, "stdout": 0, "stderr": 0}
        anna.send(kind, body() if kind == frames.SUBMIT else attach)
        assert (await anna.answers(frames.ERROR))[-1][1]["code"] == "not_signed_in"
        assert len(await tcp.made.ids()) == 1

    with_tcp(tmp_path, check, sessions=SessionLimits(known_seconds=0))


@pytest.mark.parametrize("path", ["logs?follow=true", "events?follow=true", "wait?seconds=300"])
@pytest.mark.parametrize("how", sorted(CHANGES.keys() - {"another role"}))
def test_who_follows_is_cut_off(tmp_path: Path, path: str, how: str) -> None:
    change, _ = CHANGES[how]

    async def check(tcp: Tcp) -> None:
        made = tcp.made
        token, bens = [await token_of(made, name) for name in ("anna", "ben")]
        job = await submitted(await tcp.hello(bens), attached=False)
        head = f"GET /api/v1/jobs/{job}/{path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer "
        followers = [await tcp.say(f"{head}{each}\r\n\r\n".encode()) for each in (token, bens)]
        while len(made.access.visitors) < 3:
            await tcp.turn()
        await change(made, token)
        assert not (await followers[0].all()).endswith(b"0\r\n\r\n")
        assert [each.who.owner for each in made.access.visitors].count("ben") == 2
        async with tcp.http(token) as anna:
            answer = await anna.get(f"/api/v1/jobs/{job}/{path}")
            assert answer.status_code in (401, 404)

    with_tcp(tmp_path, check)


def test_who_changes_their_own_access_gets_an_answer(tmp_path: Path) -> None:
    async def check(tcp: Tcp) -> None:
        async with tcp.http(await token_of(tcp.made, "anna")) as anna:
            assert (await anna.post("/api/v1/sign-out")).status_code == 204
            assert (await anna.get("/api/v1/me")).status_code == 401

    with_tcp(tmp_path, check)


def test_whom_nobody_can_tell_may_come_again(tmp_path: Path) -> None:
    """A database that does not answer is no reason to tell somebody that they are signed out."""

    async def check(tcp: Tcp) -> None:
        anna = await tcp.hello(await token_of(tcp.made, "anna"))
        await submitted(anna)
        (session,) = tcp.made.access.visitors
        session.turn_out(errors.Unavailable("the database does not answer"))
        assert await anna.all() == b""

    with_tcp(tmp_path, check)

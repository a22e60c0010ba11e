"""Guessed and known ids, by every route of the API's document, by WebSocket and by frames.

What each credential may see in the application itself is ``tests/server/test_scoping.py``; this is
the whole server, with every way in.
"""

import json
import socket
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.hostile.agent import join
from tests.hostile.team import Team, submit
from tests.server.test_scoping import BODIES, LOOKING, OWN, SERVER_ADMIN
from tests.waiting import until
from updraft.server.api.guard import PUBLIC
from updraft.wire import frames

SETTINGS = "requests_per_second = 100000"
SECRET = "the-secret-of-default"
PREFIX = "/api/v1"
ENDS_ITSELF = "POST /sign-out"


@pytest.fixture(scope="module")
def job(server: Team) -> Iterator[str]:
    """The id of ben's job, which says its secret wherever it is shown."""
    with server.session("ben") as client:
        client.send(submit("sh", "-c", f"echo {SECRET}; sleep 100", stdin=False, name=SECRET))
        told = dict(client.answers(frames.STARTED))
        yield told[frames.ACCEPTED]["job"]


@pytest.fixture(scope="module")
def routes(server: Team) -> list[tuple[str, str, str]]:
    """The name, method and path of each route that is not public."""
    with server.http("anna") as client:
        document = client.get("/openapi.json").json()
    return [
        (f"{method} {path.removeprefix(PREFIX)}", method, path)
        for path, operations in document["paths"].items()
        for method in map(str.upper, operations)
        if (method, path) not in PUBLIC
    ]


@pytest.fixture(scope="module")
def bad(server: Team) -> dict[str, str]:
    """Credentials that are good for nothing here."""
    good = server.tokens["ben"]
    revoked = server.owner("token", "create", "gone", "--user", "ben").strip()
    server.owner("token", "revoke", revoked.split("_")[2])
    expired = server.owner("token", "create", "over", "--user", "ben", "--expires", "1s").strip()
    runner = join(server, "far")
    bad = {
        "anonymous": "", "guessed": f"updraft_user_{good.split('_')[2]}_{'0' * 64}",
        "revoked": revoked, "expired": expired, "a runner's": runner, "a join token": "",
        "another scheme's": good, "a task's that has ended": ended_task(server),
        "a task's, guessed": f"updraft_task_zzzzzzzzzz-1_{'0' * 64}",
    }  # fmt: skip
    bad["a join token"] = server.join_token()
    with server.http() as client:
        headers = {"Authorization": f"Bearer {expired}"}
        until(lambda: client.get("/me", headers=headers).status_code == 401, "its expiry")
    return bad


@pytest.fixture(scope="module")
def mallory(server: Team) -> str:
    """An admin of another project."""
    server.add("mallory")
    server.owner("project", "create", "blue")
    server.owner("project", "members", "blue", "--add", "mallory", "--role", "admin")
    return "mallory"


BAD = [
    "anonymous", "guessed", "revoked", "expired", "a runner's", "a join token", "another scheme's",
    "a task's that has ended", "a task's, guessed",
]  # fmt: skip


def ended_task(server: Team) -> str:
    """The token that a task of ben's had."""
    with server.session("ben") as client:
        client.send(submit("sh", "-c", "printf %s $UPDRAFT_TOKEN", stdin=False))
        told = client.received(frames.ENDED)
    said = b"".join(bytes(data) for kind, _, _, data in told if kind == frames.DATA)
    assert said.startswith(b"updraft_task_")
    return said.decode()


def filled(path: str, job: str, thing: str = "default", user: str = "ben") -> str:
    made = path.format(
        job=job, stream="stdout", user=user, project=thing, token="0" * 12, runner="local",
        pool="local", wheel="x", index=0,
    )  # fmt: skip
    return f"{made}?seconds=0" if path.endswith("/wait") else made


def headers_of(server: Team, bad: dict[str, str], kind: str) -> dict[str, str]:
    scheme = "Basic" if kind == "another scheme's" else "Bearer"
    return {"Authorization": f"{scheme} {bad[kind]}"} if bad[kind] else {}


@pytest.mark.parametrize("kind", BAD)
def test_no_route_answers_a_credential_that_is_none(
    server: Team, job: str, routes: list[tuple[str, str, str]], bad: dict[str, str], kind: str
) -> None:
    said: set[str] = set()
    with server.http(**headers_of(server, bad, kind)) as client:
        for name, method, path in routes:
            for every in (method, "HEAD", "OPTIONS", "PATCH"):
                body = BODIES.get(name) if every == method else None
                answer = client.request(every, f"{server.url}{filled(path, job)}", json=body)
                assert answer.status_code == 401, f"{every} of {name}"
                said.add(answer.text)
    assert len(said - {""}) == 1
    assert SECRET not in said.pop()


def upgrade(server: Team, path: str, credential: str, origin: str) -> bytes:
    """Ask for a WebSocket; return all that is answered."""
    with server.tls() as peer:
        peer.sendall(
            f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade, close\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            f"Sec-WebSocket-Version: 13\r\n{origin}{credential}\r\n".encode()
        )
        peer.settimeout(5)
        said = b""
        with suppress(OSError):
            while b"\r\n" not in said and (part := peer.recv(1 << 16)):
                said += part
        with suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
    return said


@pytest.mark.parametrize("kind", ["anonymous", "revoked", "expired", "a task's that has ended"])
def test_no_route_is_a_web_socket_for_a_credential_that_is_none(
    server: Team, job: str, routes: list[tuple[str, str, str]], bad: dict[str, str], kind: str
) -> None:
    given = headers_of(server, bad, kind)
    credential = "".join(f"{name}: {value}\r\n" for name, value in given.items())
    for path in sorted({path for _, _, path in routes}):
        said = upgrade(server, filled(path, job), credential, f"Origin: {server.url}\r\n")
        assert said.startswith(b"HTTP/1.1 401 "), path


def test_no_route_is_a_web_socket_for_another_site(
    server: Team, job: str, routes: list[tuple[str, str, str]]
) -> None:
    """Nor, today, for anybody: who adds one has the guard's word on it, and this test."""
    credential = f"Authorization: Bearer {server.tokens['vera']}\r\n"
    for path in ("/login", *sorted({path for name, _, path in routes if name in LOOKING | OWN})):
        where = filled(path, job)
        said = upgrade(server, where, credential, "Origin: https://evil.example\r\n")
        assert said.startswith(b"HTTP/1.1 "), path
        assert not said.startswith(b"HTTP/1.1 101"), path
        assert b"access-control" not in said.lower()


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        (kind, role)
        for kind in BAD
        for role in ("client", "exec", "agent", "agent-data", "admin")
        # Frames have no schemes, and a runner's token is an agent's.
        if kind != "another scheme's" and (kind, role) != ("a runner's", "agent")
    ],
)
def test_no_frames_are_taken_of_a_credential_that_is_none(
    server: Team, job: str, bad: dict[str, str], kind: str, role: str
) -> None:
    server.tokens["bad"] = bad[kind]
    with server.session("bad", role, session="x") as peer:
        peer.send(frames.message(frames.ATTACH, attach(job)))
        answers = peer.answers()
        assert [code for code, _ in answers] == [frames.ERROR]
        assert SECRET not in str(answers)


def attach(job: str) -> dict[str, Any]:
    return {"job": job, "attempt": 1, "stdout": 0, "stderr": 0}


def same(answer: httpx.Response, told: str, guessed: str) -> tuple[int, str]:
    """What an answer says, whatever it was asked about."""
    return answer.status_code, answer.text.replace(told, guessed)


def test_another_project_cannot_tell_an_id_from_a_guess(
    server: Team, job: str, routes: list[tuple[str, str, str]], mallory: str
) -> None:
    guess = "zzzzzzzzzz"
    with server.http(mallory) as client:
        for name, method, path in routes:
            if name == ENDS_ITSELF:
                continue
            body = BODIES.get(name)
            if body is not None and "key" in body:
                body = {**body, "key": f"{body['key']}-{method}"}
            known = client.request(method, f"{server.url}{filled(path, job)}", json=body)
            assert SECRET not in known.text, name
            assert job not in known.text.replace(f"'{job}'", ""), name
            if name in SERVER_ADMIN:
                assert known.status_code == 403, name
            elif "{job}" in name or "{project}" in name or "{token}" in name:
                assert known.status_code == 404, name
            else:
                assert name in OWN | {"POST /jobs"}, f"{name} has no rule here"
            if "{job}" in name or "{project}" in name:
                where = filled(path, guess, guess, guess)
                guessed = client.request(method, f"{server.url}{where}", json=body)
                for each in (job, "default", "ben"):
                    known_text = same(known, each, guess)
                    known = httpx.Response(known_text[0], text=known_text[1])
                assert same(known, guess, guess) == (guessed.status_code, guessed.text), name
        for length in range(1, len(job)):  # ids may be cut short: by those who see the job
            shown = client.get(f"/jobs/{job[:length]}").text
            assert SECRET not in shown
            assert job not in shown


def test_another_project_gets_nothing_by_frames(server: Team, job: str, mallory: str) -> None:
    order = {"argv": [b"id"], "set_environment": [], "stdin": False, "tty": None}
    for role, kind, body in (
        ("client", frames.ATTACH, attach(job)), ("exec", frames.EXEC, {"job": job, **order}),
    ):  # fmt: skip
        told = []
        for each in (job, "zzzzzzzzzz"):
            with server.session(mallory, role) as peer:
                peer.send(frames.message(kind, {**body, "job": each}))
                told.append(str(peer.answers(frames.ERROR)).replace(each, "ID"))
        assert told[0] == told[1]
        assert "not_found" in told[0]


def test_a_viewer_changes_nothing_by_any_route(
    server: Team, job: str, routes: list[tuple[str, str, str]]
) -> None:
    def state() -> str:
        with server.http("anna") as client:
            shown = client.get(f"/jobs/{job}").json()
            members = client.get("/projects/default/members").json()
            users = client.get("/users").json()
        return json.dumps([shown["state"], shown["wanted"], shown["time_limit_seconds"], members,
                           users, shown["linked"]])  # fmt: skip

    before = state()
    with server.http("vera") as client:
        for name, method, path in routes:
            if name == ENDS_ITSELF:
                continue
            where = f"{server.url}{filled(path, job)}"
            answer = client.request(method, where, json=BODIES.get(name))
            if name in LOOKING | OWN:
                assert answer.status_code in (200, 201), name
            else:
                assert answer.status_code in (403, 404), name
                assert SECRET not in answer.text, name
    assert state() == before

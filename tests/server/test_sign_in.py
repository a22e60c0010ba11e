"""Signing in: passwords, sessions, tokens, which project one is in, and the device flow."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.server.api import Api, with_api
from updraft import errors
from updraft.model.access import Principal, Role, Scope
from updraft.model.limits import Limits
from updraft.server.services.accounts import NewUser
from updraft.server.services.sign_in import NewToken, SessionLimits, SignIn
from updraft.store.jobs import drop_output
from updraft.store.tables import attempts, credentials, users

ADMIN = Principal("uid:4000000", server_admin=True)
PASSWORD = "correct horse battery"
DAY_NS = 86_400_000_000_000

Check = Callable[[Api], Awaitable[None]]


async def add(made: Api, name: str, *projects: str, role: Role = Role.MEMBER, **more: Any) -> None:
    await made.access.accounts.create(ADMIN, NewUser(name, **more))
    for project in projects:
        if not made.access.projects.exists(project):
            await made.access.projects.create(ADMIN, project)
        await made.access.projects.set_member(ADMIN, project, name, role)


async def token(made: Api, user: str, scope: Scope = Scope.ADMIN, **more: Any) -> str:
    new = NewToken("test", scope, user=user, **more)
    return (await made.access.sign_in.create_token(ADMIN, new))[1]


def error_of(answer: Any) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["message"]


def set_clock(made: Api, ahead_ns: int) -> None:
    made.access.sign_in._clock_ns = lambda: time.time_ns() + ahead_ns


def stop_clock(made: Api) -> None:
    """Let no time pass for those who have to wait, however slow the machine is."""
    sign_in = made.access.sign_in
    for backoff in (sign_in._tries, sign_in._names, sign_in._peers):
        backoff._clock = lambda: 1000.0


# -- passwords


def test_a_password_begins_a_session_and_nothing_of_either_is_stored(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)
        body = {"name": "anna", "password": PASSWORD, "client": "laptop"}
        answer = await made.send("POST", "/sign-in", json=body)
        assert answer.status_code == 201
        text = answer.json()["token"]
        me = (await made.send("GET", "/me", text)).json()
        assert (me["name"], me["project"], me["role"], me["scope"]) == (
            "anna", "default", "member", "admin",
        )  # fmt: skip
        (session,) = (await made.send("GET", "/tokens", text)).json()["tokens"]
        assert (session["kind"], session["name"]) == ("session", "laptop")
        assert (await made.send("POST", "/sign-out", text)).status_code == 204
        assert (await made.send("GET", "/me", text)).status_code == 401
        stored = b"".join(path.read_bytes() for path in tmp_path.glob("updraft.db*"))
        assert text.split("_")[3].encode() not in stored
        assert PASSWORD.encode() not in stored
        assert b"$argon2id$" in stored

    with_api(tmp_path, check)


@pytest.mark.parametrize("wrong", ["name", "password", "disabled", "none", "removed"])
def test_whatever_is_wrong_with_a_sign_in_the_answer_is_one(tmp_path: Path, wrong: str) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", password=None if wrong == "none" else PASSWORD)
        if wrong == "disabled":
            await made.access.accounts.set_disabled(ADMIN, "anna", True)
        elif wrong == "removed":
            await made.access.accounts.remove(ADMIN, "anna")
        name = "nobody" if wrong == "name" else "anna"
        password = PASSWORD + "x" if wrong == "password" else PASSWORD
        answer = await made.send("POST", "/sign-in", json={"name": name, "password": password})
        assert error_of(answer) == (401, "this is not a user's name with their password")

    with_api(tmp_path, check)


def test_an_unknown_name_costs_as_much_as_a_wrong_password(tmp_path: Path) -> None:
    """Not measured by the clock, which a busy machine bends: the same hash is computed."""
    from updraft.server.auth import passwords

    counted: list[str] = []

    async def check(made: Api) -> None:
        await add(made, "anna", password=PASSWORD)
        known = made.access.sign_in._passwords
        await known.matches(None, "x")  # the stand-in is made
        original = passwords._matches

        def counting(stored: str, password: str) -> bool:
            counted.append(stored.rpartition("$")[0].rpartition("$")[0])
            return original(stored, password)

        passwords._matches = counting
        try:
            for name in ("anna", "nobody"):
                await made.send("POST", "/sign-in", json={"name": name, "password": "wrong one"})
        finally:
            passwords._matches = original

    with_api(tmp_path, check)
    assert len(counted) == 2
    assert counted[0] == counted[1] == "$argon2id$v=19$m=65536,t=3,p=1"


def test_guessing_has_to_wait_by_name_and_by_peer(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", password=PASSWORD)
        stop_clock(made)

        async def attempt(name: str, password: str, peer: str) -> int:
            body = {"name": name, "password": password}
            return (await made.send("POST", "/sign-in", json=body, peer=peer)).status_code

        codes = [await attempt("anna", "wrong one", "192.0.2.1") for _ in range(7)]
        assert codes == [401] * 5 + [429] * 2
        # The right password has to wait too, or it would tell that it is right; elsewhere it is as
        # good as ever, or any stranger could keep anybody out.
        assert await attempt("anna", PASSWORD, "192.0.2.1") == 429
        assert await attempt("anna", PASSWORD, "192.0.2.99") == 201
        for _ in range(48):  # each from somewhere else
            made.access.sign_in._names.failed("anna")
        many = [await attempt("anna", "wrong one", f"203.0.113.{n}") for n in range(3)]
        assert many == [401] * 2 + [429]
        others = [await attempt(f"user-{n}", "wrong one", "198.51.100.1") for n in range(21)]
        assert others == [401] * 20 + [429]

    with_api(tmp_path, check)


def test_ones_own_password_takes_the_current_one_and_ends_other_sessions(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)
        body = {"name": "anna", "password": PASSWORD}
        mine, other = [
            (await made.send("POST", "/sign-in", json=body)).json()["token"] for _ in range(2)
        ]
        path, new = "/users/anna/password", "another long password"
        answer = await made.send("PUT", path, mine, json={"password": new})
        assert error_of(answer) == (403, "current: this is not your password")
        answer = await made.send("PUT", path, mine, json={"password": "short", "current": PASSWORD})
        assert answer.status_code == 400
        assert "short" not in answer.text
        answer = await made.send("PUT", path, mine, json={"password": new, "current": PASSWORD})
        assert answer.status_code == 204
        assert (await made.send("GET", "/me", mine)).status_code == 200
        assert (await made.send("GET", "/me", other)).status_code == 401

    with_api(tmp_path, check)


# -- sessions and tokens


def test_sessions_end_unused_and_at_last(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)

        async def signed_in() -> str:
            body = {"name": "anna", "password": PASSWORD}
            text: str = (await made.send("POST", "/sign-in", json=body)).json()["token"]
            return text

        used, unused = await signed_in(), await signed_in()
        for day in range(1, 10):
            set_clock(made, day * DAY_NS)
            assert (await made.send("GET", "/me", used)).status_code == (200 if day < 8 else 401)
            if day == 3:
                made.access.sign_in.forget()
                assert (await made.send("GET", "/me", unused)).status_code == 401

    with_api(tmp_path, check, SessionLimits(idle_seconds=2 * 86400, absolute_seconds=8 * 86400))


def test_the_last_use_is_written_at_most_once_a_minute(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default")
        text = await token(made, "anna")
        identity = text.split("_")[2]

        async def last_used() -> int | None:
            await made.access.close()
            row = await made.database.read(
                lambda c: c.execute(credentials.select().where(credentials.c.id == identity)).one()
            )
            used: int | None = row.last_used_ns
            return used

        assert await last_used() is None
        await made.send("GET", "/me", text)
        first = await last_used()
        assert first is not None
        await made.send("GET", "/me", text)
        assert await last_used() == first
        set_clock(made, 61 * 10**9)
        await made.send("GET", "/me", text)
        assert (await last_used() or 0) > first

    with_api(tmp_path, check)


def test_many_requests_cost_one_look_and_a_revocation_counts_at_once(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default")
        text = await token(made, "anna")
        sign_in: SignIn = made.access.sign_in
        looks = 0
        look_up = sign_in._look_up

        async def counted(*arguments: Any) -> Any:
            nonlocal looks
            looks += 1
            return await look_up(*arguments)

        sign_in._look_up = counted  # type: ignore[method-assign,assignment]
        for _ in range(200):
            assert (await sign_in.authenticate(text, None)).owner == "anna"
        assert looks == 1
        await sign_in.revoke(ADMIN, text.split("_")[2])
        with pytest.raises(errors.NotSignedIn):
            await sign_in.authenticate(text, None)

    with_api(tmp_path, check)


def test_what_another_process_revokes_is_seen_within_the_limit(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default")
        text = await token(made, "anna")
        await made.access.authenticate(text, None)
        gone = users.update().values(disabled=True)
        await made.database.write(lambda c: c.execute(gone).rowcount)
        with pytest.raises(errors.NotSignedIn):
            await made.access.authenticate(text, None)

    with_api(tmp_path, check, SessionLimits(known_seconds=0))


def test_a_revocation_while_a_token_is_looked_up_is_not_overlooked(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default")
        text = await token(made, "anna")
        sign_in = made.access.sign_in
        good = sign_in._good

        async def slow(*arguments: Any) -> Any:
            row = await good(*arguments)
            sign_in._good = good  # type: ignore[method-assign]
            await sign_in.revoke(ADMIN, text.split("_")[2])
            return row

        sign_in._good = slow  # type: ignore[method-assign,assignment]
        for _ in range(2):  # though it was good when it was looked at first
            with pytest.raises(errors.NotSignedIn):
                await sign_in.authenticate(text, None)

    with_api(tmp_path, check)


def test_no_token_makes_one_that_may_do_more(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "red", "blue")
        await add(made, "sue", "red", server_admin=True)
        for scope in (Scope.READ, Scope.RUN):
            weak = await token(made, "anna", scope, project="red")
            assert (await made.send("POST", "/tokens", weak, json={"name": "x"})).status_code == 403
        confined = await token(made, "sue", project="red")
        for body in ({"name": "x", "scope": "admin"}, {"name": "x", "project": "blue"}):
            assert (await made.send("POST", "/tokens", confined, json=body)).status_code == 403
        allowed = {"name": "x", "project": "red"}
        assert (await made.send("POST", "/tokens", confined, json=allowed)).status_code == 201
        full = await token(made, "anna")
        theirs = {"name": "x", "user": "sue"}
        assert (await made.send("POST", "/tokens", full, json=theirs)).status_code == 403
        elsewhere = {"name": "x", "project": "nosuch"}
        assert (await made.send("POST", "/tokens", full, json=elsewhere)).status_code == 404

    with_api(tmp_path, check)


@pytest.mark.parametrize("odd", ["a\0b", "\ud800", "é", "", "x" * 200, "updraft_user_\0_x"])
def test_odd_text_is_no_name_no_token_and_no_failure(tmp_path: Path, odd: str) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", server_admin=True)
        text = await token(made, "anna")
        from urllib.parse import quote

        path = quote(odd, safe="", errors="surrogatepass") or "%20"
        asked: list[tuple[str, str, Any]] = [
            ("POST", "/sign-in", {"name": odd, "password": odd}),
            ("POST", "/device/token", {"device_code": odd}),
            ("POST", "/tokens", {"name": "x", "project": odd or "\0", "user": odd or "\0"}),
            ("POST", "/users", {"name": odd}),
            ("POST", "/projects", {"name": odd}),
            ("GET", f"/users/{path}", None),
            ("GET", f"/projects/{path}", None),
            ("PUT", f"/projects/default/members/{path}", {"role": "viewer"}),
            ("DELETE", f"/tokens/{path}", None),
            ("GET", f"/audit?user={path}", None),
            ("GET", f"/jobs?owner={path}", None),
            ("GET", f"/tokens?user={path}", None),
        ]
        for method, where, body in asked:
            content = None if body is None else json.dumps(body)
            headers = {"Content-Type": "application/json"}
            answer = await made.send(method, where, text, content=content, headers=headers)
            assert answer.status_code < 500, (method, where, answer.text)

    with_api(tmp_path, check)


# -- which project


def test_the_project_is_the_asked_one_the_token_s_the_only_one_or_default(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "one", "red")
        await add(made, "two", "red", "blue")
        await add(made, "three", "red", "default")
        await add(made, "none")
        await add(made, "admin", server_admin=True)
        await add(made, "member", "red", server_admin=True)
        await add(made, "busy", "red", "blue", server_admin=True)

        async def chosen(user: str, asked: str = "", **more: Any) -> str:
            text = await token(made, user, **more)
            answer = await made.send("GET", "/me", text, asked)
            jobs = await made.send("GET", "/jobs", text, asked)
            if jobs.is_success:
                return str(answer.json()["project"])
            if not asked:  # what is not about a project can be asked all the same
                assert answer.json()["project"] is None
                assert (await made.send("GET", "/projects", text)).is_success
            answer = jobs
            return f"{answer.status_code} {answer.json()['error']['message']}"

        assert await chosen("one") == "red"
        assert await chosen("two", project="blue") == "blue"
        assert await chosen("two", "red") == "red"
        assert await chosen("three") == "default"
        assert await chosen("admin") == "default"
        assert await chosen("admin", "blue") == "blue"
        # Into which projects somebody put a server admin moves none of their jobs.
        assert await chosen("member") == await chosen("busy") == "default"
        assert await chosen("member", project="red") == "red"
        assert await chosen("two") == (
            "400 you are in several projects; name one of blue, red: UPDRAFT_PROJECT=NAME"
        )
        assert await chosen("none") == ("404 you are in no project; ask an admin of one to add you")
        for asked in ("blue", "nosuch"):
            assert await chosen("one", asked) == (
                f"404 there is no project {asked!r}; see: updraft project list"
            )
        assert await chosen("two", "red", project="blue") == (
            "404 there is no project 'red'; see: updraft project list"
        )

    with_api(tmp_path, check)


# -- limits


def test_limits_that_no_waiting_mends_refuse_the_submission(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "red")
        text = await token(made, "anna")
        projects = made.access.projects

        async def submit(key: str, **fields: Any) -> Any:
            body = {"key": key, "argv": ["true"], "directory": "/", **fields}
            return await made.send("POST", "/jobs", text, json=body)

        first = await submit("the-first-key")
        assert first.status_code == 201
        await projects.set_limits(ADMIN, "red", Limits(gpus=0))
        assert error_of(await submit("the-next-key", gpus=1)) == (
            400,
            "this job alone is above a limit of project red, with 0 of 0 GPUs used; ask for less",
        )
        await projects.set_limits(ADMIN, "red", Limits())
        await projects.set_member_limits(ADMIN, "red", "anna", Limits(stored_bytes=3 << 20))
        assert made.access.limits_of("red", "anna") == (Limits(), Limits(stored_bytes=3 << 20))
        assert made.access.limits_of("red", "nobody") == (Limits(), Limits())
        live = made.execution.live.find(first.json()["id"])
        assert live is not None
        assert (await submit("another-key")).status_code == 201
        written = {
            "job_serial": live.serial, "task_index": 0, "number": 1, "state": "ENDED",
            "runner": "local", "gpu_ids": "[]", "granted_ns": 0, "message": "",
            "stdout_bytes": 3 << 20, "stderr_bytes": 0,
        }  # fmt: skip
        await made.database.write(lambda c: c.execute(attempts.insert(), written).rowcount)
        made.execution.live.stored.add(live.party, (3 << 20, 0))
        code, message = error_of(await submit("the-third-key"))
        assert code == 409
        assert message.startswith("you in project red: 3 of 3 MiB of output are stored; ")
        # As retention does.
        await made.database.write(lambda c: drop_output(c, [live.serial]))
        await made.execution.live.stored.count_anew(made.database)
        assert (await submit("a-later-key")).status_code == 201
        await projects.set_member_limits(ADMIN, "red", "anna", Limits())
        await projects.set_archived(ADMIN, "red", True)
        assert error_of(await submit("the-fourth-key")) == (
            409, "project red is archived and takes no more jobs",
        )  # fmt: skip
        assert (await made.send("GET", "/jobs", text)).status_code == 200

    with_api(tmp_path, check)


def test_a_limit_that_was_reached_meanwhile_does_not_deny_a_stored_job(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default")
        text = await token(made, "anna")
        body = {"key": "the-only-key", "argv": ["true"], "directory": "/", "gpus": 0}
        first = await made.send("POST", "/jobs", text, json=body)
        await made.access.projects.set_limits(ADMIN, "default", Limits(cpus_milli=0))
        again = await made.send("POST", "/jobs", text, json=body)
        assert again.json()["id"] == first.json()["id"]
        other = await made.send("POST", "/jobs", text, json={**body, "key": "another-key"})
        assert other.status_code == 400

    with_api(tmp_path, check)


# -- the device flow


def test_a_program_gets_its_session_once_and_only_after_the_user_confirmed(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)
        devices = made.access.devices
        now = 1000.0
        devices._clock = lambda: now
        asked = (await made.send("POST", "/device", json={"client": "laptop"})).json()
        assert asked["path"] == f"/login?code={asked['user_code']}"
        body = {"device_code": asked["device_code"]}

        async def poll() -> Any:
            return (await made.send("POST", "/device/token", json=body)).json()

        assert (await poll())["status"] == "pending"
        slower = await poll()
        assert (slower["status"], slower["interval_seconds"]) == ("slow_down", 10)
        now += 10
        assert (await poll())["status"] == "pending"
        user = await made.access.sign_in.check_password("anna", PASSWORD, "")
        waiting = devices.find(asked["user_code"].lower().replace("-", " "))
        assert waiting is not None
        devices.confirm(waiting, user)
        assert devices.find(asked["user_code"]) is None
        answers = await asyncio.gather(poll(), poll())
        assert sorted(each["status"] for each in answers) == ["done", "expired"]
        made_for = next(each["signed_in"] for each in answers if each["signed_in"])
        assert made_for["user"] == "anna"
        assert (await made.send("GET", "/me", made_for["token"])).status_code == 200

    with_api(tmp_path, check)


def test_codes_expire_can_be_denied_and_are_bounded_for_each_peer(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        devices = made.access.devices
        now = 1000.0
        devices._clock = lambda: now
        old = devices.ask("", "192.0.2.7")
        now += 601
        assert (await devices.poll(old.device_code, ""))[0] == "expired"
        assert devices.find(old.user_code) is None
        denied = devices.ask("", "192.0.2.7")
        waiting = devices.find(denied.user_code)
        assert waiting is not None
        devices.deny(waiting)
        assert (await devices.poll(denied.device_code, ""))[0] == "denied"
        assert (await devices.poll("nonsense", ""))[0] == "expired"
        for _ in range(20):
            devices.ask("", "192.0.2.7")
        with pytest.raises(errors.TooManyRequests):
            devices.ask("", "192.0.2.7")
        devices.ask("", "192.0.2.8")

    with_api(tmp_path, check)


@pytest.mark.parametrize("change", ["password", "disabled", "removed"])
def test_what_was_confirmed_before_access_changed_signs_nobody_in(
    tmp_path: Path, change: str
) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)
        devices, accounts = made.access.devices, made.access.accounts
        asked = devices.ask("laptop", "192.0.2.7")
        waiting = devices.find(asked.user_code)
        assert waiting is not None
        devices.confirm(waiting, (await accounts.show(ADMIN, "anna"))[0])
        match change:
            case "password":
                await accounts.set_password(ADMIN, "anna", "another long password")
            case "disabled":
                await accounts.set_disabled(ADMIN, "anna", True)
            case "removed":
                await accounts.remove(ADMIN, "anna")
        answer, signed_in, _ = await devices.poll(asked.device_code, "")
        assert (answer, signed_in) == ("denied", None)

    with_api(tmp_path, check)


def test_guessing_the_current_password_has_to_wait(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await add(made, "anna", "default", password=PASSWORD)
        made.access.accounts._guesses._clock = lambda: 1000.0
        text = await token(made, "anna")

        async def attempt(current: str) -> int:
            body = {"password": "another long password", "current": current}
            return (await made.send("PUT", "/users/anna/password", text, json=body)).status_code

        assert [await attempt("wrong one") for _ in range(6)] == [403] * 5 + [429]
        assert await attempt(PASSWORD) == 429

    with_api(tmp_path, check)

"""OpenID Connect against a provider that is a process of its own and signs for real."""

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

import httpx
import pytest

from tests.server.api import Api, with_api
from tests.server.oidc_provider import CLIENT_ID, CLIENT_SECRET
from tests.server.test_login_pages import ORIGIN, token_in
from updraft import errors
from updraft.model.access import Principal
from updraft.server.api.login_pages import SESSION_COOKIE
from updraft.server.services.accounts import NewUser
from updraft.server.services.oidc import Oidc, OidcSettings
from updraft.server.services.sign_in import NewToken
from updraft.store import access as queries

ADMIN = Principal("uid:4000000", server_admin=True)


@pytest.fixture(scope="module")
def issuer() -> Iterator[str]:
    """The address of a running provider."""
    command = [sys.executable, "-m", "tests.server.oidc_provider"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        yield f"http://127.0.0.1:{port}"
        process.terminate()


def settings(issuer: str, **more: Any) -> OidcSettings:
    values = {"domains": ("example.org",), "project": "default", "name": "Example", **more}
    return OidcSettings(issuer, CLIENT_ID, CLIENT_SECRET, "https://updraft.test", **values)


async def go(browser: httpx.AsyncClient, wrong: str | None = None, **claims: Any) -> httpx.Response:
    """Sign in by the button, as whoever the claims say; return the answer to the way back."""
    page = await browser.get("/login?code=BCDF-GHJK")
    form = {"token": token_in(page), "code": "BCDF-GHJK"}
    answer = await browser.post("/login/oidc", data=form, headers=ORIGIN)
    assert answer.status_code == 200, answer.text
    found = re.search(r"url=([^']+)'", answer.text)
    assert found is not None
    address = found[1].replace("&amp;", "&")
    told = quote(json.dumps({"claims": claims, "wrong": wrong}))
    async with httpx.AsyncClient(trust_env=False) as outside:
        sent = await outside.get(f"{address}&as={told}")
    back = urlsplit(sent.headers["location"])
    assert back.scheme + "://" + back.netloc == "https://updraft.test"
    return await browser.get(f"{back.path}?{back.query}")


ANNA: dict[str, Any] = {
    "sub": "anna-1",
    "email": "Anna.A@example.org",
    "email_verified": True,
    "name": "Anna A.",
}


def test_whoever_has_an_address_of_ours_becomes_a_user_and_stays_the_same(
    tmp_path: Path, issuer: str
) -> None:
    async def check(made: Api) -> None:
        for _ in range(2):
            async with made.browser() as browser:
                answer = await go(browser, **ANNA)
                assert answer.status_code == 303, answer.text
                assert answer.headers["location"] == "/login?code=BCDF-GHJK"
                assert "signed in as <b>anna.a</b>" in (await browser.get("/login")).text
        (user,) = (await made.ask("GET", "/users", ADMIN)).json()["users"]
        assert (user["name"], user["display"], user["oidc"], user["password"]) == (
            "anna.a", "Anna A.", True, False,
        )  # fmt: skip
        shown = (await made.ask("GET", "/users/anna.a", ADMIN)).json()
        assert shown["projects"] == [{"project": "default", "role": "member"}]
        made_token = await made.access.sign_in.create_token(ADMIN, NewToken("x", user="anna.a"))
        found = (await made.send("GET", "/projects", made_token[1])).json()["projects"]
        assert [each["name"] for each in found] == ["default"]
        # A namesake is somebody else.
        async with made.browser() as browser:
            await go(browser, **{**ANNA, "sub": "anna-2"})
            assert "signed in as <b>anna.a-2</b>" in (await browser.get("/login")).text

    with_api(tmp_path, check, oidc=settings(issuer))


@pytest.mark.parametrize(
    "claims",
    [
        {**ANNA, "email_verified": False},
        {**ANNA, "email_verified": "true"},
        {**ANNA, "email": "anna@example.org.evil.test"},
        {**ANNA, "email": "anna@evil.test"},
        {"sub": "anna-1"},
        {"sub": "anna-1", "groups": "staff-not"},
        {"sub": "anna-1", "groups": ["guests"]},
    ],
)
def test_nobody_else_becomes_a_user(tmp_path: Path, issuer: str, claims: dict[str, Any]) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            answer = await go(browser, **claims)
            assert answer.status_code == 403
            assert "you are not a user of this server; ask its admin" in answer.text
            assert SESSION_COOKIE not in browser.cookies
        assert (await made.ask("GET", "/users", ADMIN)).json()["users"] == []

    with_api(tmp_path, check, oidc=settings(issuer, groups=("staff",)))


def test_a_group_lets_in_and_an_admins_user_is_linked_by_a_verified_address(
    tmp_path: Path, issuer: str
) -> None:
    async def check(made: Api) -> None:
        await made.access.accounts.create(ADMIN, NewUser("anna", email="anna@home.test"))
        async with made.browser() as browser:
            await go(browser, sub="a", email="Anna@home.test", email_verified=True)
            assert "signed in as <b>anna</b>" in (await browser.get("/login")).text
        async with made.browser() as browser:  # linked now: the address decides no more
            answer = await go(browser, sub="b", email="anna@home.test", email_verified=True)
            assert answer.status_code == 403
        async with made.browser() as browser:
            await go(browser, sub="c", groups=["x", "staff"], preferred_username="postgres")
            assert re.search("signed in as <b>user-[0-9a-f]{8}</b>", await login_page(browser))
        await made.access.accounts.set_disabled(ADMIN, "anna", True)
        async with made.browser() as browser:
            answer = await go(browser, sub="a", email="Anna@home.test", email_verified=True)
            assert answer.status_code == 403

    with_api(tmp_path, check, oidc=settings(issuer, groups=("staff",)))


async def login_page(browser: httpx.AsyncClient) -> str:
    return (await browser.get("/login")).text


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": "postgres"}, "user-[0-9a-f]{8}"),
        ({"email": "postgres@example.org"}, "user-[0-9a-f]{8}"),
        ({"email": "postgres@home.test", "email_verified": True}, "postgres-home.test"),
        ({"email": "ann@Example.org", "email_verified": True}, "ann"),
        ({"email": "boss@example.org", "email_verified": True}, "boss-2"),
    ],
)
def test_nobody_chooses_their_name_themselves(
    tmp_path: Path, issuer: str, claims: dict[str, Any], name: str
) -> None:
    async def check(made: Api) -> None:
        await made.access.accounts.create(ADMIN, NewUser("boss"))
        async with made.browser() as browser:
            await go(browser, sub="c", groups=["staff"], **claims)
            assert re.search(f"signed in as <b>{name}</b>", await login_page(browser))

    with_api(tmp_path, check, oidc=settings(issuer, groups=("staff",)))


@pytest.mark.parametrize(
    ("uid", "said"),
    [
        ("ann.b", "signed in as <b>ann.b</b>"),
        (None, "Example says no uid of you that can be a user&#x27;s name; ask its admin"),
        ("Ann B", "Example says no uid of you that can be a user&#x27;s name; ask its admin"),
        (["boss"], "Example says no uid of you that can be a user&#x27;s name; ask its admin"),
        ("boss", "boss is the name of another user of this server, or was; ask its admin"),
    ],
)
def test_a_claim_that_the_admin_names_is_the_name_as_it_is_or_nobody_is_let_in(
    tmp_path: Path, issuer: str, uid: object, said: str
) -> None:
    async def check(made: Api) -> None:
        await made.access.accounts.create(ADMIN, NewUser("boss"))
        async with made.browser() as browser:
            answer = await go(browser, **ANNA, uid=uid)
            assert said in (answer.text + await login_page(browser))
        users = (await made.ask("GET", "/users", ADMIN)).json()["users"]
        assert {user["name"] for user in users} == {"boss", *(["ann.b"] if uid == "ann.b" else [])}

    with_api(tmp_path, check, oidc=settings(issuer, name_claim="uid"))


def test_a_file_of_certificates_that_is_none_is_said_when_the_server_starts(
    tmp_path: Path,
) -> None:
    async def check(made: Api) -> None:
        bad = tmp_path / "bad.pem"
        bad.write_text("no certificate")
        for file, why in ((bad, "it holds no"), (tmp_path / "none.pem", "No such file")):
            wanted = settings("https://idp.test", ca_file=str(file))
            with pytest.raises(errors.BadConfiguration, match=f"ca_file: cannot use {file}: {why}"):
                Oidc(made.database, wanted, made.access.load)
        assert await made.database.read(queries.all_users) == []

    with_api(tmp_path, check)


class Endless(BaseHTTPRequestHandler):
    """A provider whose answers do not end."""

    sent = 0
    encodings = ""

    def do_GET(self) -> None:
        Endless.encodings = self.headers["Accept-Encoding"]
        self.send_response(200)
        self.end_headers()
        try:
            while Endless.sent < 1 << 28:
                Endless.sent += self.wfile.write(b" " * (1 << 16))
        except OSError:
            return

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


def test_an_answer_of_the_provider_is_read_to_a_bound(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            form = {"token": token_in(await browser.get("/login"))}
            answer = await browser.post("/login/oidc", data=form, headers=ORIGIN)
            assert answer.status_code == 503
            assert "Example does not answer as it should (ValueError)" in answer.text
        assert Endless.sent < 1 << 26
        assert Endless.encodings == "identity"

    server = ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        port = server.server_address[1]
        with_api(tmp_path, check, oidc=settings(f"http://127.0.0.1:{port}"))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("wrong", "claims"),
    [
        ("none", {}),
        ("our secret", {}),
        ("public key as secret", {}),
        ("another key", {}),
        ("changed", {}),
        (None, {"iss": "https://evil.test"}),
        (None, {"aud": "another-program"}),
        (None, {"aud": [CLIENT_ID, "another-program"], "azp": "another-program"}),
        (None, {"nonce": "another-one"}),
        (None, {"exp": int(time.time()) - 3600}),
        (None, {"exp": None}),
    ],
)
def test_a_token_that_is_not_for_us_by_the_provider_now_is_refused(
    tmp_path: Path, issuer: str, wrong: str | None, claims: dict[str, Any]
) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            answer = await go(browser, wrong, **{**ANNA, **claims})
            assert answer.status_code == 401, answer.text
            assert SESSION_COOKIE not in browser.cookies
        assert (await made.ask("GET", "/users", ADMIN)).json()["users"] == []

    with_api(tmp_path, check, oidc=settings(issuer))


def test_a_provider_may_change_its_key(tmp_path: Path, issuer: str) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            assert (await go(browser, **ANNA)).status_code == 303
        assert made.access.oidc is not None
        made.access.oidc._keys_at -= 61  # asked again at most once a minute
        async with made.browser() as browser:
            assert (await go(browser, "new key", **ANNA)).status_code == 303

    with_api(tmp_path, check, oidc=settings(issuer))


def test_the_way_back_is_good_once_and_in_its_own_browser(tmp_path: Path, issuer: str) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser, made.browser() as another:
            page = await browser.get("/login")
            answer = await browser.post(
                "/login/oidc", data={"token": token_in(page)}, headers=ORIGIN
            )
            address = re.search(r"url=([^']+)'", answer.text)
            assert address is not None
            state = parse_qs(urlsplit(address[1].replace("&amp;", "&")).query)["state"][0]
            await another.get("/login")
            for client in (another, browser):  # the first try uses it up
                back = await client.get(f"/login/oidc/callback?state={quote(state)}&code=x")
                assert back.status_code == 401
                assert "another browser's; begin again" in unquote(back.text).replace("&#x27;", "'")
            refused = await browser.post("/login/oidc", data={"token": "x"}, headers=ORIGIN)
            assert refused.status_code == 403

    with_api(tmp_path, check, oidc=settings(issuer))


def test_a_provider_that_does_not_answer_is_said_and_one_without_tls_is_refused(
    tmp_path: Path,
) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            page = await browser.get("/login")
            form = {"token": token_in(page)}
            answer = await browser.post("/login/oidc", data=form, headers=ORIGIN)
            assert answer.status_code == 503
            assert "Example does not answer as it should" in answer.text

    with_api(tmp_path, check, oidc=settings("http://127.0.0.1:1"))

    async def refused(made: Api) -> None:
        with pytest.raises(errors.BadConfiguration, match=r"oidc\.issuer"):
            Oidc(made.database, settings("http://idp.example.org"), made.access.load)
        assert await made.database.read(queries.all_users) == []

    with_api(tmp_path, refused)

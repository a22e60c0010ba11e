"""The pages under /login: what a browser gets, and what other sites cannot make it do."""

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.server.api import Api, with_api
from tests.server.tcp import Tcp, with_tcp
from tests.server.test_sign_in import stop_clock
from updraft.configuration import Configuration
from updraft.configuration.schema import SignIn
from updraft.model.access import Principal, Role
from updraft.server.api.login_pages import SESSION_COOKIE
from updraft.server.building import session_limits
from updraft.server.services.accounts import NewUser
from updraft.server.services.oidc import OidcSettings

ADMIN = Principal("uid:4000000", server_admin=True)
PASSWORD = "correct horse battery"
ORIGIN = {"Origin": "https://updraft.test"}


async def anna(made: Api) -> None:
    await made.access.accounts.create(ADMIN, NewUser("anna", password=PASSWORD))
    await made.access.projects.set_member(ADMIN, "default", "anna", Role.MEMBER)


def token_in(page: httpx.Response) -> str:
    found = re.search(r"name='token' value='([0-9a-f]+)'", page.text)
    assert found is not None, page.text
    return found[1]


async def post(
    browser: httpx.AsyncClient,
    page: httpx.Response,
    headers: dict[str, str] | None = None,
    **form: str,
) -> httpx.Response:
    """Send one of the page's forms."""
    fields = {"token": token_in(page), **form}
    sent = ORIGIN if headers is None else headers
    return await browser.post("/login", data=fields, headers=sent)


@asynccontextmanager
async def signed_in(made: Api, code: str = "") -> AsyncIterator[httpx.AsyncClient]:
    """Return a browser in which anna has signed in."""
    async with made.browser() as browser:
        page = await browser.get("/login")
        answer = await post(browser, page, name="anna", password=PASSWORD, do="sign-in", code=code)
        assert answer.status_code == 303, answer.text
        yield browser


def test_a_code_is_confirmed_by_whoever_signed_in(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        asked = (await made.send("POST", "/device", json={"client": "<b>laptop"})).json()
        async with made.browser() as browser:
            page = await browser.get(asked["path"])
            answer = await post(
                browser, page, name="anna", password=PASSWORD, do="sign-in", code=asked["user_code"]
            )
            assert answer.headers["location"] == asked["path"]
            page = await browser.get(asked["path"])
            assert f"<p class='code'>{asked['user_code']}</p>" in page.text
            assert "&lt;b&gt;laptop, from 192.0.2.1, asks to act as you" in page.text
            done = await post(browser, page, do="allow", code=asked["user_code"])
            assert "signed in as anna" in done.text
            body = {"device_code": asked["device_code"]}
            got = (await made.send("POST", "/device/token", json=body)).json()
            assert got["signed_in"]["user"] == "anna"
            again = await post(browser, page, do="allow", code=asked["user_code"])
            assert again.status_code == 404

    with_api(tmp_path, check)


def test_a_code_that_is_denied_signs_nobody_in(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        asked = (await made.send("POST", "/device", json={})).json()
        async with signed_in(made) as browser:
            page = await browser.get(asked["path"])
            await post(browser, page, do="deny", code=asked["user_code"])
        body = {"device_code": asked["device_code"]}
        got = (await made.send("POST", "/device/token", json=body)).json()
        assert (got["status"], got["signed_in"]) == ("denied", None)

    with_api(tmp_path, check)


def test_pages_load_nothing_run_nothing_and_cannot_be_framed(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        async with made.browser() as browser:
            page = await browser.get("/login?code='><script>alert(1)</script>")
        policy = page.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert "unsafe" not in policy
        assert "<script" not in page.text
        assert not re.search(r"(src|href)=", page.text)
        assert page.headers["cache-control"] == "no-store"
        for cookie in page.headers.get_list("set-cookie"):
            assert cookie.startswith("__Host-")
            for part in ("HttpOnly", "Secure", "SameSite=lax", "Path=/"):
                assert part in cookie

    with_api(tmp_path, check)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "https://evil.test"}, 403),
        ({"Origin": "https://updraft.test.evil.test"}, 403),
        ({"Origin": "https://updraft.test:8443"}, 403),
        ({**ORIGIN, "Sec-Fetch-Site": "cross-site"}, 403),
        ({**ORIGIN, "Sec-Fetch-Site": "same-site"}, 403),
        ({**ORIGIN, "Content-Type": "text/plain"}, 400),
        ({**ORIGIN, "Sec-Fetch-Site": "same-origin"}, 200),
    ],
)
def test_forms_of_other_sites_are_refused(
    tmp_path: Path, headers: dict[str, str], code: int
) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        asked = (await made.send("POST", "/device", json={})).json()
        async with signed_in(made) as browser:
            page = await browser.get(asked["path"])
            answer = await post(browser, page, headers, do="allow", code=asked["user_code"])
        assert answer.status_code == code
        waits = made.access.devices.find(asked["user_code"]) is not None
        assert waits == (code != 200)

    with_api(tmp_path, check)


def test_a_form_needs_the_token_of_its_own_browser(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        asked = (await made.send("POST", "/device", json={})).json()
        async with made.browser() as another:
            foreign = token_in(await another.get("/login"))
        async with signed_in(made) as browser:
            await browser.get(asked["path"])
            for token in ("", "0" * 64, foreign):
                form = {"token": token, "do": "allow", "code": asked["user_code"]}
                answer = await browser.post("/login", data=form, headers=ORIGIN)
                assert answer.status_code == 403
            large = {"token": token, "name": "x" * 20000}
            answer = await browser.post("/login", data=large, headers=ORIGIN)
            assert answer.status_code == 400
        assert made.access.devices.find(asked["user_code"]) is not None

    with_api(tmp_path, check)


def test_the_cookie_is_good_for_these_pages_only_and_ends_with_a_sign_out(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        async with signed_in(made) as browser:
            cookie = browser.cookies[SESSION_COOKIE]
            assert (await browser.get("/api/v1/me")).status_code == 401
            assert (await made.send("GET", "/me", cookie)).status_code == 401
            page = await browser.get("/login")
            assert "signed in as <b>anna</b>" in page.text
            await post(browser, page, do="sign-out")
            assert SESSION_COOKIE not in browser.cookies
            browser.cookies.set(SESSION_COOKIE, cookie)
            assert "<h1>Sign in to Updraft</h1>" in (await browser.get("/login")).text

    with_api(tmp_path, check)


def test_a_wrong_password_is_said_on_the_page_and_has_to_wait_in_the_end(tmp_path: Path) -> None:
    async def check(made: Api) -> None:
        await anna(made)
        async with made.browser() as browser:
            stop_clock(made)
            page = await browser.get("/login?code=BCDF-GHJK")
            codes = []
            for _ in range(7):
                page = await post(
                    browser, page, name="anna", password="wrong", do="sign-in", code="BCDF-GHJK"
                )
                codes.append(page.status_code)
            assert codes == [401] * 5 + [429] * 2
            assert "too many failed sign-ins; try again in" in page.text
            assert "value='BCDF-GHJK'" in page.text
            assert SESSION_COOKIE not in browser.cookies

    with_api(tmp_path, check)


@pytest.mark.parametrize("provider", [True, False])
def test_no_password_is_asked_for_or_taken_where_none_is_to_be(
    tmp_path: Path, provider: bool
) -> None:
    oidc = OidcSettings("https://idp.example.org", "id", "secret", "https://updraft.test")

    async def check(made: Api) -> None:
        await anna(made)
        told = {"name": "anna", "password": PASSWORD}
        answer = await made.send("POST", "/sign-in", json=told)
        assert answer.status_code == 403
        assert "this server takes no passwords" in answer.json()["error"]["message"]
        async with made.browser() as browser:
            page = await browser.get("/login")
            assert "type='password'" not in page.text
            if provider:
                refused = await post(browser, page, None, do="sign-in", **told)
                assert refused.status_code == 403
                assert SESSION_COOKIE not in browser.cookies
            else:
                assert "ask the server's admin for a token" in page.text.replace("&#x27;", "'")

    configured = Configuration(sign_in=SignIn(passwords=False))
    with_api(tmp_path, check, session_limits(configured), oidc if provider else None)


@pytest.mark.parametrize("path", ["/login", "/login/oidc"])
def test_a_form_that_breaks_off_is_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\nContent-Length: 9\r\n"
        "Content-Type: application/x-www-form-urlencoded\r\n\r\ndo="
    )

    async def check(tcp: Tcp) -> None:
        async with tcp.http() as browser:
            assert (await browser.get("/login")).status_code == 200  # the application is loaded
        await tcp.say(head.encode())
        while not tcp.bodies_held:
            await tcp.turn()
        await tcp.gone()
        while tcp.requests:
            await tcp.turn()
        assert not [each for each in caplog.records if each.levelno >= logging.WARNING]

    with_tcp(tmp_path, check)

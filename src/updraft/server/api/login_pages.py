"""The pages where a person signs in and confirms a program's code.

Plain HTML made here: they work offline and without scripts, load nothing from anywhere, and cannot
be framed.  The cookie is good for these pages only; requests to the API need the ``Authorization``
header.  A form is taken only from a page of ours: its origin has to be this server, and it carries
a token that belongs to a cookie which no other site can read or set.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from dataclasses import dataclass
from html import escape
from typing import Annotated
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette.requests import ClientDisconnect

from updraft import errors
from updraft.server.api.guard import of_host
from updraft.server.api.requests import peer_of
from updraft.server.services.access import Access
from updraft.server.services.accounts import BROWSER
from updraft.server.services.sign_in import SignedIn

SESSION_COOKIE = "__Host-updraft"
FORM_COOKIE = "__Host-updraft-form"
_MAX_FORM_BYTES = 16384
_MAX_CODE = 20

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:12vh auto;padding:0 1rem;"
    "color:#1b1f24;background:#fff}h1{font-size:1.3rem}label{display:block;margin:.8rem 0}"
    "input{display:block;width:100%;box-sizing:border-box;font:inherit;padding:.4rem;"
    "border:1px solid #8a929b;border-radius:4px}button{font:inherit;padding:.4rem 1rem;"
    "margin:.8rem .5rem 0 0;border:1px solid #1b1f24;border-radius:4px;background:#1b1f24;"
    "color:#fff;cursor:pointer}button.plain{background:#fff;color:#1b1f24}"
    ".code{font:1.6rem/2 ui-monospace,monospace;letter-spacing:.1em}.error{color:#b3261e}"
    "@media(prefers-color-scheme:dark){body{background:#14171a;color:#e6e8ea}"
    "button{border-color:#e6e8ea}input{background:#14171a;color:inherit}.error{color:#f2b8b5}}"
)
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; form-action 'self'; "
        "frame-ancestors 'none'; base-uri 'none'"
    ),
    "X-Frame-Options": "DENY",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # no-referrer would take the origin from our own forms too
    "Cache-Control": "no-store",
}


@dataclass(frozen=True, slots=True)
class _Visit:
    """A request for a page: who the browser is signed in as, and what its forms carry."""

    form_cookie: str
    form_token: str
    code: str
    error: str = ""


def make_router(access: Access) -> APIRouter:
    """Return the pages under ``/login``."""
    router = APIRouter(include_in_schema=False)
    pages = _Pages(access)

    @router.get("/login")
    async def show(request: Request, code: str = "") -> Response:
        return await pages.show(request, code)

    @router.post("/login")
    async def act(request: Request) -> Response:
        return await pages.act(request)

    @router.post("/login/oidc")
    async def to_provider(request: Request) -> Response:
        return await pages.to_provider(request)

    @router.get("/login/oidc/callback")
    async def from_provider(
        request: Request,
        state: Annotated[str, Query(max_length=200)] = "",
        code: Annotated[str, Query(max_length=4000)] = "",
        error: Annotated[str, Query(max_length=200)] = "",
    ) -> Response:
        return await pages.from_provider(request, state, code, error)

    return router


class _Pages:
    def __init__(self, access: Access) -> None:
        self._access = access
        self._key = secrets.token_bytes(32)

    # -- requests

    async def show(self, request: Request, code: str) -> Response:
        return await self._page(request, self._visit(request, code))

    async def act(self, request: Request) -> Response:
        """Take one of the forms: sign in, allow, deny, sign out."""
        try:
            form = await self._form(request)
        except errors.UpdraftError as error:
            return _answer(_box("Refused", error.message), error.status)
        code = form.get("code", "")[:_MAX_CODE]
        match form.get("do"):
            case "sign-in":
                return await self._sign_in(request, form, code)
            case "sign-out":
                await self._access.sign_in.end(request.cookies.get(SESSION_COOKIE, ""))
                answer = _to_login(code)
                answer.delete_cookie(SESSION_COOKIE, path="/", secure=True, httponly=True)
                return answer
            case "allow" | "deny" as action:
                return await self._answer_device(request, code, allow=action == "allow")
        return _to_login(code)

    async def to_provider(self, request: Request) -> Response:
        """Send the browser to the identity provider: by a page, for a form may not lead there."""
        try:
            form = await self._form(request)
            oidc = self._access.oidc
            if oidc is None:
                raise errors.NotFound("this server has no identity provider")
            code = form.get("code", "")[:_MAX_CODE]
            url = await oidc.begin(request.cookies.get(FORM_COOKIE, ""), code, peer_of(request))
        except errors.UpdraftError as error:
            return _answer(_box("Refused", error.message), error.status)
        link = escape(url, quote=True)
        return _answer(
            f"<h1>Sign in</h1><p><a href='{link}'>Go on to {escape(oidc.name)}</a></p>",
            head=f"<meta http-equiv='refresh' content='0;url={link}'>",
        )

    async def from_provider(self, request: Request, state: str, code: str, error: str) -> Response:
        """Take the browser back from the identity provider."""
        oidc = self._access.oidc
        if oidc is None:
            return _answer(_box("Refused", "this server has no identity provider"), 404)
        browser = request.cookies.get(FORM_COOKIE, "")
        try:
            user, device_code = await oidc.finish(browser, state, code, error)
            made = await self._access.sign_in.begin_session(
                user, peer=peer_of(request), client="browser", kind=BROWSER
            )
        except errors.UpdraftError as refused:
            visit = self._visit(request, "", refused.message)
            return await self._page(request, visit, refused.status)
        return _signed_in(made, device_code)

    # -- parts

    async def _sign_in(self, request: Request, form: dict[str, str], code: str) -> Response:
        sign_in, peer = self._access.sign_in, peer_of(request)
        try:
            user = await sign_in.check_password(
                form.get("name", ""), form.get("password", ""), peer
            )
            made = await sign_in.begin_session(user, peer=peer, client="browser", kind=BROWSER)
        except errors.UpdraftError as error:
            visit = self._visit(request, code, error.message)
            return await self._page(request, visit, error.status)
        return _signed_in(made, code)

    async def _answer_device(self, request: Request, code: str, *, allow: bool) -> Response:
        user = await self._access.sign_in.browser_user(request.cookies.get(SESSION_COOKIE, ""))
        if user is None:
            return _to_login(code)
        try:
            waiting = self._access.devices.find(code, peer_of(request))
        except errors.TooManyRequests as error:
            return _answer(_box("Refused", error.message), error.status)
        if waiting is None:
            visit = self._visit(request, "", "no program waits with this code (any more)")
            return await self._page(request, visit, 404)
        if not allow:
            self._access.devices.deny(waiting)
            return _answer(_box("Denied", "The program was not signed in. Close this page."))
        self._access.devices.confirm(waiting, user)
        told = f"The program is signed in as {user['name']}. Close this page."
        return _answer(_box("Done", told))

    async def _page(self, request: Request, visit: _Visit, status: int = 200) -> Response:
        text = request.cookies.get(SESSION_COOKIE, "")
        user = await self._access.sign_in.browser_user(text) if text else None
        if user is None:
            body = self._sign_in_forms(visit)
        else:
            try:
                body = self._code_forms(visit, user["name"], peer_of(request))
            except errors.TooManyRequests as error:
                return _answer(_box("Refused", error.message), error.status)
        answer = _answer(body, status)
        if request.cookies.get(FORM_COOKIE) != visit.form_cookie:
            _set_cookie(answer, FORM_COOKIE, visit.form_cookie)
        return answer

    def _sign_in_forms(self, visit: _Visit) -> str:
        hidden = _hidden(visit)
        oidc, passwords = self._access.oidc, self._access.sign_in.takes_passwords
        forms = f"<h1>Sign in to Updraft</h1>{_error(visit)}"
        if passwords:
            forms += (
                f"<form method='post' action='/login'>{hidden}"
                "<label>Name<input name='name' autocomplete='username' required autofocus></label>"
                "<label>Password<input name='password' type='password' "
                "autocomplete='current-password' required></label>"
                "<button name='do' value='sign-in'>Sign in</button></form>"
            )
        if oidc is not None:
            forms += (
                f"<form method='post' action='/login/oidc'>{hidden}"
                f"<button class='plain'>Sign in with {escape(oidc.name)}</button></form>"
            )
        if not passwords and oidc is None:
            forms += "<p>Nobody signs in here by browser; ask the server's admin for a token.</p>"
        return forms

    def _code_forms(self, visit: _Visit, name: str, peer: str) -> str:
        who = f"<p>You are signed in as <b>{escape(name)}</b>.</p>"
        hidden = _hidden(visit)
        leave = (
            f"<form method='post' action='/login'>{hidden}"
            "<button class='plain' name='do' value='sign-out'>Sign out</button></form>"
        )
        waiting = self._access.devices.find(visit.code, peer) if visit.code else None
        if waiting is None:
            problem = _error(visit)
            if visit.code and not problem:
                problem = "<p class='error'>No program waits with this code (any more).</p>"
            return (
                f"<h1>Sign a program in</h1>{who}{problem}"
                "<form method='get' action='/login'><label>The code that the program shows"
                "<input name='code' autocomplete='off' required autofocus></label>"
                f"<button>Go on</button></form>{leave}"
            )
        client = escape(waiting.client or "a program")
        place = escape(waiting.peer or "this machine")
        return (
            f"<h1>Sign a program in?</h1>{who}"
            f"<p>{client}, from {place}, asks to act as you. Allow it only if you started it just "
            "now and it shows this code:</p>"
            f"<p class='code'>{escape(waiting.user_code)}</p>"
            f"<form method='post' action='/login'>{hidden}"
            "<button name='do' value='allow'>Allow</button>"
            f"<button class='plain' name='do' value='deny'>Deny</button></form>{leave}"
        )

    # -- forms of ours only

    def _visit(self, request: Request, code: str, error: str = "") -> _Visit:
        cookie = request.cookies.get(FORM_COOKIE, "")
        if not 32 <= len(cookie) <= 100:
            cookie = secrets.token_hex(32)
        return _Visit(cookie, self._token(cookie), code[:_MAX_CODE], error)

    def _token(self, cookie: str) -> str:
        return hmac.digest(self._key, cookie.encode(errors="replace"), "sha256").hex()

    async def _form(self, request: Request) -> dict[str, str]:
        """Return the fields of a form.  Raises ``errors.NotAllowed`` for one that is not ours."""
        origin = request.headers.get("origin", "")
        site = request.headers.get("sec-fetch-site", "same-origin")
        host = request.headers.get("host", "")
        if origin not in of_host(host) or site != "same-origin":
            raise errors.NotAllowed("this form came from another site")
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/x-www-form-urlencoded":
            raise errors.BadRequest("this is not a form of this page")
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > _MAX_FORM_BYTES:
                    raise errors.BadRequest("the form is too large")
        except ClientDisconnect as error:  # any stranger's doing: no failure, and no news
            raise errors.BadRequest("the form did not come whole") from error
        try:
            fields = parse_qs(body.decode(), max_num_fields=20, keep_blank_values=True)
        except ValueError as error:
            raise errors.BadRequest("this is not a form of this page") from error
        form = {name: values[0] for name, values in fields.items()}
        cookie = request.cookies.get(FORM_COOKIE, "")
        given = form.get("token", "").encode(errors="replace")
        if not cookie or not hmac.compare_digest(self._token(cookie).encode(), given):
            raise errors.NotAllowed("this form is too old; load the page again")
        return form


def _signed_in(made: SignedIn, code: str) -> Response:
    answer = _to_login(code)
    _set_cookie(answer, SESSION_COOKIE, made.text)
    return answer


def _to_login(code: str) -> Response:
    place = f"/login?code={quote(code)}" if code else "/login"
    return RedirectResponse(place, status_code=303, headers=_HEADERS)


def _set_cookie(answer: Response, name: str, value: str) -> None:
    answer.set_cookie(name, value, path="/", secure=True, httponly=True, samesite="lax")


def _hidden(visit: _Visit) -> str:
    return (
        f"<input type='hidden' name='token' value='{visit.form_token}'>"
        f"<input type='hidden' name='code' value='{escape(visit.code, quote=True)}'>"
    )


def _error(visit: _Visit) -> str:
    return f"<p class='error'>{escape(visit.error)}</p>" if visit.error else ""


def _box(title: str, text: str) -> str:
    return f"<h1>{escape(title)}</h1><p>{escape(text)}</p>"


def _answer(body: str, status: int = 200, head: str = "") -> Response:
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>Updraft</title>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"{head}<style>{_STYLE}</style>{body}</html>"
    )
    return HTMLResponse(page, status_code=status, headers=_HEADERS)

"""Lets no request in without credentials, but for the routes in one list.

A unix socket's peer is known before a byte is read; the door puts them into the scope.  Elsewhere
the credential is in the ``Authorization`` header and nowhere else: not in a cookie, which a browser
would send for any page that asks it to, and not in the address, which ends up in logs.  A route
that is added is closed until it is listed here, and so is what is no route at all.

Whoever asks too often has to wait (429): each credential has its rate, and each address a lower one
for what comes from there without a good credential.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Protocol

from fastapi.responses import JSONResponse

from updraft import errors
from updraft.server.auth.rates import Rates
from updraft.server.services.access import Access
from updraft.server.services.strangers import wait_for
from updraft.wire import schemas

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from updraft.model.access import Principal

log = logging.getLogger("updraft.api")

PUBLIC = frozenset(
    {
        # how the server is, for whoever restarts it
        ("GET", "/healthz"),
        ("GET", "/readyz"),
        # what a machine needs to become a runner: a script and wheels, without a secret
        ("GET", "/join"),
        ("GET", "/wheels/"),
        ("GET", "/wheels/{wheel}"),
        # these have credentials of their own: a join token, a password, a device's code
        ("POST", "/api/v1/runners/join"),
        ("POST", "/api/v1/sign-in"),
        ("POST", "/api/v1/device"),
        ("POST", "/api/v1/device/token"),
        # pages for browsers: a password, a cookie that is good here only, an identity provider
        ("GET", "/login"),
        ("POST", "/login"),
        ("POST", "/login/oidc"),
        ("GET", "/login/oidc/callback"),
    }
)
"""All that answers without credentials."""

_WHEELS = "/wheels/"

ABOUT_NO_PROJECT = frozenset(
    {
        *("me", "sign-out", "tokens", "users", "projects", "audit"),
        *("runners", "runner-tokens", "pools", "status", "stop"),
    }
)
"""Routes that a user may ask who is in several projects and names none, or is in none yet."""

_HEALTH = frozenset({"/healthz", "/readyz"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

PROJECT_HEADER = b"updraft-project"
VISIT = "updraft.visit"
"""Where a request's ``Visit`` is in its scope, if it came over a connection."""


class Visit(Protocol):
    """A request, to the connection that it came by."""

    def admitted(self) -> None:
        """It carries a good credential."""

    def cut(self) -> None:
        """End the connection at once."""


class _Looking:
    """A request that only looks, which may go on for as long as what it looks at."""

    def __init__(self, who: Principal, visit: Visit) -> None:
        self.who = who
        self._visit = visit

    def renewed(self, who: Principal) -> None:
        self.who = who

    def turn_out(self, error: errors.UpdraftError) -> None:
        self._visit.cut()  # whoever comes again is told why not


def is_public(method: str, path: str) -> bool:
    """Whether a request needs no credentials."""
    if path.startswith(_WHEELS) and "/" not in path.removeprefix(_WHEELS):
        path = _WHEELS if path == _WHEELS else f"{_WHEELS}{{wheel}}"
    return (method, path) in PUBLIC


class Guard:
    """Puts the principal of a request into its scope, or refuses the request."""

    def __init__(self, app: ASGIApp, access: Access, per_second: float) -> None:
        """``per_second``: requests of one credential."""
        self._app = app
        self._access = access
        self._users = Rates(per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        method = scope.get("method", "GET")
        try:
            if scope["type"] == "http" and is_public(method, scope["path"]):
                if scope["path"] not in _HEALTH and scope.get("principal") is None:
                    self._access.strangers.count(_peer(scope))
                if not scope["path"].startswith("/login"):  # which answers with pages
                    _refuse_other_sites(scope, method)
            else:
                _refuse_other_sites(scope, method)
                scope["principal"] = await self._principal(scope)
                if VISIT in scope:
                    scope[VISIT].admitted()
        except errors.UpdraftError as error:
            await _refuse(error, scope, receive, send)
            return
        except Exception as error:
            log.exception("cannot tell who asks")
            failed = errors.UpdraftError(f"the server failed ({type(error).__name__}); see its log")
            await _refuse(failed, scope, receive, send)
            return
        visit: Visit | None = scope.get(VISIT)
        who: Principal | None = scope.get("principal")
        # What changes something is not cut off by the very change that it makes.
        if visit is None or who is None or method not in _SAFE:
            await self._app(scope, receive, send)
            return
        looking = _Looking(who, visit)
        self._access.visitors.add(looking)
        try:
            await self._app(scope, receive, send)
        finally:
            self._access.visitors.discard(looking)

    async def _principal(self, scope: Scope) -> Principal:
        token, project = _asked(scope)
        known: Principal | None = scope.get("principal")
        if known is not None:
            if token:
                known = await self._access.on_socket(known, token)
            return known if project is None else self._access.in_project(known, project)
        peer = _peer(scope)
        about = scope["path"].removeprefix("/api/v1/").partition("/")[0]
        who = await self._access.authenticate(
            token, project, peer, need_project=about not in ABOUT_NO_PROJECT
        )
        wait_for(self._users.take(who.credential))
        return who


def _peer(scope: Scope) -> str:
    client = scope.get("client")
    return client[0] if client else ""


def of_host(host: str) -> tuple[str, ...]:
    """Return the origins of this server's own pages, where a browser calls it ``host``."""
    return (f"https://{host}", f"http://{host}") if host else ()


def _refuse_other_sites(scope: Scope, method: str) -> None:
    """Refuse what a page of another site makes a browser ask, whatever else it carries.

    Raises ``errors.NotAllowed``.
    """
    if scope["type"] == "http" and method in _SAFE:
        return
    fields = dict(scope["headers"])
    origin = fields.get(b"origin")
    site = fields.get(b"sec-fetch-site", b"none")
    host = fields.get(b"host", b"").decode("latin-1")
    other = origin is not None and origin.decode("latin-1") not in of_host(host)
    if other or site not in (b"none", b"same-origin"):
        raise errors.NotAllowed("this request came from a page of another site")


def _asked(scope: Scope) -> tuple[str, str | None]:
    """Return the token and the project that a request names."""
    token, project = "", None
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, rest = value.decode("latin-1").partition(" ")
            token = rest.strip() if scheme.lower() == "bearer" else ""
        elif name == PROJECT_HEADER:
            project = value.decode("latin-1") or None
    return token, project


async def _refuse(error: errors.UpdraftError, scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.close", "code": 1008})  # before it was accepted: 403
        return
    body = schemas.Error(error=schemas.ErrorDetail(code=error.code, message=error.message))
    answer = JSONResponse(body.model_dump(), status_code=error.status)
    if error.status == errors.NotSignedIn.status:
        answer.headers["WWW-Authenticate"] = "Bearer"
    if error.retry_after_seconds is not None:
        answer.headers["Retry-After"] = str(math.ceil(error.retry_after_seconds))
    await answer(scope, receive, send)

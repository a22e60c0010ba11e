"""Around the whole application: ids, a line in the log, a count and a trace for every request."""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, Any

from updraft.model.access import Principal, Role, Scope
from updraft.server.api.routes_operations import OPENS_METRICS
from updraft.server.observe import logs
from updraft.server.services.operations import Operations

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as Asgi

log = logging.getLogger("updraft.requests")

HEADER = "X-Request-ID"
_HEADER = HEADER.lower().encode()
REQUEST_ID = "updraft.request_id"
"""Where the id is in a request's scope."""
_MAX_ID = 64
_NO_ROUTE = "(none)"
_QUIET = frozenset({"/healthz", "/readyz", "/metrics"})
"""Asked every few seconds by machines: logged when they fail."""

_METRICS_READER = Principal("metrics token", "", Role.VIEWER, scope=Scope.READ)


class Observed:
    """Wraps an application; the outermost, so that refusals are counted too."""

    def __init__(self, app: ASGIApp, operations: Operations, prefix: str) -> None:
        self._app = app
        self._prefix = prefix
        self._operations = operations

    async def __call__(self, scope: Asgi, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        identity = _usable(headers.get(_HEADER.decode(), "")) or secrets.token_hex(8)
        scope[REQUEST_ID] = identity
        self._open_metrics(scope, headers)
        status = 500
        begun = time.perf_counter()

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_HEADER, identity.encode())]
            await send(message)

        method = scope["method"] if scope["method"].isupper() else "?"
        traces = self._operations.traces
        with logs.about(request=identity), traces.span(method, headers) as span:
            try:
                await self._app(scope, receive, answer)
            except Exception as error:
                # Answered further out, where the ids are not known any more.
                log.error("%s %s failed", method, self._template(scope), exc_info=error)  # noqa: TRY400
                raise
            finally:
                seconds = time.perf_counter() - begun
                route = self._template(scope)
                self._operations.measures.request(method, route, status, seconds)
                span.rename(f"{method} {route}")
                span.set("http.response.status_code", status)
                span.set("http.route", route)
                span.set("updraft.request_id", identity)
                if status >= 500:
                    span.failed(str(status))
                self._log(scope, method, route, status, seconds)

    def _open_metrics(self, scope: Asgi, headers: dict[str, str]) -> None:
        """Let the token for the measures open them, and nothing else."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scope["path"] != "/metrics" or scheme.lower() != "bearer":
            return
        if self._operations.is_metrics_token(token.strip()):
            scope[OPENS_METRICS] = True
            scope.setdefault("principal", _METRICS_READER)

    def _log(self, scope: Asgi, method: str, route: str, status: int, seconds: float) -> None:
        level = logging.DEBUG if route in _QUIET and status < 400 else logging.INFO
        if not log.isEnabledFor(level):
            return
        job = scope.get("path_params", {}).get("job", "")
        fields: dict[str, Any] = {
            "method": method,
            "route": route,
            "status": status,
            "ms": round(seconds * 1000, 1),
        }
        with logs.about(job=str(job) if str(job).isalnum() else ""):
            log.log(level, "%s %s %d %.1f ms", *fields.values(), extra={"fields": fields})

    def _template(self, scope: Asgi) -> str:
        """Return the route's template: a path may hold what belongs into no log and no label."""
        found: str = getattr(scope.get("route"), "path", "") or _NO_ROUTE
        # Of an included router, newer versions of the framework tell the path below its prefix.
        below = scope["path"].startswith(f"{self._prefix}/") and found.startswith("/")
        return self._prefix + found if below and not found.startswith(self._prefix) else found


def _usable(identity: str) -> str:
    """Return a client's id if it may go into a log as it is, else nothing."""
    fits = len(identity) <= _MAX_ID and identity.isascii()
    return identity if fits and all(c.isalnum() or c in "-_.:" for c in identity) else ""

"""An HTTP connection that bounds what its peer makes the server hold, and for how long.

uvicorn's protocol takes heads of any size at any pace, and waits for ever for a body and for a
reader.  An answer that has nothing to say for a while, as one that follows a job, is not cut: only
one that is not read.  Whoever is cut off may come again; our clients go on where they were.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from updraft import errors
from updraft.server.api.door import Guest
from updraft.server.api.guard import VISIT
from updraft.wire import frames, schemas

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

_HEAD_SECONDS = 10.0
_HEAD_BYTES = 64 * 1024
_BODY_SECONDS = 30.0
"""For the next piece of a body."""
_BODY_BYTES_A_SECOND = 1024
"""Slower than this on average, after the first half minute, is not meant to end."""
_READ_SECONDS = 60.0
"""For a peer that reads nothing of its answer."""
_LINGER_SECONDS = 2.0
_PUBLIC_BODY_BYTES = 64 * 1024
"""Of requests without credentials: a name and a password, or what a machine is."""
_BODY_BYTES = frames.MAX_PAYLOAD
"""As on the other way in: an argument list has its limits, too."""
_JSON_VALUES = 700_000
"""As ``packing.MAX_VALUES``.  Of any body: what it is read as, its type may not tell."""
_HELD_SHARE = 4

_PHRASES = {
    400: "Bad Request",
    408: "Request Timeout",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


@dataclass(slots=True)
class Bodies:
    """What bodies take, of all requests together."""

    max_body: int
    held: int = 0

    @property
    def full(self) -> bool:
        """Whether no more fits."""
        return self.held > _HELD_SHARE * self.max_body


@dataclass(slots=True, eq=False)
class _Incoming:
    """One request: what it may make the server hold, and does.  It is the guard's ``Visit``."""

    told: int
    """How long its body says it is."""
    most: int
    cut: Callable[[], None]
    known: Callable[[], None]
    """To be called once it is known who asks."""
    good: bool
    """Whether it came with a good credential."""
    values: int = _JSON_VALUES
    """How many values the body may have yet."""
    came: int = 0
    held: int = 0

    def admitted(self) -> None:
        """It carries a good credential: its body may be larger."""
        self.good = True
        self.known()


class BoundedHttp(HttpToolsProtocol):
    """One connection."""

    def __init__(self, config: Config, state: ServerState, guest: Guest, bodies: Bodies) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._guest = guest
        self._bodies = bodies
        self._begun = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unread: asyncio.TimerHandle | None = None
        self._over = False
        self._reading = False
        """Whether a request has begun whose end has not come."""
        self._head = False
        self._unused = 0
        """Bytes since something came of them: a head, a piece of a body."""
        self._trailers = 0
        self._incoming: _Incoming | None = None
        """The request that was heard last."""
        self._unanswered: deque[_Incoming] = deque()
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            incoming: _Incoming = scope[VISIT]

            async def read() -> Any:
                # What is read of strangers is little, whatever the routes think of their address.
                if not incoming.good and not self._fits(incoming, _PUBLIC_BODY_BYTES):
                    return {"type": "http.disconnect"}
                return await receive()

            if guest.principal is not None:
                scope["principal"] = guest.principal
            await inner(scope, read, send)

        self.app = app

    # -- what arrives

    def data_received(self, data: bytes) -> None:
        if self._over:
            return
        if not self._reading and self._timer is None:
            self._limit(_HEAD_SECONDS, self._too_slow)
        self._unused += len(data)
        super().data_received(data)
        if self._unused > _HEAD_BYTES and not self._over:
            self._refuse(431, "the head of the request is too long")

    def on_message_begin(self) -> None:
        self._reading = self._head = True
        self._trailers = 0
        if self._timer is None:  # it began in what the last request ended with
            self._limit(_HEAD_SECONDS, self._too_slow)
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._head:  # behind the body: of use to nobody
            self._trailers += len(name) + len(value)
            if self._trailers > _HEAD_BYTES:
                self._refuse(431, "the trailers of the request are too long")
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self._over:
            return
        self._head = False
        self._limit(0, None)
        length = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if length > _HEAD_BYTES:
            self._refuse(431, "the head of the request is too long")
            return
        try:
            httptools.parse_url(self.url).path.decode("ascii")
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError, AttributeError):
            self._refuse(400, "this is not the address of anything")
            return
        self._guest.spoke()
        self._begun = self.loop.time()
        told = dict(self.headers).get(b"content-length", b"")
        incoming = _Incoming(
            told=int(told[:20]) if told.isdigit() else 0,
            cut=self.transport.abort,
            known=self._guest.known,
            most=min(self._bodies.max_body, _BODY_BYTES),
            good=self._guest.principal is not None,
        )
        if not self._fits(incoming, incoming.most):
            return
        self._incoming = incoming
        self._unanswered.append(incoming)
        self.scope[VISIT] = incoming  # type: ignore[literal-required]
        super().on_headers_complete()

    def _fits(self, incoming: _Incoming, most: int) -> bool:
        """Whether a body is short enough, as far as is known; else the request is refused."""
        incoming.most = most
        fits = max(incoming.told, incoming.came) <= most
        if not fits:
            self._refuse(413, f"the body is longer than {most} bytes")
        return fits

    def on_body(self, body: bytes) -> None:
        incoming = self._incoming
        if self._over or incoming is None:
            return
        self._unused = 0
        incoming.came += len(body)
        if not self.cycle.response_complete:  # else it is forgotten at once
            incoming.held += len(body)
            self._bodies.held += len(body)
        if not self._fits(incoming, incoming.most):
            return
        if self._bodies.full:
            self._refuse(503, "too many large requests at a time; try again")
        elif self._is_bomb(incoming, body):
            self._refuse(413, f"the body has more than {_JSON_VALUES} values")
        else:
            if not self.cycle.response_complete:  # else its end is set already
                self._limit(_BODY_SECONDS, self._too_slow)
            slow = self.loop.time() - self._begun - _BODY_SECONDS
            if slow > 0 and incoming.came < slow * _BODY_BYTES_A_SECOND:
                self._too_slow()
                return
            super().on_body(body)

    def _is_bomb(self, incoming: _Incoming, body: bytes) -> bool:
        """Whether the body becomes many times its size when it is read."""
        incoming.values -= body.count(b",") + body.count(b"[") + body.count(b"{")
        return incoming.values < 0

    def on_message_complete(self) -> None:
        if self._over:
            return
        self._unused = 0
        self._reading = False
        self._limit(0, None)
        super().on_message_complete()

    # -- what is sent

    def on_response_complete(self) -> None:
        if self._unanswered:
            self._let_go(self._unanswered.popleft())
        super().on_response_complete()
        if self._reading and self.cycle.more_body and not self._over:
            # Refused before all of it had come: the rest is not waited for.
            self._limit(self.timeout_keep_alive, self.transport.close)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._unread is None:
            self._unread = self.loop.call_later(_READ_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()
            self._unread = None

    def connection_lost(self, exc: Exception | None) -> None:
        self._over = True
        self._limit(0, None)
        while self._unanswered:
            self._let_go(self._unanswered.popleft())
        self._guest.gone()
        super().connection_lost(exc)
        if self._unread is not None:
            self._unread.cancel()

    # -- limits

    def _limit(self, seconds: float, then: Callable[[], None] | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if then is not None:
            self._timer = self.loop.call_later(seconds, then)

    def _let_go(self, incoming: _Incoming) -> None:
        self._bodies.held -= incoming.held
        incoming.held = 0

    def _too_slow(self) -> None:
        self._refuse(408, "the request did not come in time")

    def _refuse(self, status: int, message: str) -> None:
        """Answer, unless an answer is under way, and end the connection."""
        if self._over:
            return
        self._over = True
        self._limit(0, None)
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete or not cycle.response_started:
            code = errors.Unavailable.code if status == 503 else errors.BadRequest.code
            detail = schemas.ErrorDetail(code=code, message=message)
            body = schemas.Error(error=detail).model_dump_json().encode()
            head = (
                f"HTTP/1.1 {status} {_PHRASES[status]}\r\ncontent-type: application/json\r\n"
                f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + body)
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self.transport.close()
        # For the answer to arrive, what still comes is read, and forgotten.
        self._limit(_LINGER_SECONDS, self.transport.abort)

"""Waiting to lead: of all servers of one database, one serves and the others stand by.

One that stands by answers ``/healthz``, so that nobody restarts it, and says in ``/readyz`` why it
takes no requests; everything else is refused as unavailable, and frame connections are closed.  Its
owner, on the unix socket, is told whom it stands by for, and may stop it.  It listens where it will
serve, if nobody else does there: on the machine of the first server it cannot, and need not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import cast

from updraft import errors, settings
from updraft.configuration.schema import Server as Configured
from updraft.server.listening import tls_context
from updraft.store.leadership import Leadership
from updraft.wire.sockets import listen_unix

log = logging.getLogger("updraft.server")

REASON = "this server stands by; another one of this database serves"
_STOPPING = b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"
_MAX_HEADER = 16 * 1024
_REQUEST_SECONDS = 10.0
_MAX_CONNECTIONS = 512


async def lead(
    folders: settings.Folders, configured: Configured, upgrade: asyncio.Task[None]
) -> Leadership | None:
    """Return once this server may lead; None when it was told to stop before that.

    So it is, too, when ``upgrade`` returns.

    Raises ``errors.Unavailable`` when the database cannot be used.
    """
    leadership = Leadership(configured.database, _end_deposed)
    loop = asyncio.get_running_loop()
    standby = _Standby(folders, configured, lambda: waiting.cancel())
    waiting = asyncio.create_task(leadership.take(standby.tell), name="stand by")
    upgrade.add_done_callback(lambda done: done.cancelled() or waiting.cancel())
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, waiting.cancel)
    try:
        await waiting
    except asyncio.CancelledError:
        leadership.release()
        log.info("stopped while standing by")
        return None
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        await standby.close()
    return leadership


def _end_deposed() -> None:
    """End as kill -9 would, which everybody is made to survive.

    What is in memory may be wrong by now: to answer out of it, or to tidy up the shared folder,
    would be to act as the leader.
    """
    log.critical("another server leads now; this one ends, to be started again and stand by")
    logging.shutdown()
    os._exit(1)


class _Standby:
    """The listeners of a server that stands by."""

    def __init__(
        self, folders: settings.Folders, configured: Configured, stop: Callable[[], object]
    ) -> None:
        self._folders = folders
        self._configured = configured
        self._stop = stop
        self._listeners: list[asyncio.AbstractServer] = []
        self._connections: set[_Connection] = set()
        self._opening: asyncio.Task[None] | None = None

    def tell(self, leader: str) -> None:
        """Another server leads, from the address ``leader``: say so, here and to whoever asks."""
        told = f"this server (pid {os.getpid()}) stands by for another one of this database"
        if leader:
            told += f", which reaches it from {leader}"
        log.info("standing by: another server of this database serves")
        self._opening = asyncio.create_task(self._open(told), name="listen standing by")

    async def _open(self, told: str) -> None:
        loop = asyncio.get_running_loop()

        def connection() -> _Connection:
            return _Connection(self._connections)

        def owners_connection() -> _Connection:
            return _Connection(self._connections, told, self._end)

        unix = await loop.create_server(owners_connection, sock=listen_unix(self._folders.socket))
        self._listeners.append(unix)
        if self._configured.listen is None:
            return
        host, port = self._configured.listen
        context = tls_context(self._folders, self._configured, host)
        try:
            self._listeners.append(await loop.create_server(connection, host, port, ssl=context))
        except OSError as error:
            log.info("not listening at %s while standing by: %s", self._configured.listen, error)

    def _end(self) -> None:
        Path(self._folders.stopped).touch(mode=0o600)
        self._stop()

    async def close(self) -> None:
        """Make way for the server that this one becomes."""
        if self._opening is not None:
            try:
                await self._opening
            except (OSError, errors.UpdraftError) as error:
                log.warning("could not say that this server stood by: %s", error)
        for listener in self._listeners:
            listener.close()
        for connection in list(self._connections):
            connection.abort()


class _Connection(asyncio.Protocol):
    """One request, one answer.  ``told``: why it is refused; ``stop``: for whom may stop us."""

    def __init__(
        self,
        connections: set[_Connection],
        told: str = f"{REASON}; try again",
        stop: Callable[[], None] | None = None,
    ) -> None:
        self._connections = connections
        self._told = told
        self._stop = stop
        self._asked = False
        """Whether we are to stop, once the answer is out."""
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._read = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._transport.abort()
            return
        self._connections.add(self)
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(_REQUEST_SECONDS, self._transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        if self._asked and self._stop is not None:
            self._stop()

    def data_received(self, data: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        self._read += data
        if self._read[:1] == b"\0" or len(self._read) > _MAX_HEADER:
            self._transport.abort()  # frames: who speaks them comes again, here or elsewhere
        elif b"\r\n\r\n" in self._read:
            line = self._read.partition(b"\r\n")[0]
            self._asked = self._stop is not None and line.startswith(b"POST /api/v1/stop ")
            self._transport.write(_STOPPING if self._asked else answer_to(line, self._told))
            self._transport.close()

    def abort(self) -> None:
        """Hang up."""
        if self._transport is not None:
            self._transport.abort()


def answer_to(request_line: bytes, told: str) -> bytes:
    """Return the whole answer to a request; ``told``: why most are refused."""
    words = request_line.split(b" ")
    path = words[1].partition(b"?")[0] if len(words) == 3 else b""
    kind = b"text/plain; charset=utf-8"
    if path == b"/healthz":
        status, body = b"200 OK", b"ok\n"
    elif path == b"/readyz":
        status, body = b"503 Service Unavailable", f"not ready: {REASON}\n".encode()
    else:
        error = {"code": errors.StandingBy.code, "message": told}
        status, kind = b"503 Service Unavailable", b"application/json"
        body = json.dumps({"error": error}).encode()
    if words[0] == b"HEAD":
        body = b""
    head = b"HTTP/1.1 %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n" % (status, kind, len(body))
    return head + b"Retry-After: 1\r\nConnection: close\r\n\r\n" + body

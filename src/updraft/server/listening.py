"""The server's listening sockets: the owner's unix socket, and TCP under TLS for other machines."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from typing import Protocol

from updraft import errors, settings
from updraft.configuration.schema import SELF_SIGNED
from updraft.configuration.schema import Server as Configured
from updraft.server.api.door import Door, Doors, Guest
from updraft.server.auth import certificates
from updraft.wire import tls
from updraft.wire.sockets import listen_unix

log = logging.getLogger("updraft.server")

_HANDSHAKE_SECONDS = 10.0
_BACKLOG = 1024
_ACCEPT_AGAIN_SECONDS = 0.1


class Listener(Protocol):
    """Lets connections in."""

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""


async def listen(doors: Doors, folders: settings.Folders, configured: Configured) -> list[Listener]:
    """Open the sockets, the unix socket last: whoever finds that one finds a whole server.

    Raises ``errors.UpdraftError``.
    """
    loop = asyncio.get_running_loop()
    listeners: list[Listener] = []
    if configured.listen is not None:
        host, port = configured.listen
        context = tls_context(folders, configured, host)
        try:
            tcp = TcpListener(doors, await _bind(host, port), context)
        except OSError as error:
            raise errors.Unavailable(
                f"cannot listen on {configured.listen}: {error.strerror or error}; choose "
                "another address: --listen HOST:PORT"
            ) from error
        listeners.append(tcp)
        log.info("listening at %s", configured.url)
    unix = await loop.create_server(lambda: Door(doors), sock=listen_unix(folders.socket))
    listeners.append(unix)
    return listeners


class TcpListener:
    """Lets in whom there is room for, counted from before the handshake on."""

    def __init__(
        self, doors: Doors, sockets: list[socket.socket], context: ssl.SSLContext | None
    ) -> None:
        self._doors = doors
        self._context = context
        self._sockets = sockets
        self._accepting = [
            asyncio.create_task(self._accept(each), name="accept") for each in sockets
        ]
        self._greeting: set[asyncio.Task[None]] = set()

    def close(self) -> None:
        """Let nobody in any more; who is in stays."""
        for task in (*self._accepting, *self._greeting):
            task.cancel()
        for each in self._sockets:
            each.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                peer, address = await loop.sock_accept(listening)
            except OSError as error:  # it went before it came, or there are no descriptors left
                log.warning("cannot accept a connection: %s", error.strerror or error)
                await asyncio.sleep(_ACCEPT_AGAIN_SECONDS)
                continue
            guest = self._doors.arrive(str(address[0]))
            if guest is None:
                peer.close()
                continue
            task = asyncio.create_task(self._greet(peer, guest), name="greet")
            self._greeting.add(task)
            task.add_done_callback(self._greeting.discard)

    async def _greet(self, peer: socket.socket, guest: Guest) -> None:
        """Make a connection of it; a handshake that does not end is ended."""
        greeted = False
        try:
            with contextlib.suppress(OSError, ssl.SSLError):
                peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                tls.notice_silence(peer)
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: Door(self._doors, guest),
                    peer,
                    ssl=self._context,
                    ssl_handshake_timeout=None if self._context is None else _HANDSHAKE_SECONDS,
                )
                greeted = True
        finally:
            if not greeted:
                guest.gone()
                peer.close()


async def _bind(host: str, port: int) -> list[socket.socket]:
    """Return listening sockets of all addresses of a host.  Raises ``OSError``."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            each = socket.create_server(
                (str(address[0]), int(address[1])), family=family, backlog=_BACKLOG
            )
            each.setblocking(False)
            sockets.append(each)
    except OSError:
        for each in sockets:
            each.close()
        raise
    return sockets


def tls_context(
    folders: settings.Folders, configured: Configured, host: str
) -> ssl.SSLContext | None:
    """Return how to serve TLS; None where only this machine listens, in the clear."""
    if not configured.certificate:
        return None
    files = (configured.certificate, configured.key)
    if configured.certificate == SELF_SIGNED:
        files = certificates.ensure_self_signed(folders.state, host)
    context = certificates.server_context(*files)
    if not certificates.is_vouched_for(*files):
        log.info("certificate fingerprint: %s", certificates.fingerprint(files[0]))
    return context

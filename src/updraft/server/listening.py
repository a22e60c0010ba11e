"""The server's listening sockets: the owner's unix socket, and TCP under TLS for other machines."""

from __future__ import annotations

import asyncio
import logging
import ssl

from updraft import errors, settings
from updraft.configuration.schema import SELF_SIGNED
from updraft.configuration.schema import Server as Configured
from updraft.server.api.door import Door, Doors
from updraft.server.auth import certificates
from updraft.wire.sockets import listen_unix

log = logging.getLogger("updraft.server")

_HANDSHAKE_SECONDS = 10.0
_BACKLOG = 1024


async def listen(
    doors: Doors, folders: settings.Folders, configured: Configured
) -> list[asyncio.AbstractServer]:
    """Open the sockets, the unix socket last: whoever finds that one finds a whole server.

    Raises ``errors.UpdraftError``.
    """
    loop = asyncio.get_running_loop()
    listeners: list[asyncio.AbstractServer] = []
    if configured.listen is not None:
        host, port = configured.listen
        context = tls_context(folders, configured, host)
        try:
            listener = await loop.create_server(
                lambda: Door(doors, tcp=True),
                host,
                port,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
                backlog=_BACKLOG,
            )
        except OSError as error:
            raise errors.Unavailable(
                f"cannot listen on {configured.listen}: {error.strerror or error}; choose "
                "another address: --listen HOST:PORT"
            ) from error
        listeners.append(listener)
        log.info("listening at %s", configured.url)
    unix = await loop.create_server(lambda: Door(doors), sock=listen_unix(folders.socket))
    listeners.append(unix)
    return listeners


def tls_context(
    folders: settings.Folders, configured: Configured, host: str
) -> ssl.SSLContext | None:
    """Return how to serve TLS; None where only this machine listens, in the clear."""
    if not configured.certificate:
        return None
    files = (configured.certificate, configured.key)
    if configured.certificate == SELF_SIGNED:
        files = certificates.ensure_self_signed(folders.state, host)
        log.info("certificate fingerprint: %s", certificates.fingerprint(files[0]))
    return certificates.server_context(*files)

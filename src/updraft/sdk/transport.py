"""HTTP over the server's unix socket, for httpx.

Ours, because whoever is at the other end is checked before a byte is sent, a socket's path may be
longer than the kernel takes, and a server that is not there is started: all of it the business of
``bootstrap_client``, which hands over a connected socket.
"""

from __future__ import annotations

import http.client
import socket
from collections.abc import Callable, Iterator

import httpx

_READ_BYTES = 256 * 1024

Dial = Callable[[], socket.socket]
"""Returns a connected socket, or raises ``OSError`` or ``errors.UpdraftError``."""


class SocketTransport(httpx.BaseTransport):
    """Sends each request on a connection of its own: on one machine that costs next to nothing."""

    def __init__(self, dial: Dial) -> None:
        self._dial = dial

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response; its body is read as it is iterated."""
        try:
            connection = _Connection(self._dial())
        except OSError as error:
            raise httpx.ConnectError(str(error), request=request) from error
        try:
            connection.request(
                request.method,
                request.url.raw_path.decode("ascii"),
                body=request.read() or None,
                headers=dict(request.headers),
            )
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise httpx.ReadError(_told(error), request=request) from error
        return httpx.Response(
            answer.status,
            headers=answer.getheaders(),
            stream=_Body(connection, answer, request),
            request=request,
        )


class _Connection(http.client.HTTPConnection):
    def __init__(self, peer: socket.socket) -> None:
        super().__init__("localhost")
        # What the launch path connects is the C half of a socket; HTTP needs all of it.
        whole = isinstance(peer, socket.socket)
        self.sock = peer if whole else socket.socket(fileno=peer.detach())


class _Body(httpx.SyncByteStream):
    """A response's body, in the pieces in which it arrives."""

    def __init__(
        self, connection: _Connection, answer: http.client.HTTPResponse, request: httpx.Request
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        try:
            while data := self._answer.read1(_READ_BYTES):
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise httpx.ReadError(_told(error), request=self._request) from error

    def close(self) -> None:
        self._answer.close()
        self._connection.close()


def _told(error: Exception) -> str:
    return str(error) or type(error).__name__

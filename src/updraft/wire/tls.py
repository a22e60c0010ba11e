"""TLS as clients and agents use it: a certificate that the system trusts, or the one that is known.

A server without a name in the public world has a self-signed certificate; whoever talks to it is
given that certificate's *fingerprint* (``sha256:`` and the digest of the certificate, in hex), as
with ssh's host keys, and trusts nothing else.
"""

from __future__ import annotations

import hmac
import socket
import ssl
from hashlib import sha256

from updraft import errors

_ALGORITHM = "sha256:"
CONNECT_SECONDS = 10.0
_RECORD_BYTES = 1 << 16
_SILENCE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 4}
"""Seconds, seconds and probes: a peer of which nothing is heard for 25 s is gone."""


class FrameSocket:
    """A TLS connection as ``sdk.session`` uses a socket: neither sending nor receiving waits."""

    def __init__(self, peer: ssl.SSLSocket) -> None:
        self._peer = peer
        peer.setblocking(False)

    def fileno(self) -> int:
        """Return the descriptor to poll; see ``recv`` for what it does not tell."""
        return self._peer.fileno()

    def send(self, data: bytes | bytearray, _flags: int = 0) -> int:
        """Send what goes now.  Raises ``BlockingIOError`` when nothing does."""
        try:
            return self._peer.send(data)
        except (ssl.SSLWantWriteError, ssl.SSLWantReadError):
            raise BlockingIOError from None
        except ssl.SSLError as error:
            raise ConnectionResetError(str(error)) from error

    def recv(self, size: int, _flags: int = 0) -> bytes:
        """Return what is here, at most ``size`` bytes; empty at the end.

        Fewer than ``size`` means that nothing more is held where polling does not see it.  Raises
        ``BlockingIOError`` when there is nothing yet.
        """
        parts: list[bytes] = []
        left = size
        while left > 0:
            try:
                part = self._peer.recv(min(left, _RECORD_BYTES))
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                if not parts:
                    raise BlockingIOError from None
                break
            except (ssl.SSLError, ConnectionError) as error:
                if not parts:
                    raise ConnectionResetError(str(error)) from error
                break
            if not part:
                break
            parts.append(part)
            left -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """End the connection."""
        self._peer.close()


def connect(
    host: str,
    port: int,
    *,
    fingerprint: str,
    silence_seconds: float | None = None,
    pin: str = "give its fingerprint: --fingerprint sha256:…",
) -> socket.socket:
    """Return a connection to a server that is who it is said to be.

    ``silence_seconds``: how long each read and write may wait; None: for ever.  ``pin``: how a
    person gives a fingerprint.  Raises ``OSError`` when there is none, and ``errors.NotAllowed``.
    """
    peer = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    try:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        notice_silence(peer)
        secured = client_context(fingerprint).wrap_socket(peer, server_hostname=host)
        peer = secured
        check(secured.getpeercert(binary_form=True), fingerprint, f"{host}:{port}", pin)
        peer.settimeout(silence_seconds)
    except ssl.SSLCertVerificationError as error:
        peer.close()
        raise errors.NotAllowed(
            f"the certificate of {host}:{port} is not to be trusted ({error.verify_message}); if "
            f"the server has a self-signed one, {pin}"
        ) from error
    except BaseException:
        peer.close()
        raise
    return peer


def notice_silence(peer: socket.socket) -> None:
    """Let the system end a connection whose other end is silent, though it only listens.

    A server that was restarted, or a network address translator that forgot, while nothing got
    through in either direction is not heard of in any other way.
    """
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _SILENCE.items():
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def client_context(fingerprint: str) -> ssl.SSLContext:
    """Return how to connect to a server; ``fingerprint`` is empty where the system is to judge."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    if fingerprint:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # ``check`` does it
    else:
        context.load_default_certs()  # slow: the whole of the system's trust
    return context


def fingerprint_of(certificate: bytes) -> str:
    """Return the fingerprint of a certificate (DER)."""
    return _ALGORITHM + sha256(certificate).hexdigest()


def check(certificate: bytes | None, fingerprint: str, where: str, pin: str) -> None:
    """Refuse a server whose certificate is not the known one; before a byte is sent to it.

    Raises ``errors.NotAllowed``.
    """
    if not fingerprint:
        return
    found = fingerprint_of(certificate or b"")
    if not hmac.compare_digest(found, fingerprint.lower()):
        raise errors.NotAllowed(
            f"{where} has another certificate than the known one: {found}; if it was renewed, {pin}"
        )

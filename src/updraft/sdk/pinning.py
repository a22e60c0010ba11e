"""TLS to a server: by the system's authorities, or by the fingerprint of its one certificate.

A pinned certificate is the trust anchor itself: whoever has its key is the server, whatever name it
has, and nobody else is.
"""

from __future__ import annotations

import hashlib
import socket
import ssl

from updraft import errors

_CONNECT_SECONDS = 15.0


def fingerprint_of(certificate: bytes) -> str:
    """Return ``sha256:`` and the digest of a certificate (DER)."""
    return f"sha256:{hashlib.sha256(certificate).hexdigest()}"


def certificate_of(host: str, port: int) -> bytes:
    """Return the certificate (DER) that a server shows, which proves nothing yet.

    Raises ``errors.Unavailable``.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((host, port), _CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secured,
        ):
            found = secured.getpeercert(binary_form=True)
    except OSError as error:
        raise errors.Unavailable(f"cannot reach {host}:{port}: {error}") from error
    assert found is not None  # noqa: S101 - a TLS server has one
    return found


def pinned_context(host: str, port: int, fingerprint: str) -> ssl.SSLContext:
    """Return a context that trusts the certificate with this fingerprint, and no other.

    Raises ``errors.NotAllowed`` when the server shows another one, and ``errors.Unavailable``.
    """
    certificate = certificate_of(host, port)
    found = fingerprint_of(certificate)
    if found != fingerprint:
        raise errors.NotAllowed(
            f"{host}:{port} shows another certificate than it had ({found}, not {fingerprint}); if "
            "that is meant, sign in again: updraft login"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # the certificate is the identity
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=certificate)
    return context


def is_trusted(host: str, port: int) -> bool:
    """Whether the system's authorities vouch for a server.  Raises ``errors.Unavailable``."""
    context = ssl.create_default_context()
    try:
        with (
            socket.create_connection((host, port), _CONNECT_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False
    except OSError as error:
        raise errors.Unavailable(f"cannot reach {host}:{port}: {error}") from error

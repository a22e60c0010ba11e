"""What a server shows before anything is known of it: for whoever is to decide to trust it.

From then on ``wire.tls`` connects to it.
"""

from __future__ import annotations

import socket
import ssl

from updraft import errors

_CONNECT_SECONDS = 15.0


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

"""The server's TLS: certificate files, or a self-signed certificate that is made on request."""

from __future__ import annotations

import base64
import contextlib
import datetime
import hashlib
import ipaddress
import os
import socket
import ssl
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from updraft import errors
from updraft.wire import tls

_YEARS = 10
_FLIGHTS = 4
"""More than a handshake has, with a second hello where the first had no key that both know."""


def server_context(certificate: str, key: str) -> ssl.SSLContext:
    """Return how to serve TLS with these files (PEM).

    Raises ``errors.BadConfiguration`` where they cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    for what, file in (("certificate", certificate), ("key", key)):
        try:
            Path(file).open("rb").close()
        except OSError as error:
            raise errors.BadConfiguration(
                f"cannot read the {what} {file}: {error.strerror}; check server.{what}"
            ) from error
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise errors.BadConfiguration(
            f"cannot use certificate {certificate} with key {key}: {error}; both are to be PEM "
            "files, and to belong together"
        ) from error
    return context


def is_vouched_for(certificate: str, key: str) -> bool:
    """Whether this machine's authorities vouch for a certificate, whatever name it is for.

    Decided by a handshake in memory, as a client elsewhere decides it: with the chain that is sent,
    and with what the system trusts.  Raises ``errors.BadConfiguration``.
    """
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_context(certificate, key).wrap_bio(to_server, to_client, server_side=True)
    trusting = ssl.create_default_context()
    trusting.check_hostname = False
    client = trusting.wrap_bio(to_client, to_server)
    for _ in range(_FLIGHTS):
        try:
            client.do_handshake()
        except ssl.SSLWantReadError:
            with contextlib.suppress(ssl.SSLWantReadError):
                server.do_handshake()
        except ssl.SSLError:
            return False
        else:
            return True
    return False


def fingerprint(certificate: str) -> str:
    """Return the fingerprint of a certificate file's first certificate."""
    pem = Path(certificate).read_bytes()
    found = x509.load_pem_x509_certificates(pem)[0]
    return tls.fingerprint_of(found.public_bytes(serialization.Encoding.DER))


def key_pin(certificate: str) -> str:
    """Return the pin of a certificate's public key, as ``curl --pinnedpubkey`` takes it."""
    found = x509.load_pem_x509_certificates(Path(certificate).read_bytes())[0]
    key = found.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return "sha256//" + base64.b64encode(hashlib.sha256(key).digest()).decode()


def self_signed_file(folder: str) -> str:
    """Return where a self-signed certificate is kept."""
    return str(Path(folder, "server.crt"))


def ensure_self_signed(folder: str, host: str) -> tuple[str, str]:
    """Return certificate and key files in ``folder``, made if they are not there.

    The key is never readable by others; whoever has the certificate's fingerprint knows it is us.
    """
    certificate, key = Path(self_signed_file(folder)), Path(folder, "server.key")
    if certificate.exists() and key.exists():
        return str(certificate), str(key)
    made = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Updraft")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(made.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=365 * _YEARS))
        .add_extension(x509.SubjectAlternativeName(_names(host)), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .sign(made, hashes.SHA256())
    )
    encoding, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = made.private_bytes(encoding, serialization.PrivateFormat.PKCS8, plain)
    _write(key, private, 0o600)
    _write(certificate, built.public_bytes(encoding), 0o644)
    return str(certificate), str(key)


def _names(host: str) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.DNSName("localhost"), x509.DNSName(socket.gethostname())]
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if host:
            names.append(x509.DNSName(host))
    else:
        if not address.is_unspecified:
            names.append(x509.IPAddress(address))
    names.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
    return names


def _write(path: Path, data: bytes, mode: int) -> None:
    new = path.with_suffix(".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)

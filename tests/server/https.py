"""The API over TLS on loopback, in a thread of its own, with a certificate made for the run."""

import asyncio
import datetime
import ipaddress
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.server.api import Api, api

T = TypeVar("T")


class HttpsApi:
    """A running server; ``call`` runs a coroutine in its loop."""

    def __init__(self, made: Api, loop: asyncio.AbstractEventLoop, port: int, pin: str) -> None:
        self.made = made
        self._loop = loop
        self.port = port
        self.fingerprint = pin

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}"

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Run something in the server's loop and return its result."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)


@contextmanager
def https_api(folder: Path) -> Iterator[HttpsApi]:
    """Return a server for a ``with`` block."""
    key, certificate, fingerprint = self_signed(folder)
    ready: list[tuple[Api, asyncio.AbstractEventLoop, uvicorn.Server, int]] = []
    up = threading.Event()

    async def serve() -> None:
        async with api(folder) as made:
            config = uvicorn.Config(
                made.app, port=0, log_level="error", lifespan="off", ws="none",
                ssl_keyfile=str(key), ssl_certfile=str(certificate),
            )  # fmt: skip
            server = uvicorn.Server(config)
            serving = asyncio.create_task(server.serve())
            while not server.started:  # noqa: ASYNC110 - uvicorn has no event for it
                await asyncio.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            ready.append((made, asyncio.get_running_loop(), server, port))
            up.set()
            await serving

    thread = threading.Thread(target=lambda: asyncio.run(serve()), name="https")
    thread.start()
    try:
        assert up.wait(60)
        made, loop, _, port = ready[0]
        yield HttpsApi(made, loop, port, fingerprint)
    finally:
        if ready:
            ready[0][2].should_exit = True
        thread.join(30)


def self_signed(folder: Path) -> tuple[Path, Path, str]:
    """Make a key and a certificate; return their files and the certificate's fingerprint."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "updraft")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("localhost")]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = folder / "key.pem", folder / "certificate.pem"
    paths[0].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    paths[1].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return *paths, f"sha256:{certificate.fingerprint(hashes.SHA256()).hex()}"

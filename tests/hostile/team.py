"""A team's server of a test's own: TLS on loopback, users, and what its process takes."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from tests.waiting import until
from updraft.sdk.submission import submission
from updraft.testing.instance import Instance
from updraft.wire import frames
from updraft.wire.packing import unpack_dict

PASSWORD = "correct horse battery"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Team:
    """A running server: ``anna`` is its admin, ``ben`` a member, ``vera`` a viewer of default."""

    def __init__(self, own: Instance, pid: int, port: int, log: Path) -> None:
        self.own = own
        self.pid = pid
        self.port = port
        self.log = log
        said = log.read_text()
        found = re.search(r"fingerprint: (sha256:\S+)", said)
        assert found is not None, said
        self.fingerprint = found[1]
        self.tokens: dict[str, str] = {}

    @property
    def url(self) -> str:
        """Its address."""
        return f"https://127.0.0.1:{self.port}"

    # -- what an owner does

    def owner(self, *arguments: str, data: bytes | None = None) -> str:
        """Run ``updraft …`` as the server's owner, through the unix socket."""
        done = self.own.run("updraft", *arguments, data=data)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    def add(self, name: str, *options: str, role: str = "", scope: str = "admin") -> None:
        """Make a user, with a token."""
        self.owner("user", "add", name, "--stdin", *options, data=PASSWORD.encode() + b"\n")
        if role:
            self.owner("project", "members", "default", "--add", name, "--role", role)
        made = self.owner("token", "create", "test", "--user", name, "--scope", scope)
        self.tokens[name] = made.strip()

    def join_token(self) -> str:
        """A join token of the pool ``remote``."""
        return self.owner("runner", "token", "remote").split()[0]

    # -- what users do

    def urun(self, user: str, *arguments: str, timeout: float = 30.0) -> Any:
        """Run ``urun …`` as a user elsewhere."""
        environment = {
            name: value
            for name, value in self.own.environment.items()
            if name not in ("UPDRAFT_CONFIG", "UPDRAFT_HOME")
        }
        environment |= {
            "UPDRAFT_HOME": str(self.own.home.with_name("elsewhere")),
            "UPDRAFT_URL": self.url,
            "UPDRAFT_TOKEN": self.tokens[user],
            "UPDRAFT_FINGERPRINT": self.fingerprint,
        }
        return subprocess.run(
            self.own.command("urun", *arguments), env=environment, stdin=subprocess.DEVNULL,
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip

    def http(self, user: str = "", **headers: str) -> httpx.Client:
        """A client of the API."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        if user:
            given["Authorization"] = f"Bearer {self.tokens[user]}"
        return httpx.Client(
            base_url=f"{self.url}/api/v1", headers=given, verify=_context(), timeout=30,
            trust_env=False,
        )  # fmt: skip

    def at(self, source: str) -> httpx.Client:
        """A client of the API at one of loopback's addresses, with no credential."""
        transport = httpx.HTTPTransport(verify=_context(), local_address=source)
        return httpx.Client(
            base_url=f"{self.url}/api/v1", transport=transport, timeout=30, trust_env=False
        )

    def good(self) -> float:
        """Do what a well-meaning user does; return the seconds that it took."""
        begun = time.monotonic()
        done = self.urun("ben", "-q", "true")
        assert (done.returncode, done.stderr) == (0, b"")
        return time.monotonic() - begun

    # -- what strangers do

    def dial(self, source: str = "127.0.0.1") -> socket.socket:
        """A TCP connection, from one of loopback's addresses."""
        return socket.create_connection(("127.0.0.1", self.port), 20, (source, 0))

    def tls(self, source: str = "127.0.0.1") -> ssl.SSLSocket:
        """A TLS connection.  Raises ``OSError`` when the server does not take it."""
        return _context().wrap_socket(self.dial(source))

    def session(self, user: str, role: str = "client", **more: Any) -> Frames:
        """A frame connection that has said hello as a user."""
        return Frames(self.tls(), hello(self.tokens[user], role, **more))

    # -- what its process takes

    def resident_bytes(self) -> int:
        """The memory that the server has now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE_BYTES

    def alive(self) -> bool:
        """Whether the process lives that was started."""
        return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


class Frames:
    """A raw connection of the protocol's."""

    def __init__(self, peer: ssl.SSLSocket, first: bytes = b"") -> None:
        self.peer = peer
        self._reader = frames.FrameReader()
        self._read: deque[tuple[int, int, int, bytes]] = deque()
        if first:
            self.send(first)

    def send(self, data: bytes) -> bool:
        """Send; whether the server still takes it."""
        try:
            self.peer.sendall(data)
        except (OSError, ssl.SSLError):
            return False
        return True

    def answers(self, *last: int, seconds: float = 20.0) -> list[tuple[int, dict[str, Any]]]:
        """All control frames up to one of these kinds, or to the connection's end."""
        return [
            (kind, unpack_dict(payload) if payload else {})
            for kind, _, _, payload in self.received(*last, seconds=seconds)
            if kind not in (frames.DATA, frames.ACK, frames.GREW, frames.CLOSE)
        ]

    def received(self, *last: int, seconds: float = 20.0) -> list[tuple[int, int, int, bytes]]:
        """All frames up to one of these kinds, or to the connection's end."""
        self.peer.settimeout(seconds)
        found: list[tuple[int, int, int, bytes]] = []
        while True:
            while self._read:
                found.append(self._read.popleft())
                if found[-1][0] in last:
                    return found
            try:
                chunk = self.peer.recv(1 << 16)
            except TimeoutError:
                raise
            except OSError:
                chunk = b""
            if not chunk:
                return found
            self._read += (
                (kind, channel, offset, bytes(payload))
                for kind, channel, offset, payload in self._reader.feed(chunk)
            )

    def close(self) -> None:
        """Go."""
        self.peer.close()

    def __enter__(self) -> Frames:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def hello(token: str = "", role: str = "client", **more: Any) -> bytes:
    """Return a HELLO."""
    body = {"role": role, "wire": frames.WIRE_VERSION, "release": "0", "token": token, **more}
    return frames.message(frames.HELLO, body)


def submit(*argv: str, **changes: Any) -> bytes:
    """Return a SUBMIT."""
    body = {**submission([word.encode() for word in argv], attached=True), "cpus_milli": 0}
    return frames.message(frames.SUBMIT, {**body, **changes})


def ended(peer: socket.socket, seconds: float) -> float:
    """Wait for the server to end a connection; return how long it took."""
    begun = time.monotonic()
    peer.settimeout(seconds)
    try:
        while peer.recv(1 << 16):
            pass
    except TimeoutError:
        raise AssertionError(f"not ended within {seconds:g} s") from None
    except OSError:
        pass
    return time.monotonic() - begun


@contextmanager
def team(folder: Path, settings: str = "") -> Iterator[Team]:
    """Return a server with its users for a ``with`` block; the process must be the same after."""
    own = Instance(folder / "home")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    file = folder / "updraft.toml"
    file.write_text(
        f'[server]\nlisten = "127.0.0.1:{port}"\ncertificate = "self-signed"\nlocal_pool = true\n'
        f"{settings}\n[pools.remote]\n"
    )
    own.environment["UPDRAFT_CONFIG"] = str(file)
    log = folder / "log"
    with log.open("wb") as to:
        process = subprocess.Popen(
            own.command("updraft", "serve"), env=own.environment, stdin=subprocess.DEVNULL,
            stdout=to, stderr=to,
        )  # fmt: skip
    try:
        until(lambda: "serving at" in log.read_text() or process.poll() is not None, "the server")
        assert process.poll() is None, log.read_text()
        made = Team(own, process.pid, port, log)
        made.add("anna", "--admin", role="admin")
        made.add("ben", role="member")
        made.add("vera", role="viewer")
        until(lambda: made.urun("ben", "-q", "true").returncode == 0, "a first job")
        yield made
        assert process.poll() is None, "the server ended"
        said = log.read_text()
        assert "Traceback" not in said, said[said.index("Traceback") - 500 :][:3000]
    finally:
        own.run("updraft", "stop", "--cancel", timeout=60)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(30)
        until(lambda: not own.processes(), "the processes' end", 30)


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def code_of(answer: httpx.Response) -> str:
    """Return the code of an error."""
    return str(json.loads(answer.content)["error"]["code"])

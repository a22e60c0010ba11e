"""Start an agent, as its keeper's child: ``python -m updraft.runner.agent --folder DIR``."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop

from updraft import bootstrap, errors, settings
from updraft.runner import joined, joining, upgrading
from updraft.runner.agent import owners
from updraft.runner.agent.agent import Agent
from updraft.runner.agent.capacity import find_capacity
from updraft.runner.agent.server_connection import ServerStopped
from updraft.upgrades import wait_for_upgrade
from updraft.wire import tls
from updraft.wire.sockets import as_standard
from updraft.wire.transport import FrameConnection

log = logging.getLogger("updraft.agent")

_HANDSHAKE_SECONDS = 10.0
_USAGE = (
    "usage: python -m updraft.runner.agent --folder DIR "
    "[--joined [--owners POLICY FIRST_UID LAST_UID]]\n"
)


class _LocalServer:
    """Dials the server of this machine, and starts it again when it was killed."""

    RESTART_AFTER_SECONDS = 0.1
    DYING_SECONDS = 1.0

    def __init__(self, folders: settings.Folders) -> None:
        self._folders = folders
        self._stopped = Path(folders.stopped)
        self._missing_since: float | None = None
        self.credentials: dict[str, str] = {}
        self.hindrance = "it is of its server's own installation"
        self.way: list[bytes] = []  # the server says it itself

    async def open(self, make: Callable[[], FrameConnection]) -> FrameConnection:
        try:
            peer = bootstrap.connect(self._folders)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if self._stopped.exists():
                raise ServerStopped("the server was stopped") from error
            now = time.monotonic()
            self._missing_since = self._missing_since or now
            if now - self._missing_since < self.RESTART_AFTER_SECONDS:
                raise
            try:
                peer = await asyncio.to_thread(bootstrap.ensure_server, self._folders)
            except errors.UpdraftError as problem:
                raise ConnectionError(problem.message) from problem
        except errors.UpdraftError as error:
            raise ConnectionError(error.message) from error
        self._missing_since = None
        standard = as_standard(peer)
        standard.setblocking(False)
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(make, sock=standard)
        return connection

    async def upgrade(self, release: str) -> str:
        return self.hindrance

    def bring_back(self) -> None:
        """Start the server if it was killed too: nobody else is left who would."""
        while not self._stopped.exists():
            try:
                with as_standard(bootstrap.ensure_server(self._folders)) as peer:
                    # One that was killed may still accept; one that stays lets us wait.
                    peer.settimeout(self.DYING_SECONDS)
                    peer.recv(1)
            except TimeoutError:
                return
            except ConnectionError:
                continue
            except errors.UpdraftError:
                log.exception("cannot bring the server back")
                return


class _JoinedServer:
    """Dials the server that this runner has joined."""

    def __init__(self, folder: str, place: joined.Joined) -> None:
        self._folder = folder
        self._place = place
        self.hindrance = upgrading.hindrance()
        self._tls = tls.client_context(place.fingerprint)
        self.credentials = {"token": place.token}
        self.way = [b"UPDRAFT_URL=" + place.url.encode()]
        if place.fingerprint:
            self.way.append(b"UPDRAFT_FINGERPRINT=" + place.fingerprint.encode())

    async def open(self, make: Callable[[], FrameConnection]) -> FrameConnection:
        place = self._place
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(_HANDSHAKE_SECONDS):
            transport, connection = await loop.create_connection(
                make, place.host, place.port, ssl=self._tls, server_hostname=place.host
            )
        inside: Any = transport.get_extra_info("ssl_object")
        try:
            shown = inside.getpeercert(binary_form=True)
            tls.check(shown, place.fingerprint, place.url, place.pin)
        except errors.NotAllowed as error:
            transport.close()
            raise ConnectionError(error.message) from error
        return connection

    async def upgrade(self, release: str) -> str:
        """Let a process of its own do it: the connection is kept alive meanwhile."""
        if self.hindrance:
            return self.hindrance
        words = ["-I", "-m", "updraft.runner.upgrading", "--folder", self._folder, release]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *words,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        _, said = await process.communicate()
        if not process.returncode:
            return ""
        lines = said.decode(errors="replace").splitlines()
        return lines[-1] if lines else f"exit code {process.returncode}"


async def _run_joined(agent: Agent) -> bool:
    """Run an agent that also goes over to what others install in its environment."""

    async def watch() -> None:
        await wait_for_upgrade("updraft.runner.agent.__main__")
        agent.make_way()

    watching = asyncio.create_task(watch(), name="upgrades")
    try:
        return await agent.run()
    finally:
        watching.cancel()


def main(arguments: list[str]) -> int:
    """Run a runner's agent until its keeper is gone."""
    match arguments:
        case ["--folder", folder, *rest] if not rest or rest[0] == "--joined":
            pass
        case _:
            sys.stderr.write(_USAGE)
            return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s")
    keeper_socket, spool = os.path.join(folder, "keeper.sock"), os.path.join(folder, "spool")
    if rest:
        place = joined.load(folder)
        remote = _JoinedServer(folder, place)
        own = _owners(folder, rest[1:]) if place.shared else None
        os.makedirs(spool, mode=0o700, exist_ok=True)
        if uvloop.run(_run_joined(Agent(find_capacity(), keeper_socket, remote, spool, own))):
            # Its keeper was killed, and nobody else is left who would.
            joining.start(folder, shared=place.shared)
        return 0
    local = _LocalServer(settings.folders())
    if uvloop.run(Agent(find_capacity(), keeper_socket, local, spool).run()):
        local.bring_back()
    return 0


def _owners(folder: str, words: list[str]) -> owners.Owners:
    """Return the owners as ``joining.command`` has them; without words as they are by default."""
    match words:
        case ["--owners", policy, first, last]:
            return owners.Owners(Path(folder), owners.Policy(policy), int(first), int(last))
        case _:
            return owners.Owners(Path(folder))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Start an agent: ``python -m updraft.runner.agent --folder DIR``, as its keeper's child."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
import time
from pathlib import Path

import uvloop

from updraft import bootstrap, errors, settings
from updraft.runner.agent.agent import Agent, ServerStopped
from updraft.runner.agent.capacity import find_capacity
from updraft.wire.sockets import as_standard

log = logging.getLogger("updraft.agent")


class _LocalServer:
    """Dials the server of this machine, and starts it again when it was killed."""

    RESTART_AFTER_SECONDS = 0.1
    DYING_SECONDS = 1.0

    def __init__(self, folders: settings.Folders) -> None:
        self._folders = folders
        self._stopped = Path(folders.stopped)
        self._missing_since: float | None = None

    async def dial(self) -> socket.socket:
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
        return standard

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


def main(arguments: list[str]) -> int:
    """Run the local runner's agent until its keeper is gone."""
    if len(arguments) != 2 or arguments[0] != "--folder":
        sys.stderr.write("usage: python -m updraft.runner.agent --folder DIR\n")
        return 2
    logging.basicConfig(level=logging.INFO, format="%(asctime)s agent %(levelname)s %(message)s")
    server = _LocalServer(settings.folders())
    keeper_socket = os.path.join(arguments[1], "keeper.sock")
    agent = Agent("local", find_capacity(), keeper_socket, server.dial)
    if uvloop.run(agent.run()):
        server.bring_back()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

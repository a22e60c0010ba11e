"""The server's composition root: builds the parts, joins them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import signal
import ssl
import time
from collections.abc import Coroutine, Mapping
from typing import Any

from updraft import bootstrap, errors, settings
from updraft.configuration import Configuration, reading
from updraft.configuration.schema import SELF_SIGNED
from updraft.configuration.schema import Server as ServerSettings
from updraft.providers import local
from updraft.server.api.agent_session import AgentSessions
from updraft.server.api.client_session import ClientSession
from updraft.server.api.door import Door, Doors
from updraft.server.api.exec_session import ExecSession
from updraft.server.api.http import HttpApi
from updraft.server.api.parts import Parts
from updraft.server.auth import certificates
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.loops.leases import Leases
from updraft.server.loops.retention import keep_output_bounded
from updraft.server.loops.upgrade import wait_for_upgrade
from updraft.server.relay.relay import Relay
from updraft.server.services.access import Access
from updraft.server.services.beside import BesideRuns
from updraft.server.services.execution import Execution
from updraft.server.services.fleet import Fleet, configured_pools
from updraft.server.services.gate import Gate
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.server.services.oidc import OidcSettings
from updraft.server.services.sign_in import SessionLimits
from updraft.store import jobs as queries
from updraft.store import schema
from updraft.store.database import Database, sqlite_url
from updraft.wire.sockets import listen_unix

log = logging.getLogger("updraft.server")

_RUNNER_CHECK_SECONDS = 0.25
_RUNNER_STARTS_SECONDS = 1.0
_IDLE_CHECK_SECONDS = 5.0
_LOCK_WAIT_SECONDS = 18.0
_LAST_OUTPUT_SECONDS = 10.0
_HANDSHAKE_SECONDS = 10.0
_BACKLOG = 1024


class Server:
    """One user's server on one machine."""

    def __init__(
        self, folders: settings.Folders, overrides: Mapping[str, str] | None = None
    ) -> None:
        """``overrides``: settings of the command line, by full name (``server.listen``)."""
        self._folders = folders
        self._overrides = overrides
        self._lock = -1
        self._started = time.monotonic()

    async def run(self, ready_fd: int | None) -> None:
        """Serve until told to stop.  Raises ``errors.UpdraftError`` when it cannot start.

        ``ready_fd`` gets the word that there is a server, also when it is another, which came up
        meanwhile: whoever started that one may have been killed.
        """
        if not self._take_lock():
            if ready_fd is None:
                raise errors.Conflict("a server runs already; end it: updraft stop")
            _tell_ready(ready_fd)
            return
        configuration = self._prepare()
        database = Database(sqlite_url(self._folders.database))
        await asyncio.to_thread(schema.upgrade, database.engine)
        used = await database.read(queries.used_key_slots)
        keys = EnvironmentKeys(self._folders.keys, used)
        execution = Execution(database, keys, Relay(), self._folders.logs)
        execution.quota_bytes = configuration.server.output_quota
        execution.default_pool = configuration.server.default_pool
        await execution.load()
        fleet = Fleet(database, execution, configured_pools(configuration))
        await fleet.load()
        jobs = Jobs(database, execution)
        instance = Instance(self._folders, execution, configuration.server)
        access = Access(database, _sessions(configuration), _oidc(configuration))
        await access.load()
        parts = Parts(database, execution, jobs, fleet, instance, access)
        http = HttpApi(parts)
        doors = _doors(parts, http, configuration)
        listeners = await self._listen(doors, configuration.server)
        # Only a server that can serve starts a runner, which would start one that cannot for ever.
        if configuration.server.local_pool:
            local.launch_runner(self._folders)
        # In the foreground a signal is its owner's wish; else the agent starts the server again.
        end = instance.stop_requested.set if ready_fd is not None else instance.leave
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        if ready_fd is not None:
            _tell_ready(ready_fd)
        log.info("serving at %s", self._folders.socket)
        loops = [
            asyncio.create_task(work, name=name)
            for name, work in self._loops(parts, configuration).items()
        ]
        loops.append(asyncio.create_task(http.preload(), name="http"))
        if ready_fd is not None and math.isfinite(configuration.server.idle_stop):
            # One in the foreground stays until its owner ends it.
            watch = self._watch_idle(instance, doors, listeners[-1])
            loops.append(asyncio.create_task(watch, name="idle"))
        await instance.stop_requested.wait()
        if instance.stopping:
            await _serve_last_output(doors)
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        execution.closing = True
        for listener in listeners:
            listener.close()
        await execution.settle()
        await http.finish()
        await access.close()
        await database.close()
        keys.close()
        log.info("stopped")

    async def _listen(
        self, doors: Doors, configured: ServerSettings
    ) -> list[asyncio.AbstractServer]:
        """Open the unix socket, and the TCP one where it is configured."""
        loop = asyncio.get_running_loop()
        listeners: list[asyncio.AbstractServer] = []
        if configured.listen is not None:
            host, port = configured.listen
            context = self._tls(configured, host)
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
        listeners.append(
            await loop.create_server(lambda: Door(doors), sock=listen_unix(self._folders.socket))
        )
        return listeners

    def _tls(self, configured: ServerSettings, host: str) -> ssl.SSLContext | None:
        """Return how to serve TLS; None where only this machine listens, in the clear."""
        if not configured.certificate:
            return None
        files = (configured.certificate, configured.key)
        if configured.certificate == SELF_SIGNED:
            files = certificates.ensure_self_signed(self._folders.state, host)
            log.info("certificate fingerprint: %s", certificates.fingerprint(files[0]))
        return certificates.server_context(*files)

    def _loops(
        self,
        parts: Parts,
        configuration: Configuration,
    ) -> dict[str, Coroutine[Any, Any, None]]:
        """Return what goes on beside the requests, by name."""
        configured = configuration.server
        leases = Leases(parts.execution, configured.suspect_after, configured.lost_after)
        loops = {
            "upgrade": _restart_on_upgrade(parts.instance),
            "retention": keep_output_bounded(parts.database, self._folders.logs, configured),
            "leases": leases.watch(),
        }
        if configured.local_pool:
            loops["runner"] = _keep_runner(parts.instance, parts.execution, self._folders)
        return loops

    def _prepare(self) -> Configuration:
        configuration = reading.load(self._folders, self._overrides)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folders.stopped)
        os.makedirs(self._folders.logs, mode=0o700, exist_ok=True)
        return configuration

    def _take_lock(self) -> bool:
        """Become the one server of these folders; False when another is, and serves."""
        self._lock = os.open(
            self._folders.server_lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
        )
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while True:
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if self._is_served():
                    return False
                if time.monotonic() > deadline:
                    raise errors.Conflict(
                        f"another server holds {self._folders.server_lock} and does not serve; "
                        f"see {self._folders.server_log}"
                    ) from None
                time.sleep(0.02)
            else:
                return True

    def _is_served(self) -> bool:
        try:
            bootstrap.connect(self._folders).close()
        except OSError:
            return False
        return True

    def _close_door(self) -> None:
        os.unlink(self._folders.socket)

    async def _watch_idle(
        self, instance: Instance, doors: Doors, listener: asyncio.AbstractServer
    ) -> None:
        """End by ourselves when there has been nothing to do for long."""
        idle_since, seen = time.monotonic(), doors.accepted
        while True:
            await asyncio.sleep(min(_IDLE_CHECK_SECONDS, instance.settings.idle_stop / 4))
            if instance.busy or doors.clients or doors.accepted != seen:
                idle_since, seen = time.monotonic(), doors.accepted
                continue
            if time.monotonic() - idle_since < instance.settings.idle_stop:
                continue
            # Under the start lock nobody can find us half closed: who comes now starts another.
            with bootstrap.start_lock(self._folders):
                if doors.accepted != seen:
                    continue
                listener.close()
                self._close_door()
                log.info("idle for %.0f s", time.monotonic() - idle_since)
                instance.disarm_runner(cancel=False)
                instance.stop_requested.set()
                return


def _doors(parts: Parts, http: HttpApi, configuration: Configuration) -> Doors:
    beside = BesideRuns(parts.execution)
    agents = AgentSessions(parts.execution, beside, configuration.server.suspect_after)
    return Doors(
        {
            "client": lambda who: ClientSession(
                parts.execution, parts.jobs, parts.access.admission, who
            ),
            "exec": lambda who: ExecSession(beside, parts.jobs, who),
        },
        {"agent": agents.control, "agent-data": agents.data},
        http=http.protocol,
        gate=Gate(parts.access, parts.fleet),
    )


def _sessions(configuration: Configuration) -> SessionLimits:
    configured = configuration.sign_in
    return SessionLimits(
        idle_seconds=configured.session,
        absolute_seconds=configured.session_max,
    )


def _oidc(configuration: Configuration) -> OidcSettings | None:
    """Return how to use the identity provider, if one is configured."""
    configured = configuration.sign_in.oidc
    if not configured.issuer:
        return None
    secret = ""
    if configured.client_secret_file:
        with open(configured.client_secret_file) as file:
            secret = file.read().strip()
    return OidcSettings(
        issuer=configured.issuer,
        client_id=configured.client_id,
        client_secret=secret,
        server_url=configuration.server.url,
        domains=configured.allowed_domains,
        groups=configured.allowed_groups,
        project=configured.project or None,
    )


async def _serve_last_output(doors: Doors) -> None:
    """Let slow readers have all of their jobs' output, if no server comes that would go on."""
    try:
        async with asyncio.timeout(_LAST_OUTPUT_SECONDS):
            await doors.clients_gone()
    except TimeoutError:
        log.warning("%d clients did not take all output in time", len(doors.clients))


def _tell_ready(fd: int) -> None:
    """Tell whoever started us; one that went away meanwhile may start jobs later."""
    try:
        os.write(fd, b"ready\n")
    except BrokenPipeError:
        log.info("whoever started this server did not wait for it")
    os.close(fd)


async def _restart_on_upgrade(instance: Instance) -> None:
    """Make way for a new release; whoever misses the server starts it again."""
    await wait_for_upgrade()
    instance.stop_requested.set()


async def _keep_runner(instance: Instance, execution: Execution, folders: settings.Folders) -> None:
    """Start the local runner again when all of it is gone."""
    while True:
        await asyncio.sleep(_RUNNER_CHECK_SECONDS)
        runner = execution.live.runners.get("local")
        if runner is not None and runner.control is not None:
            instance.replace_old_keeper()
        elif not instance.stopping and not local.is_running(folders):
            try:
                local.launch_runner(folders)
            except (OSError, errors.BadConfiguration):
                log.exception("cannot start the runner")
            await asyncio.sleep(_RUNNER_STARTS_SECONDS)

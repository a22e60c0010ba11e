"""The server's composition root: builds the parts, joins them, and ends them in order."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time

from updraft import bootstrap, errors, settings
from updraft.configuration import Configuration, reading
from updraft.providers import local
from updraft.server.api.agent_session import AgentSessions
from updraft.server.api.client_session import ClientSession
from updraft.server.api.door import Door, Doors
from updraft.server.api.exec_session import ExecSession
from updraft.server.api.http import HttpApi
from updraft.server.auth.environment_keys import EnvironmentKeys
from updraft.server.loops.lag import watch_lag
from updraft.server.loops.retention import keep_output_bounded
from updraft.server.loops.upgrade import wait_for_upgrade
from updraft.server.observe import logs
from updraft.server.observe.traces import traces_to
from updraft.server.relay.relay import Relay
from updraft.server.services.beside import BesideRuns
from updraft.server.services.execution import Execution
from updraft.server.services.instance import Instance
from updraft.server.services.jobs import Jobs
from updraft.server.services.operations import Operations
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


class Server:
    """One user's server on one machine."""

    def __init__(self, folders: settings.Folders) -> None:
        self._folders = folders
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
        await execution.load()
        jobs = Jobs(database, execution)
        beside = BesideRuns(execution)
        agents = AgentSessions(execution, beside)
        instance = Instance(self._folders, execution, configuration.server)
        telemetry = configuration.telemetry
        traces = traces_to(telemetry.otlp_endpoint, telemetry.sample)
        operations = Operations(execution, database, instance, traces=traces)
        if token := reading.secret(telemetry.metrics_token_file):
            operations.open_metrics(token)
        http = HttpApi(execution, jobs, database, instance, operations)
        doors = Doors(
            {
                "client": lambda who: ClientSession(execution, jobs, who),
                "exec": lambda who: ExecSession(beside, jobs, who),
                "agent": agents.control,
                "agent-data": agents.data,
            },
            http=http.protocol,
        )
        operations.connections = lambda: {
            "client": len(doors.clients),
            "http": http.connections,
            "new": len(doors.open),
        }
        loop = asyncio.get_running_loop()
        listener = await loop.create_server(
            lambda: Door(doors), sock=listen_unix(self._folders.socket)
        )
        # Only a server that can serve starts a runner, which would start one that cannot for ever.
        local.launch_runner(self._folders)
        # In the foreground a signal is its owner's wish; else the agent starts the server again.
        end = instance.stop_requested.set if ready_fd is not None else instance.leave
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, end)
        if ready_fd is not None:
            _tell_ready(ready_fd)
        log.info("serving at %s", self._folders.socket)
        loops = [
            asyncio.create_task(_keep_runner(instance, execution, self._folders), name="runner"),
            asyncio.create_task(self._watch_idle(instance, doors, listener), name="idle"),
            asyncio.create_task(_restart_on_upgrade(instance), name="upgrade"),
            asyncio.create_task(
                keep_output_bounded(
                    database, self._folders.logs, configuration.server, operations.beats
                ),
                name="retention",
            ),
            asyncio.create_task(watch_lag(operations.measures, operations.beats), name="lag"),
            asyncio.create_task(http.preload(), name="http"),
        ]
        loops += self._operators_loops(configuration, database, operations)
        await instance.stop_requested.wait()
        if instance.stopping:
            await _serve_last_output(doors)
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        execution.closing = True
        listener.close()
        await execution.settle()
        await http.finish()
        await asyncio.to_thread(traces.close)
        await database.close()
        keys.close()
        log.info("stopped")

    def _prepare(self) -> Configuration:
        found = reading.load(self._folders)
        logs.configure(found.server.log_format, found.server.log_level)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folders.stopped)
        os.makedirs(self._folders.logs, mode=0o700, exist_ok=True)
        return found

    def _operators_loops(
        self, configuration: Configuration, database: Database, operations: Operations
    ) -> list[asyncio.Task[None]]:
        """Start what only some servers need, and load it only there."""
        beats = operations.beats
        found = []
        if configuration.backup.folder:
            from updraft.server.loops.backups import keep_backups  # noqa: PLC0415

            loop = keep_backups(self._folders, configuration, beats)
            found.append(asyncio.create_task(loop, name="backups"))
        if receivers := configuration.notifications:
            from updraft.server.loops.notifications import notify  # noqa: PLC0415

            url = configuration.server.url
            loop = notify(database, receivers, beats, operations.measures, url)
            found.append(asyncio.create_task(loop, name="notifications"))
        return found

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

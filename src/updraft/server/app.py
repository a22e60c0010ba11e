"""The life of a server: one per folder, from its lock to its end, with its loops between."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import math
import os
import shlex
import signal
import time
from collections.abc import Mapping
from functools import partial

from updraft import bootstrap, errors, settings
from updraft.configuration import Configuration, reading
from updraft.configuration.schema import SELF_SIGNED
from updraft.providers import local
from updraft.server.api.door import Doors
from updraft.server.api.http import HttpApi
from updraft.server.api.parts import Parts
from updraft.server.building import build, make_doors, take_down
from updraft.server.listening import Listener, listen
from updraft.server.loops.lag import watch_lag
from updraft.server.loops.lasting import Loop, lasting
from updraft.server.loops.leases import Leases
from updraft.server.loops.retention import keep_output_bounded
from updraft.server.observe import logs
from updraft.server.services.execution import Execution
from updraft.server.services.instance import Instance
from updraft.upgrades import wait_for_upgrade

log = logging.getLogger("updraft.server")

_RUNNER_CHECK_SECONDS = 0.25
_RUNNER_STARTS_SECONDS = 1.0
_IDLE_CHECK_SECONDS = 5.0
_LOCK_WAIT_SECONDS = 18.0
_LAST_OUTPUT_SECONDS = 10.0
_MODULES = "updraft.server.app, updraft.server.api.routes, updraft.runner.agent.agent"


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
        self._release = settings.installed_release()

    async def run(self, ready_fd: int | None, lock_fd: int | None = None) -> int | None:
        """Serve until told to stop.  Raises ``errors.UpdraftError`` when it cannot start.

        Returns the lock, as the next release's ``lock_fd``, when a server in the foreground is to
        become that in its place: whoever watches the process need not start it again.

        ``ready_fd`` gets the word that there is a server, also when it is another, which came up
        meanwhile: whoever started that one may have been killed.
        """
        if not self._take_lock(lock_fd):
            if ready_fd is None:
                raise errors.Conflict("a server runs already; end it: updraft stop")
            _tell_ready(ready_fd)
            return None
        configuration = self._prepare()
        leadership = None
        if configuration.server.database:
            from updraft.server.standby import lead  # noqa: PLC0415 - only of a shared database

            # Who takes over later with files of two releases would be neither.
            upgrade = asyncio.create_task(wait_for_upgrade(_MODULES, self._release), name="upgrade")
            leadership = await lead(self._folders, configuration.server, upgrade)
            upgraded = upgrade.done()
            upgrade.cancel()
            if leadership is None:  # that, or told to stop while it stood by
                return self._lock if upgraded and ready_fd is None else None
        parts = await build(self._folders, configuration, leadership)
        http = HttpApi(parts)
        doors = make_doors(parts, http, configuration)
        listeners = await listen(doors, self._folders, configuration.server)
        # Only a server that can serve starts a runner, which would start one that cannot for ever.
        if configuration.server.local_pool:
            local.launch_runner(self._folders)
        instance = parts.instance
        # In the foreground a signal is its owner's wish; else the agent starts the server again.
        end = instance.stop_requested.set if ready_fd is not None else instance.leave
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, end)
        if ready_fd is not None:
            _tell_ready(ready_fd)
        else:
            self._say_how_it_is_served(others=configuration.server.listen is not None)
        log.info("serving at %s", self._folders.socket)
        if configuration.server.local_pool and configuration.server.listen is not None:
            log.warning(
                "jobs of the pool local run as this server's own user and can read its files; for "
                "users who must not, unset server.local_pool and let a machine join as a runner"
            )
        loops = {**self._loops(parts, configuration), "http": http.preload}
        if ready_fd is not None and math.isfinite(configuration.server.idle_stop):
            # One in the foreground stays until its owner ends it.
            loops["idle"] = partial(self._watch_idle, instance, doors, listeners[-1])
        tasks = [
            asyncio.create_task(lasting(name, loop), name=name) for name, loop in loops.items()
        ]
        await instance.stop_requested.wait()
        # Of a shared database another server goes on: slow readers have the rest from that.
        if instance.stopping and leadership is None:
            await _serve_last_output(doors)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in listeners:
            listener.close()
        await http.finish()
        await take_down(parts)
        if ready_fd is None and instance.upgraded:
            log.info("going on as the new release")
            return self._lock
        log.info("stopped")
        return None

    def _loops(self, parts: Parts, configuration: Configuration) -> dict[str, Loop]:
        """Return what goes on beside the requests, by name."""
        configured, operations = configuration.server, parts.operations
        beats = operations.beats
        leases = Leases(parts.execution, configured.suspect_after, configured.lost_after, beats)
        loops: dict[str, Loop] = {
            "upgrade": partial(_restart_on_upgrade, parts.instance, self._release),
            "retention": partial(
                keep_output_bounded,
                parts.database,
                self._folders.logs,
                configured,
                beats,
                parts.execution.live.stored,
            ),
            "leases": leases.watch,
            "lag": partial(watch_lag, operations.measures, beats),
        }
        if configured.local_pool:
            loops["runner"] = partial(_keep_runner, parts.instance, parts.execution, self._folders)
        if configuration.backup.folder:
            from updraft.server.loops.backups import keep_backups  # noqa: PLC0415

            loops["backups"] = partial(keep_backups, self._folders, configuration, beats)
        if receivers := configuration.notifications:
            from updraft.server.loops.notifications import notify  # noqa: PLC0415

            loops["notifications"] = partial(
                notify, parts.database, receivers, beats, operations.measures, configured.url
            )
        return loops

    def _prepare(self) -> Configuration:
        configuration = reading.load(self._folders, self._overrides)
        logs.configure(configuration.server.log_format, configuration.server.log_level)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._folders.stopped)
        self._folders.keep_data_in(configuration.server.data)
        os.makedirs(self._folders.logs, mode=0o700, exist_ok=True)
        if folder := configuration.backup.folder:
            try:
                os.makedirs(folder, mode=0o700, exist_ok=True)
            except OSError as error:
                raise errors.BadConfiguration(
                    f"backup.folder: cannot make {folder}: {error.strerror}"
                ) from error
        return configuration

    def _say_how_it_is_served(self, *, others: bool) -> None:
        """Keep the command that serves others from here: nobody is to start another server then."""
        if not others:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._folders.served_by)
            return
        words = ["updraft", "serve"]
        if config := settings.own_places().get("UPDRAFT_CONFIG"):
            words += ["--config", config]
        for name, value in (self._overrides or {}).items():
            flag = f"--{name.rpartition('.')[2]}"
            words += [f"--{SELF_SIGNED}"] if value == SELF_SIGNED else [flag, value]
        with open(self._folders.served_by, "w") as file:
            file.write(shlex.join(words))

    def _take_lock(self, lock_fd: int | None) -> bool:
        """Become the one server of these folders; False when another is, and serves.

        ``lock_fd``: the lock, from the release that this process was before.
        """
        if lock_fd is not None:
            os.set_inheritable(lock_fd, False)
            self._lock = lock_fd
            return True
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

    async def _watch_idle(self, instance: Instance, doors: Doors, listener: Listener) -> None:
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


async def _restart_on_upgrade(instance: Instance, own: str) -> None:
    """Make way for a new release.

    Whoever misses a server in the background starts it again; one in the foreground becomes it.
    """
    await wait_for_upgrade(_MODULES, own)
    instance.upgraded = True
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

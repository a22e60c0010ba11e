"""This server as a thing to look at and to stop."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import Any

import updraft
from updraft import errors, settings
from updraft.configuration.schema import Server
from updraft.model.access import Principal
from updraft.model.states import State
from updraft.server.services.execution import Execution
from updraft.wire import frames


class Instance:
    """Status and stopping."""

    def __init__(
        self,
        folders: settings.Folders,
        execution: Execution,
        configuration: Server,
    ) -> None:
        self._folders = folders
        self._execution = execution
        self.settings = configuration
        self.stop_requested = asyncio.Event()
        self.stopping = False
        self.upgraded = False
        """Whether it ends to make way for a new release."""
        self._started_ns = time.time_ns()

    @property
    def folders(self) -> settings.Folders:
        """Where its files are."""
        return self._folders

    @property
    def busy(self) -> bool:
        """Whether there is a reason to stay."""
        return len(self._execution.live) > 0

    def _authorise(self, who: Principal) -> None:
        if not who.may_administer():
            raise errors.NotAllowed("only an administrator of the server may do that")

    def status(self, who: Principal) -> dict[str, Any]:
        """Return processes, versions, paths and counts.  Raises ``errors.NotAllowed``."""
        self._authorise(who)
        counts = self._execution.live.counts()
        runner = self._execution.live.runners.get("local")
        connected = runner is not None and runner.control is not None
        return {
            "server": {
                "pid": os.getpid(),
                "version": updraft.__version__,
                "wire": frames.WIRE_VERSION,
                "started_ns": self._started_ns,
            },
            "runner": {
                "connected": connected,
                "pid": runner.keeper_pid if runner is not None else None,
                "agent_pid": runner.agent_pid if runner is not None else None,
                "version": runner.release if runner is not None else None,
                "cpus": runner.total.cpus_milli / 1000 if runner is not None else None,
                "cpus_free": runner.free.cpus_milli / 1000 if runner is not None else None,
                "memory_bytes": runner.total.memory_bytes if runner is not None else None,
                "gpus": runner.devices if runner is not None else [],
            },
            "jobs": {"running": counts[State.RUNNING], "in_queue": counts[State.IN_QUEUE]},
            "paths": self._folders.paths(),
            "local_pool": self.settings.local_pool,
        }

    async def stop(self, who: Principal, mode: str) -> None:
        """Stop server and runner.  ``mode``: ``refuse`` while jobs live, ``drain``, ``cancel``.

        Raises ``errors.Conflict`` when it refuses, and ``errors.NotAllowed``.
        """
        self._authorise(who)
        if mode == "refuse" and self.busy:
            counts = self._execution.live.counts()
            raise errors.Conflict(
                f"{_jobs(counts[State.RUNNING])} running and {counts[State.IN_QUEUE]} waiting; "
                "wait for them with --drain, or end them with --cancel"
            )
        self.stopping = True
        self._execution.drain()
        if mode == "cancel":
            await self._execution.cancel_all()
        while self.busy:
            await self._execution.live.wait_for_end()
        await self._execution.settle()
        self.disarm_runner(cancel=False)
        self.stop_requested.set()

    def leave(self) -> None:
        """End this server and do not come back by ourselves; running tasks go on without it."""
        if self.busy:
            Path(self._folders.stopped).touch(mode=0o600)
        else:
            self.disarm_runner(cancel=False)
        self.stop_requested.set()

    def replace_old_keeper(self) -> None:
        """Let an idle keeper of another release leave; the runner is started again, of this one."""
        runner = self._execution.live.runners.get("local")
        if runner is None or runner.control is None or self.busy or self.stopping:
            return
        if runner.keeper_release != settings.installed_release():
            runner.control.send_message(frames.STOP, {"cancel": False})

    def disarm_runner(self, *, cancel: bool) -> None:
        """Tell the runner of this machine to leave, and nobody to start us again.

        One that has joined waits for its server, or for another in its place.
        """
        Path(self._folders.stopped).touch(mode=0o600)
        self.stopping = True
        for runner in self._execution.live.runners.values():
            if runner.control is not None and not runner.known.remote:
                runner.control.send_message(frames.STOP, {"cancel": cancel})


def _jobs(count: int) -> str:
    return f"{count} job is" if count == 1 else f"{count} jobs are"

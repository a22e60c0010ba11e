"""Where tasks lie, and as whom they run, on a runner that has joined a server elsewhere."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
from collections.abc import Container, Iterable
from typing import Any

from updraft import errors
from updraft.runner.agent import gpus
from updraft.runner.agent.owners import Owners


class Places:
    """Makes a task's place before it starts, and removes it after its end.

    ``spool`` is where tasks' output lies until the server has it.  ``owners`` maps tasks' owners to
    users of this machine, on a shared runner.  ``devices``: the GPUs of this machine.
    """

    def __init__(self, spool: str, owners: Owners | None, devices: list[dict[str, Any]]) -> None:
        self._spool = spool
        self._owners = owners
        self._gpus = devices

    @property
    def isolates(self) -> bool:
        """Whether tasks see no more of the machine than they were granted."""
        return self._owners is not None

    def make(self, serial: int, spec: dict[str, Any]) -> str:
        """Say in a spec where its task lies and whose it is; return what is in the way, if it is.

        What runs beside a task runs as that does.
        """
        spec["folder"] = os.fsencode(os.path.join(self._spool, str(serial)))
        if self._owners is None or "beside" in spec:
            return ""
        nodes = gpus.device_nodes(gpu for gpu in self._gpus if gpu["uuid"] in spec["gpus"])
        try:
            spec["isolation"] = {
                **self._owners.isolation(spec["owner"], spec["job"], nodes),
                "shown": self._owners.workspaces_of(spec["owner"], spec.get("lineage", [])),
            }
        except errors.UpdraftError as error:
            return error.message
        except OSError as error:
            return f"{error.filename}: {error.strerror}"
        return ""

    def remove(self, folder: str, job: str | None) -> None:
        """Remove what lies here of a task that the server has all of.

        ``job``: its job, None while that has other tasks here.
        """
        if os.path.dirname(folder) != self._spool:
            return
        loop = asyncio.get_running_loop()
        loop.run_in_executor(None, shutil.rmtree, folder, True)
        if self._owners is not None and job is not None:
            gone = self._owners.put_away(job)
            loop.run_in_executor(None, self._owners.remove, gone)

    def sweep(self, folders: Iterable[str], jobs: Container[str]) -> None:
        """Remove all but these tasks' folders, and these jobs' workspaces.

        An agent that was killed left them.  May take a while: not for a loop.
        """
        kept = {os.path.basename(folder) for folder in folders}
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(self._spool):
                if name not in kept:
                    shutil.rmtree(os.path.join(self._spool, name), ignore_errors=True)
        if self._owners is not None:
            self._owners.remove(self._owners.left_over(jobs))

"""Work of the server that nobody waits for, and writes that wait for room on the disk."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from updraft import errors
from updraft.store.database import Database, Work

T = TypeVar("T")

log = logging.getLogger("updraft.execution")

_DISK_RETRY_SECONDS = 1.0


class Background:
    """The tasks of the services that carry jobs on."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._tasks: set[asyncio.Task[None]] = set()
        self._settling = self._settled = False
        self.closing = False
        """This server ends; the next one goes on."""
        self.draining = False
        """No new jobs are taken, for as long as it takes to end those that there are."""

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Let something be done; its failure is logged under ``name``."""
        if self._settled:  # the next server hears of it from the runner
            work.close()
            return
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("%s failed", task.get_name(), exc_info=error)

    async def write(self, store: Work[bool]) -> bool:
        """Write a grant or an ending, however long that takes: whoever waits can wait."""
        while True:
            try:
                return await self._database.write(store, patient=True)
            except (errors.DiskFull, errors.Unavailable) as error:
                log.error("%s; trying again", error.message)  # noqa: TRY400 - no trace needed
                await self.wait_for_room()

    async def read(self, look: Work[T]) -> T:
        """Read what a job needs to go on, however long the database is away."""
        while True:
            try:
                return await self._database.read(look, patient=True)
            except errors.Unavailable as error:
                log.error("%s; trying again", error.message)  # noqa: TRY400 - no trace needed
                await self.wait_for_room()

    async def wait_for_room(self) -> None:
        """Wait for a moment; raises ``errors.DiskFull`` when the server is ending."""
        if self._settling:  # the next server hears of it from the runner
            raise errors.DiskFull("the server ends while its disk is full")
        await asyncio.sleep(_DISK_RETRY_SECONDS)

    async def settle(self) -> None:
        """Wait for the writes that are under way, and begin no more.

        Those that wait for room are given up.
        """
        self._settling = True
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._settled = True

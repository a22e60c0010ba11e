"""Tells receivers of jobs' events: at least once, in order, and none delayed by another.

The events table is the outbox (``store.notifications``).  Each receiver has a task, a cursor and a
back-off of its own, so a dead one costs the others nothing.  What bounds it: a notice that is older
than a day or was tried too often is dropped, and so is what lies too far behind; each drop is
logged and counted.  A crash between a delivery and the note of it sends that notice again, under
the same delivery id.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial

from sqlalchemy import RowMapping

from updraft.configuration.schema import Notification
from updraft.server.observe.beats import Beats
from updraft.server.observe.measures import Measures
from updraft.server.services.notices import (
    LONGEST_DELAY_SECONDS,
    Notice,
    delay_seconds,
    notice_of,
)
from updraft.server.services.senders import NotSent, Refused, Sender, sender_for
from updraft.store import notifications as queries
from updraft.store.database import Database

log = logging.getLogger("updraft.notifications")

NAME = "notifications"

LOOK_SECONDS = 1.0
MAX_TRIES = 20
MAX_AGE_SECONDS = 86400.0
MAX_BEHIND = 100_000
"""Events; what lies further behind the newest is not told of any more."""
_LATE_SECONDS = 2 * LONGEST_DELAY_SECONDS
"""A receiver that does not answer is no reason to be late: between two tries is at most a delay."""
_BATCH = 50
_NOTE_EVERY = 1000
"""Events that nobody wanted to hear of are noted as told in steps."""

Sleep = Callable[[float], Awaitable[None]]


async def notify(
    database: Database,
    receivers: Mapping[str, Notification],
    beats: Beats,
    measures: Measures,
    url: str = "",
    sleep: Sleep = asyncio.sleep,
) -> None:
    """Tell all receivers, for ever."""
    beats.expect(NAME, _LATE_SECONDS)
    begun = False
    while not begun:
        with beats.one_pass(NAME):
            await database.write(lambda connection: queries.begin(connection, list(receivers)))
            begun = True
        if not begun:
            await sleep(LOOK_SECONDS)
    beats.forget(NAME)  # each receiver is a loop of its own
    async with asyncio.TaskGroup() as tasks:
        for name, to in receivers.items():
            receiver = Receiver(database, name, to, sender_for(name, to), measures, url=url)
            tasks.create_task(receiver.follow(beats), name=f"notify {name}")


class Receiver:
    """One receiver, and how far it has been told."""

    def __init__(
        self,
        database: Database,
        name: str,
        to: Notification,
        sender: Sender,
        measures: Measures,
        *,
        url: str = "",
        clock: Callable[[], float] = time.time,
        dice: Callable[[], float] = random.random,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._database = database
        self._name = name
        self._to = to
        self._sender = sender
        self._measures = measures
        self._url = url
        self._clock = clock
        self._dice = dice
        self._sleep = sleep
        self._told: int | None = None  # in memory; the database may know of less
        self._goes_on: Callable[[], None] = lambda: None

    async def follow(self, beats: Beats) -> None:
        """Make passes for ever; a bad one is logged."""
        loop = f"notify {self._name}"
        self._goes_on = partial(beats.goes_on, loop)
        beats.expect(loop, _LATE_SECONDS)
        try:
            while True:
                with beats.one_pass(loop):
                    while await self.one_pass():
                        pass
                await self._sleep(LOOK_SECONDS)
        finally:
            await self._sender.close()

    async def one_pass(self) -> bool:
        """Deliver what is pending, at most a batch; return whether there is more."""
        newest, rows = await self._pending()
        for row in rows:
            await self._deliver(notice_of(dict(row), self._url))
            await self._note(row["serial"])
        if len(rows) == _BATCH:
            return True
        assert self._told is not None  # noqa: S101 - looked up with what is pending
        if newest - self._told >= _NOTE_EVERY:
            await self._note(newest)
        elif not rows:
            self._told = newest
        return False

    async def _pending(self) -> tuple[int, Sequence[RowMapping]]:
        told = self._told
        if told is None:
            known = await self._database.read(queries.cursors)
            told = known.get(self._name, 0)
        newest = await self._database.read(queries.last_event)
        if newest - told > MAX_BEHIND:
            log.error(
                "notifications.%s: %d events behind; those before the last %d are skipped",
                self._name, newest - told, MAX_BEHIND,
            )  # fmt: skip
            self._measures.notification(self._name, "dropped")
            told = newest - MAX_BEHIND
        self._told = told
        if newest == told:
            return newest, ()
        rows = await self._database.read(
            lambda connection: queries.pending(
                connection,
                told,
                newest,
                notices=self._to.events,
                projects=self._to.projects,
                limit=_BATCH,
            )
        )
        return newest, rows

    async def _note(self, serial: int) -> None:
        self._told = serial
        await self._database.write(
            lambda connection: queries.advance(connection, self._name, serial)
        )

    async def _deliver(self, notice: Notice) -> None:
        """Return once it is delivered, or given up."""
        for tries in range(1, MAX_TRIES + 1):
            self._goes_on()
            try:
                await self._sender.send(notice)
            except Refused as error:
                return self._dropped(notice, f"refused: {error}")
            except NotSent as error:
                age = self._clock() - notice.at_ns / 1e9
                if tries == MAX_TRIES or age > MAX_AGE_SECONDS:
                    return self._dropped(notice, f"given up after {tries} tries: {error}")
                self._measures.notification(self._name, "failed")
                delay = delay_seconds(tries, self._dice())
                log.warning(
                    "notifications.%s: event %d was not delivered (%s); again in %.0f s",
                    self._name, notice.serial, error, delay,
                )  # fmt: skip
                await self._sleep(delay)
            except Exception as error:
                # What nobody thought of would come again with each pass, before all that follows.
                log.debug("notifications.%s: event %d", self._name, notice.serial, exc_info=True)
                return self._dropped(notice, f"not to be sent: {type(error).__name__}: {error}")
            else:
                self._measures.notification(self._name, "sent")
                return None
        return None

    def _dropped(self, notice: Notice, why: str) -> None:
        self._measures.notification(self._name, "dropped")
        log.error("notifications.%s: event %d dropped; %s", self._name, notice.serial, why)

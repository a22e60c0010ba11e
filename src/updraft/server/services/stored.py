"""How much output is kept of the jobs of each project, and of each user in it.

Counted once, when a limit first asks for it, and kept as attempts end, so that a submission costs
the same however many jobs there were.  Retention, which alone takes something away, counts anew;
what ended during a count and was missed is made good then.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable

from updraft.scheduling.queue import Party
from updraft.storage.segments import DEFAULT_QUOTA_BYTES
from updraft.store import access as queries
from updraft.store.database import Database


class StoredOutput:
    """The count of one server, which keeps no more than ``quota_bytes`` of a stream."""

    def __init__(self, quota_bytes: int = DEFAULT_QUOTA_BYTES) -> None:
        self._quota_bytes = quota_bytes
        self._bytes: Counter[Party | str] | None = None
        self._counting = asyncio.Lock()

    async def of(self, database: Database, key: Party | str) -> int:
        """Return how many bytes a project has, or a user in it."""
        if self._bytes is None:
            async with self._counting:  # once for all that ask meanwhile
                if self._bytes is None:
                    self._bytes = await self._count(database)
        return self._bytes[key]

    async def count_anew(self, database: Database) -> None:
        """Something was removed."""
        if self._bytes is not None:
            self._bytes = await self._count(database)

    def add(self, party: Party, lengths: Iterable[int]) -> None:
        """An attempt of the party's has ended, whose streams were so long."""
        if self._bytes is not None:
            count = sum(min(length, self._quota_bytes) for length in lengths)
            self._bytes[party.project] += count
            self._bytes[party] += count

    async def _count(self, database: Database) -> Counter[Party | str]:
        found: Counter[Party | str] = Counter()
        rows = await database.read(lambda c: queries.stored_bytes(c, self._quota_bytes))
        for project, owner, count in rows:
            found[project] += count
            found[Party(project, owner)] += count
        return found

"""The order in which a pool's users take their turns.

Each party (a user in a project) has a line of its own: higher priority first, then first come.
Between parties: the higher priority of who is first in line; then whoever holds a reservation; then
who got nothing for too long, the longest wait first; then the lowest standing; then first come.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator

from updraft.scheduling.entries import Queued
from updraft.scheduling.queue import Party

REFRESH_SECONDS = 60.0
"""How old a standing that orders lines may be: it fades all the time, and changes at every event
of its user's."""

Key = tuple[int, int, float, int]
_HOLDS, _PATIENT, _USUAL = range(3)


class Line:
    """What waits of one party."""

    __slots__ = ("items", "key", "party", "since")

    def __init__(self, party: Party, now: float) -> None:
        self.party = party
        self.items: list[Queued] = []
        self.since = now
        """Since when something of it waits and nothing of it started."""
        self.key: Key | None = None
        """Its place in the order; None: it has none yet."""

    def place(self, queued: Queued) -> int:
        """Return how many wait before one in this line."""
        return bisect_left(self.items, queued.entry.order, key=_order)


class Lines:
    """The lines of all parties in their order."""

    def __init__(self, standing: Callable[[str, float], float], patience_seconds: float) -> None:
        self._standing = standing
        self._patience_seconds = patience_seconds
        self._lines: dict[Party, Line] = {}
        self._of_owner: dict[str, list[Line]] = {}
        self._order: list[tuple[Key, Line]] = []
        self._holder: Queued | None = None
        self._refreshed = float("-inf")

    def __iter__(self) -> Iterator[Line]:
        """Yield the lines in their order; whoever changes something begins anew."""
        for _, line in self._order:
            yield line

    def __len__(self) -> int:
        return len(self._lines)

    # -- looking

    def after(self, line: Line) -> Line | None:
        """Return the line whose turn is next after this one's."""
        if line.key is None:
            return None
        at = bisect_left(self._order, line.key, key=_key) + 1
        return self._order[at][1] if at < len(self._order) else None

    def of(self, party: Party) -> Line | None:
        """Return a party's line, if something of it waits."""
        return self._lines.get(party)

    # -- changing

    def push(self, queued: Queued, now: float) -> None:
        """Put an entry into its party's line."""
        if queued.in_line:
            return
        party = queued.entry.party
        line = self._lines.get(party)
        if line is None:
            line = self._lines[party] = Line(party, now)
            self._of_owner.setdefault(party.owner, []).append(line)
        insort(line.items, queued, key=_order)
        queued.in_line = True
        if line.items[0] is queued:
            self._rekey(line, now)

    def discard(self, queued: Queued, now: float) -> None:
        """Take an entry out; one that is not in line is passed over."""
        if not queued.in_line:
            return
        line = self._lines[queued.entry.party]
        at = line.place(queued)
        del line.items[at]
        queued.in_line = False
        if queued is self._holder:
            self._holder = None
            at = 0
        if at == 0:
            self._rekey(line, now)

    def hold(self, queued: Queued | None, now: float) -> None:
        """An entry, or none, goes before others of its priority until it starts."""
        old, self._holder = self._holder, queued
        for each in (old, queued):
            if each is not None and each.in_line:
                self._rekey(self._lines[each.entry.party], now)

    def served(self, party: Party, now: float) -> None:
        """Something of a party's has started."""
        line = self._lines.get(party)
        if line is not None:
            line.since = now

    def moved(self, owner: str, now: float) -> None:
        """An owner's standing has changed."""
        for line in list(self._of_owner.get(owner, ())):
            self._rekey(line, now)

    def refresh(self, now: float) -> bool:
        """Put all lines in their order as it is now, if that was long ago; return whether."""
        if now < self._refreshed + REFRESH_SECONDS:
            return False
        self._refreshed = now
        for line in self._lines.values():
            line.key = self._key_of(line, now)
        self._order = sorted(
            ((line.key, line) for line in self._lines.values() if line.key), key=_key
        )
        return True

    def _rekey(self, line: Line, now: float) -> None:
        if line.key is not None:
            del self._order[bisect_left(self._order, line.key, key=_key)]
        if not line.items:
            line.key = None
            del self._lines[line.party]
            owners = self._of_owner[line.party.owner]
            owners.remove(line)
            if not owners:
                del self._of_owner[line.party.owner]
            return
        line.key = self._key_of(line, now)
        insort(self._order, (line.key, line), key=_key)

    def _key_of(self, line: Line, now: float) -> Key:
        entry = line.items[0].entry
        if self._holds(line):
            return (-entry.priority, _HOLDS, 0.0, entry.serial)
        if now - line.since > self._patience_seconds:
            return (-entry.priority, _PATIENT, line.since, entry.serial)
        return (-entry.priority, _USUAL, self._standing(line.party.owner, now), entry.serial)

    def _holds(self, line: Line) -> bool:
        """Whether the holder is among those of the line's highest priority."""
        if self._holder is None:
            return False
        holder, first = self._holder.entry, line.items[0].entry
        return holder.party == line.party and holder.priority == first.priority


def _order(queued: Queued) -> tuple[int, int]:
    return queued.entry.order


def _key(place: tuple[Key, Line]) -> Key:
    return place[0]

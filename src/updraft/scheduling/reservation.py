"""The place that is kept for the first job that does not fit, and who may use it meanwhile.

The rule is that of EASY backfilling (Lifka, 1995; Mu'alem and Feitelson, 2001): a job behind may
start if, by its own time limit, it has ended when the place is needed, or if it uses what the place
can spare.  Tasks without a time limit count as never ending.  Where the place depends on one of
those, it may be needed at any moment, so every node that could become the place is kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from itertools import islice

from updraft.model.job import Resources
from updraft.scheduling.entries import UNKNOWN, Entry, Queued
from updraft.scheduling.hosts import Host, room_in, times
from updraft.scheduling.nodes import LOOKAHEAD, Kind, Nodes


class Hold:
    """What is kept for an entry."""

    __slots__ = ("at", "ends", "parts", "queued", "settled")

    def __init__(self, queued: Queued) -> None:
        self.queued = queued
        self.settled = False
        self.at = UNKNOWN
        """When it can start at the latest, by the time limits of what runs."""
        self.parts: dict[str, int] = {}
        """On which nodes how many of its tasks start; empty: nobody can tell."""
        self.ends = 0
        """How many running tasks have to end for that."""

    def settle(self, nodes: Nodes, now: float) -> None:
        """Find the place, where it is not known (any more)."""
        if self.settled:
            return
        self.settled = True
        entry = self.queued.entry
        self.at, self.parts, self.ends = UNKNOWN, {}, 0
        for at, ends, parts in _places(nodes, entry):
            if at < self.at:
                self.at, self.ends, self.parts = at, ends, parts
        if self.parts:
            self.at = max(self.at, now)

    def hasten(self, host: Host, now: float) -> bool:
        """A node has grown: return whether a single task can start there earlier."""
        entry = self.queued.entry
        if entry.gang or not self.settled or not host.takes(entry.party.owner):
            return False
        at, ends = host.first_fit(entry.need)
        if at >= self.at:
            return False
        self.at, self.ends, self.parts = max(at, now), ends, {host.name: 1}
        return True

    def room(self, host: Host, entry: Entry, now: float) -> int:
        """Return how many of another entry's tasks may start on a node, and delay nothing."""
        room = host.room(entry.need)
        if not room:
            return 0
        if not self.parts:
            kept = self._whole_part(host)
            amounts = host.amounts
        else:
            kept = self.parts.get(host.name, 0)
            if not kept or entry.ends_by(now) <= self.at:
                return room
            amounts = host.amounts_at(max(self.at, now))
        if not kept:
            return room
        want = times(self.queued.entry.need, kept)
        spare = (
            amounts[0] - want.cpus_milli,
            amounts[1] - want.memory_bytes,
            amounts[2] - want.gpus,
        )
        return min(room, room_in(spare, entry.need))

    def _whole_part(self, host: Host) -> int:
        """Return how many of its tasks may come to a node when nobody can tell when."""
        entry = self.queued.entry
        if not host.takes(entry.party.owner):
            return 0
        most = entry.count if entry.gang else 1
        return min(host.could_hold(entry.need), most)


def could_start(nodes: Nodes, entry: Entry) -> bool:
    """Whether an entry's tasks fit onto the nodes that are there when nothing else runs."""
    owner, tasks = entry.party.owner, entry.count if entry.gang else 1
    if any(kind.holds(entry.need, owner) >= tasks for kind in nodes.kinds.values()):
        return True
    return any(
        sum(kind.holds(entry.need, owner) * len(kind.drains) for kind in kinds) >= tasks
        for kinds in _networks(nodes, entry).values()
    )


_Place = tuple[float, int, dict[str, int]]


def _places(nodes: Nodes, entry: Entry) -> Iterator[_Place]:
    """Yield when an entry can start by the time limits, after how many ends, and where."""
    tasks = entry.count if entry.gang else 1
    need = times(entry.need, tasks)
    for kind in nodes.kinds.values():
        if kind.holds(need, entry.party.owner):
            for _, name in islice(kind.drains, LOOKAHEAD):
                at, ends = nodes.hosts[name].first_fit(need)
                if at < UNKNOWN:
                    yield at, ends, {name: tasks}
    for kinds in _networks(nodes, entry).values():
        place = _spread(nodes, kinds, entry.need, tasks)
        if place is not None:
            yield place


def _networks(nodes: Nodes, entry: Entry) -> dict[str, list[Kind]]:
    """Return the nodes that can have ranks of a gang, by network."""
    found: dict[str, list[Kind]] = {}
    if entry.gang:
        for kind in nodes.kinds.values():
            if kind.network and kind.holds(entry.need, entry.party.owner):
                found.setdefault(kind.network, []).append(kind)
    return found


def _spread(nodes: Nodes, kinds: list[Kind], need: Resources, tasks: int) -> _Place | None:
    """Return where and when the ranks of a gang can start on nodes of one network."""
    steps: list[tuple[float, str, int]] = []
    soonest = merge(*(kind.drains for kind in kinds))
    for _, name in islice(soonest, LOOKAHEAD + tasks):
        steps += [(at, name, room) for at, room in nodes.hosts[name].rooms(need)]
    steps.sort()
    rooms: dict[str, int] = {}
    left = tasks
    for at, name, room in steps:
        if at == UNKNOWN:
            break
        rooms[name] = rooms.get(name, 0) + room
        left -= room
        if left <= 0:
            return at, len(rooms), fewest(rooms, tasks)
    return None


def fewest(rooms: dict[str, int], tasks: int) -> dict[str, int]:
    """Return which nodes get how many ranks, so that they are as few as can be."""
    parts: dict[str, int] = {}
    for name, room in sorted(rooms.items(), key=lambda each: (-each[1], each[0])):
        if room >= tasks:
            break
        parts[name] = room
        tasks -= room
    if tasks:
        rest = {name: room for name, room in rooms.items() if name not in parts and room >= tasks}
        parts[min(rest, key=lambda name: (rest[name], name))] = tasks
    return parts

"""What Updraft's policy is compared with: strict FIFO, EASY backfilling, and DRF.

Each is written plainly, on the same index of nodes.  None knows priorities or preemption.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

from updraft.model.job import Resources
from updraft.scheduling.capacity import Node
from updraft.scheduling.entries import Entry, Preemption, Queued
from updraft.scheduling.gangs import place_gang
from updraft.scheduling.hosts import Host
from updraft.scheduling.nodes import Nodes
from updraft.scheduling.queue import Grant
from updraft.scheduling.reservation import Hold
from updraft.scheduling.shares import Shares

_EASY_DEPTH = 1000
_NO_FADING = 1e18


class Fifo:
    """First come, first served: nothing passes the first that does not fit."""

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.waiting: dict[int, Queued] = {}
        self.grants: list[Grant | Preemption] = []

    def submit(self, entry: Entry, now: float) -> None:
        """A job waits."""
        self.waiting[entry.serial] = Queued(entry, entry.count)

    def put_node(self, node: Node, now: float) -> None:
        """A node takes tasks."""
        self.nodes.put(node)

    def ended(self, grant: Grant, now: float, *, again: bool = False) -> None:
        """Tasks have ended."""
        host = self.nodes.hosts[grant.node]
        self.nodes.give_back(host, host.held[grant.serial], grant.tasks, grant.gpus)

    def decide(self, now: float) -> list[Grant | Preemption]:
        """Return what starts now."""
        self.grants = []
        while self.waiting:
            first = next(iter(self.waiting.values()))
            self.start_all(first, now)
            if first.left:
                break
        return self.grants

    def start_all(self, queued: Queued, now: float) -> int:
        """Start as many of a job's tasks as fit; return how many."""
        before = queued.left
        while queued.left and self.start_some(queued, now):
            pass
        return before - queued.left

    def start_some(
        self, queued: Queued, now: float, hold: Hold | None = None, most: int = 1 << 30
    ) -> int:
        """Start tasks of a job on one node, or a gang; return how many."""
        entry = queued.entry

        def room(host: Host) -> int:
            return host.room(entry.need) if hold is None else hold.room(host, entry, now)

        parts: dict[str, int] = {}
        if entry.gang:
            parts, _ = place_gang(self.nodes, entry, room)
        else:
            accept = None if hold is None else lambda host: room(host) > 0
            host = self.nodes.fullest(entry.need, entry.party.owner, accept)
            if host is not None:
                parts = {host.name: min(queued.left, room(host), most)}
        for name, tasks in parts.items():
            gpus = self.nodes.take(self.nodes.hosts[name], queued, tasks, now)
            self.grants.append(Grant(entry.serial, name, entry.need, gpus, tasks))
            queued.left -= tasks
        if not queued.left:
            del self.waiting[entry.serial]
        return sum(parts.values())


class Easy(Fifo):
    """EASY: what does not delay the first that waits may pass it."""

    def decide(self, now: float) -> list[Grant | Preemption]:
        """Return what starts now."""
        super().decide(now)
        if len(self.waiting) < 2:
            return self.grants
        queue = list(islice(self.waiting.values(), _EASY_DEPTH))
        hold: Hold | None = None
        refused: set[tuple[Resources, float | None]] = set()
        without: set[Resources] = set()
        for queued in queue[1:]:
            entry = queued.entry
            shape = (entry.need, entry.time_limit_seconds)
            if entry.need in without or (shape in refused and not entry.gang):
                continue
            if self.nodes.fullest(entry.need, entry.party.owner) is None:
                without.add(entry.need)
                continue
            if hold is None:
                hold = Hold(queue[0])
                hold.settle(self.nodes, now)
            while queued.left and self.start_some(queued, now, hold):
                pass
            if queued.left:
                refused.add(shape)
        return self.grants


class Drf(Fifo):
    """Dominant resource fairness: the user with the lowest dominant share goes next."""

    def __init__(self) -> None:
        super().__init__()
        self.shares = Shares(self.nodes.total, _NO_FADING)
        self._lines: dict[str, dict[int, Queued]] = {}
        self._parties: dict[int, str] = {}

    def submit(self, entry: Entry, now: float) -> None:
        """A job waits."""
        super().submit(entry, now)
        owner = entry.party.owner
        self._parties[entry.serial] = owner
        self._lines.setdefault(owner, {})[entry.serial] = self.waiting[entry.serial]

    def ended(self, grant: Grant, now: float, *, again: bool = False) -> None:
        """Tasks have ended."""
        super().ended(grant, now, again=again)
        self.shares.change(self._parties[grant.serial], grant.need, -grant.tasks, now)

    def decide(self, now: float) -> list[Grant | Preemption]:
        """Return what starts now."""
        self.grants = []
        users = set(self._lines)
        while users:
            owner, most = self._next(users)
            line = self._lines[owner]
            first = next(iter(line.values()))
            started = self.start_some(first, now, None, most)
            if not started:
                users.discard(owner)  # its first does not fit
                continue
            self.shares.change(owner, first.entry.need, started, now)
            if not first.left:
                del line[first.entry.serial]
                if not line:
                    del self._lines[owner]
                    users.discard(owner)
        return self.grants

    def _next(self, users: Iterable[str]) -> tuple[str, int]:
        """Return whose turn it is, and how many tasks until it is another's."""
        ordered = sorted((self.shares.running(owner), owner) for owner in users)
        share, owner = ordered[0]
        if len(ordered) == 1:
            return owner, 1 << 30
        need = next(iter(self._lines[owner].values())).entry.need
        each = self.shares.of_task(need)
        return owner, 1 + int((ordered[1][0] - share) / each) if each else 1

"""The order of a pool's queue, and which of its tasks start where."""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice

from updraft.model.job import Resources
from updraft.scheduling.capacity import NOTHING, Node

_Entry = tuple[int, int, Resources]


@dataclass(frozen=True, slots=True)
class Party:
    """Whose tasks they are: what limits apply to, and which runners take them."""

    project: str
    owner: str


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued task, as far as the decision needs it."""

    serial: int
    priority: int
    need: Resources
    party: Party
    beside: bool = False
    """Whether another stage of its pipeline runs, and waits for it: no limit keeps it from that."""

    @property
    def order(self) -> tuple[int, int]:
        """Higher priority first, then first come."""
        return (-self.priority, self.serial)


@dataclass(frozen=True, slots=True)
class Grant:
    """A task that may start, on which runner, and with which GPUs."""

    serial: int
    node: str
    need: Resources
    """What each takes there, to be given back at its end."""
    gpus: tuple[str, ...]
    """Of all its tasks."""
    tasks: int = 1
    """How many of an array's tasks, or of a gang's ranks."""


@dataclass(slots=True)
class Headroom:
    """What a project, or a user in it, may still start; None: as much as there is."""

    tasks: int | None = None
    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: int | None = None

    def lacks(self, need: Resources, tasks: int = 1) -> str | None:
        """Return which of the limits so many tasks with ``need`` exceed, None if none."""
        asked = self._asked(need)
        return next((name for name, left, n in asked if n * tasks > left), None)

    def most(self, need: Resources) -> int:
        """Return how many tasks with ``need`` may start."""
        asked = self._asked(need)
        if any(left < 0 for _, left, _ in asked):
            return 0
        return min((left // n for _, left, n in asked if n), default=_MANY)

    def take(self, need: Resources, tasks: int = 1) -> None:
        """Tasks with ``need`` start."""
        self.tasks = _less(self.tasks, tasks)
        self.cpus_milli = _less(self.cpus_milli, need.cpus_milli * tasks)
        self.memory_bytes = _less(self.memory_bytes, need.memory_bytes * tasks)
        self.gpus = _less(self.gpus, need.gpus * tasks)

    def _asked(self, need: Resources) -> list[tuple[str, int, int]]:
        """Return the limits that there are: what is left of each, and what a task takes."""
        asked = (
            ("running jobs", self.tasks, 1),
            ("cpus", self.cpus_milli, need.cpus_milli),
            ("memory", self.memory_bytes, need.memory_bytes),
            ("gpus", self.gpus, need.gpus),
        )
        return [(name, left, n) for name, left, n in asked if left is not None]


_MANY = 1 << 40


def _less(left: int | None, taken: int) -> int | None:
    return None if left is None else left - taken


Headrooms = Mapping[Party | str, Headroom]
"""By project (its name) and by user in a project (the party); who is not in it has no limits."""


class PoolQueue:
    """A pool's waiting tasks in their order: priority, then first come.

    The first task that does not fit holds its place: no runner that could take it takes anything
    behind it.  What goes past: what needs no resources at all, since it delays nobody (open
    shells); what runs on runners that never take the one that waits; and everything behind tasks
    that only their own project's or user's limit holds back.

    Putting in, taking out and choosing cost what they change, and the number of parties, however
    many tasks wait.
    """

    def __init__(self) -> None:
        self._costly: dict[Party, list[_Entry]] = {}
        self._costless: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return sum(map(len, self._costly.values())) + len(self._costless)

    def push(self, waiting: Waiting) -> None:
        """Put a task at its place."""
        if waiting.need == NOTHING:
            self._costless[waiting.serial] = waiting
        else:
            line = self._costly.setdefault(waiting.party, [])
            insort(line, (*waiting.order, waiting.need), key=_order)

    def discard(self, waiting: Waiting) -> None:
        """Take a task out; one that is not there is passed over."""
        if waiting.need == NOTHING:
            self._costless.pop(waiting.serial, None)
            return
        line = self._costly.get(waiting.party, [])
        at = bisect_left(line, waiting.order, key=_order)
        if at < len(line) and _order(line[at]) == waiting.order:
            del line[at]
            if not line:
                del self._costly[waiting.party]

    def ahead_of(self, waiting: Waiting) -> int:
        """Return how many tasks come before this one."""
        if waiting.need == NOTHING:
            return 0
        return sum(bisect_left(line, waiting.order, key=_order) for line in self._costly.values())

    def parties(self) -> list[Party]:
        """Return whose tasks wait."""
        costless = {waiting.party for waiting in self._costless.values()}
        return list(costless | self._costly.keys())

    def waiting_of(self, project: str | None = None) -> tuple[int, Waiting | None]:
        """Return how many tasks of a project wait, and the first of them; None: of all projects."""
        count, found = 0, list[Waiting]()
        for party, line in self._costly.items():
            if project in (None, party.project):
                count += len(line)
                (priority, serial, need) = line[0]
                found.append(Waiting(serial, -priority, need, party))
        for waiting in self._costless.values():
            if project in (None, waiting.party.project):
                count += 1
                found.append(waiting)
        return count, min(found, key=lambda each: each.order, default=None)

    def ahead_of_project(self, waiting: Waiting) -> int:
        """Return how many tasks of other projects than its own come before this one."""
        if waiting.need == NOTHING:
            return 0
        return sum(
            bisect_left(line, waiting.order, key=_order)
            for party, line in self._costly.items()
            if party.project != waiting.party.project
        )

    def choose(self, nodes: Iterable[Node], headrooms: Headrooms | None = None) -> list[Grant]:
        """Take out the tasks to start now, and return them."""
        floor = _Floor(nodes, headrooms or {})
        grants = [
            grant
            for waiting in list(self._costless.values())
            if (grant := floor.start_costless(waiting)) is not None
        ]
        for grant in grants:
            del self._costless[grant.serial]
        # (order, party): no two tasks have the same order, so parties are never compared.
        heads = [(_order(line[0]), party) for party, line in self._costly.items()]
        heapq.heapify(heads)
        taken: dict[Party, int] = {}
        while heads and floor.is_open:
            _, party = heads[0]
            line, at = self._costly[party], taken.get(party, 0)
            _, serial, need = line[at]
            grant = floor.start(serial, need, party)
            if grant is None:  # its party waits with it: their order is kept
                heapq.heappop(heads)
                continue
            grants.append(grant)
            taken[party] = at = at + 1
            if at < len(line):
                heapq.heapreplace(heads, (_order(line[at]), party))
            else:
                heapq.heappop(heads)
        for party, count in taken.items():
            del self._costly[party][:count]
            if not self._costly[party]:
                del self._costly[party]
        return grants


_LOOKAHEAD = 32
"""Among how many runners with room a task that nobody waits before gets the fullest."""


def place(
    waiting: Waiting, nodes: Iterable[Node], headrooms: Headrooms | None = None
) -> Grant | None:
    """Return where a task may start that nobody waits before; None: nowhere, now.

    Looks at ``nodes`` in their order until it has seen a bounded number with room, so that a large
    pool costs no more than a small one.
    """
    limits = [] if waiting.beside else _limits(waiting.party, headrooms or {})
    if any(limit.lacks(waiting.need) for limit in limits):
        return None
    owner, need = waiting.party.owner, waiting.need
    fitting = (node for node in nodes if node.takes(owner) and node.free.fits(need))
    best = min(islice(fitting, _LOOKAHEAD), key=_fullness, default=None)
    if best is None:
        return None
    return Grant(waiting.serial, best.name, need, best.free.take(need)[1])


def _fullness(node: Node) -> tuple[int, int, int]:
    return (len(node.free.gpus), node.free.cpus_milli, node.free.memory_bytes)


def _limits(party: Party, headrooms: Headrooms) -> list[Headroom]:
    found = (headrooms.get(party.project), headrooms.get(party))
    return [limit for limit in found if limit is not None]


class _Floor:
    """What is free while tasks are chosen, runner by runner and limit by limit."""

    def __init__(self, nodes: Iterable[Node], headrooms: Headrooms) -> None:
        self._nodes = {node.name: node for node in nodes}
        self._free = {name: node.free for name, node in self._nodes.items()}
        self._open = set(self._nodes)  # not held for a task that does not fit yet
        self._headrooms = headrooms

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    def start(self, serial: int, need: Resources, party: Party) -> Grant | None:
        limits = _limits(party, self._headrooms)
        if any(limit.lacks(need) for limit in limits):
            return None
        reachable = [name for name in self._open if self._nodes[name].takes(party.owner)]
        fitting = [name for name in reachable if self._free[name].fits(need)]
        if not fitting:
            self._open.difference_update(reachable)
            return None
        # The fullest that has room: whole runners stay free for whoever needs one.
        name = min(fitting, key=self._room_of)
        self._free[name], gpus = self._free[name].take(need)
        for limit in limits:
            limit.take(need)
        return Grant(serial, name, need, gpus)

    def start_costless(self, waiting: Waiting) -> Grant | None:
        limits = [] if waiting.beside else _limits(waiting.party, self._headrooms)
        names = [name for name, node in self._nodes.items() if node.takes(waiting.party.owner)]
        if not names or any(limit.lacks(waiting.need) for limit in limits):
            return None
        for limit in limits:
            limit.take(waiting.need)
        return Grant(waiting.serial, max(names, key=self._room_of), waiting.need, ())

    def _room_of(self, name: str) -> tuple[int, int, int, str]:
        free = self._free[name]
        return (len(free.gpus), free.cpus_milli, free.memory_bytes, name)


def _order(entry: _Entry) -> tuple[int, int]:
    return entry[:2]

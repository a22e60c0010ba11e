"""A node while its pool gives it tasks: what runs there, what is free, and until when."""

from __future__ import annotations

from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field

from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import UNKNOWN, Queued

_AT_ONCE = -UNKNOWN
_MANY = 1 << 40

Amounts = tuple[int, int, int]
"""Thousandths of CPUs, bytes of memory, GPUs."""


def room_in(amounts: Amounts, need: Resources) -> int:
    """Return how many tasks with ``need`` fit into these amounts."""
    cpus_milli, memory_bytes, gpus = amounts
    most = _MANY
    if need.cpus_milli:
        most = cpus_milli // need.cpus_milli
    if need.memory_bytes and memory_bytes < most * need.memory_bytes:
        most = memory_bytes // need.memory_bytes
    if need.gpus and gpus < most * need.gpus:
        most = gpus // need.gpus
    return max(most, 0)


def times(need: Resources, tasks: int) -> Resources:
    """Return what so many tasks need together."""
    return Resources(need.cpus_milli * tasks, need.memory_bytes * tasks, need.gpus * tasks)


@dataclass(slots=True, eq=False)
class Held:
    """The tasks of one job on one node."""

    queued: Queued
    tasks: int = 0
    stopping: int = 0
    """How many of them, the youngest, give way to others."""
    runs: list[tuple[float, int]] = field(default_factory=list)
    """When they started, and how many then; the oldest first."""

    def add(self, tasks: int, now: float) -> None:
        """So many start."""
        self.tasks += tasks
        self.runs.append((now, tasks))

    def drop(self, tasks: int) -> None:
        """So many have ended: those that give way, else those that have run longest."""
        youngest = self.stopping > 0
        self.tasks -= tasks
        self.stopping = max(self.stopping - tasks, 0)
        while tasks:
            start, count = self.runs.pop(-1 if youngest else 0)
            if count > tasks:
                self.runs.insert(len(self.runs) if youngest else 0, (start, count - tasks))
            tasks -= min(count, tasks)

    @property
    def ends_by(self) -> float:
        """When the time limit of the last of them is over."""
        return self.queued.entry.ends_by(self.runs[-1][0]) if self.runs else _AT_ONCE

    def ends(self) -> Iterator[tuple[float, int]]:
        """Yield by when how many of them end, by their time limit or since they give way."""
        staying = self.tasks - self.stopping
        if self.stopping:
            yield _AT_ONCE, self.stopping
        for start, count in self.runs:
            if staying <= 0:
                return
            yield self.queued.entry.ends_by(start), min(count, staying)
            staying -= count


class Host:
    """A node and what runs on it."""

    __slots__ = (
        "claimed_gpus", "cpus_milli", "drained", "free_gpus", "held", "memory_bytes", "name",
        "network", "open", "serves", "total",
    )  # fmt: skip

    def __init__(self, name: str) -> None:
        self.name = name
        self.serves: str | None = None
        self.network = ""
        self.total = Capacity(0, 0, frozenset())
        self.open = False
        """Whether it takes tasks now."""
        self.cpus_milli = 0
        """Free, and claimed by nobody; may be less than nothing, as the memory."""
        self.memory_bytes = 0
        self.free_gpus: list[str] = []
        self.claimed_gpus = 0
        self.held: dict[int, Held] = {}
        self.drained = _AT_ONCE
        """When all that runs there has ended, by the time limits."""

    def offer(self, node: Node) -> None:
        """It has this to give, of which what runs there takes some."""
        self.serves, self.network, self.open = node.serves, node.peer_network, True
        old, self.total = self.total, node.free
        self.cpus_milli += self.total.cpus_milli - old.cpus_milli
        self.memory_bytes += self.total.memory_bytes - old.memory_bytes
        taken = old.gpus.difference(self.free_gpus)
        self.free_gpus = sorted(self.total.gpus - taken)

    @property
    def gpus(self) -> int:
        """Free, and claimed by nobody."""
        return len(self.free_gpus) - self.claimed_gpus

    @property
    def amounts(self) -> Amounts:
        """What is free, and claimed by nobody."""
        return self.cpus_milli, self.memory_bytes, len(self.free_gpus) - self.claimed_gpus

    @property
    def idle(self) -> bool:
        """Whether nothing is known of it but its name."""
        return not self.open and not self.held and not self.claimed_gpus

    def takes(self, owner: str) -> bool:
        """Whether it takes tasks of ``owner``'s, now."""
        return self.open and (self.serves is None or self.serves == owner)

    def room(self, need: Resources) -> int:
        """Return how many tasks with ``need`` fit now."""
        return room_in(self.amounts, need)

    def could_hold(self, need: Resources) -> int:
        """Return how many tasks with ``need`` fit when nothing else runs there."""
        total = self.total
        return room_in((total.cpus_milli, total.memory_bytes, len(total.gpus)), need)

    def take(self, queued: Queued, tasks: int, now: float) -> tuple[str, ...]:
        """Start tasks there; return the GPUs that they get."""
        need = queued.entry.need
        self.cpus_milli -= need.cpus_milli * tasks
        self.memory_bytes -= need.memory_bytes * tasks
        number = need.gpus * tasks
        gpus = tuple(self.free_gpus[:number])
        del self.free_gpus[:number]
        self._hold(queued, tasks, now)
        return gpus

    def adopt(self, queued: Queued, tasks: int, gpus: tuple[str, ...], now: float) -> None:
        """Tasks run there, whoever decided it, with these GPUs."""
        need = queued.entry.need
        self.cpus_milli -= need.cpus_milli * tasks
        self.memory_bytes -= need.memory_bytes * tasks
        self.free_gpus = [gpu for gpu in self.free_gpus if gpu not in gpus]
        self._hold(queued, tasks, now)

    def _hold(self, queued: Queued, tasks: int, now: float) -> None:
        entry = queued.entry
        held = self.held.get(entry.serial)
        if held is None:
            held = self.held[entry.serial] = Held(queued)
        held.add(tasks, now)
        self.drained = max(self.drained, entry.ends_by(now))

    def give_back(self, held: Held, tasks: int, gpus: tuple[str, ...]) -> None:
        """Tasks there have ended."""
        need = held.queued.entry.need
        self.cpus_milli += need.cpus_milli * tasks
        self.memory_bytes += need.memory_bytes * tasks
        for gpu in gpus:
            if gpu in self.total.gpus:  # else it is there no more
                insort(self.free_gpus, gpu)
        held.drop(tasks)
        if not held.tasks:
            del self.held[held.queued.entry.serial]
        self.drained = max((each.ends_by for each in self.held.values()), default=_AT_ONCE)

    def claim(self, need: Resources, tasks: int) -> None:
        """Keep what tasks need, which others hold yet."""
        self.cpus_milli -= need.cpus_milli * tasks
        self.memory_bytes -= need.memory_bytes * tasks
        self.claimed_gpus += need.gpus * tasks

    def releases(self) -> list[tuple[float, Resources, int]]:
        """Return by when how many tasks with which need end, the soonest first."""
        found = [
            (end, held.queued.entry.need, tasks)
            for held in self.held.values()
            for end, tasks in held.ends()
        ]
        found.sort(key=_when)
        return found

    def amounts_at(self, moment: float) -> Amounts:
        """Return what is free at a moment, if nothing starts there and time limits hold."""
        cpus_milli, memory_bytes, gpus = self.amounts
        for held in self.held.values():
            need = held.queued.entry.need
            for end, tasks in held.ends():
                if end <= moment:
                    cpus_milli += need.cpus_milli * tasks
                    memory_bytes += need.memory_bytes * tasks
                    gpus += need.gpus * tasks
        return cpus_milli, memory_bytes, gpus

    def first_fit(self, need: Resources) -> tuple[float, int]:
        """Return when ``need`` fits, by the time limits, and how many tasks end for it."""
        cpus_milli, memory_bytes, gpus = self.amounts
        ended = 0
        if room_in((cpus_milli, memory_bytes, gpus), need):
            return _AT_ONCE, ended
        for end, freed, tasks in self.releases():
            cpus_milli += freed.cpus_milli * tasks
            memory_bytes += freed.memory_bytes * tasks
            gpus += freed.gpus * tasks
            ended += tasks
            if room_in((cpus_milli, memory_bytes, gpus), need):
                return end, ended
        return UNKNOWN, ended

    def rooms(self, need: Resources) -> Iterator[tuple[float, int]]:
        """Yield when, by the time limits, there is room for how many more tasks."""
        cpus_milli, memory_bytes, gpus = self.amounts
        room = room_in((cpus_milli, memory_bytes, gpus), need)
        if room:
            yield _AT_ONCE, room
        for end, freed, tasks in self.releases():
            cpus_milli += freed.cpus_milli * tasks
            memory_bytes += freed.memory_bytes * tasks
            gpus += freed.gpus * tasks
            more = room_in((cpus_milli, memory_bytes, gpus), need) - room
            if more > 0:
                yield end, more
                room += more


def _when(release: tuple[float, Resources, int]) -> float:
    return release[0]

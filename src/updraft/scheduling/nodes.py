"""A pool's nodes, found by what is free on them and by when they are empty.

Kept as tasks start and end: a look costs the logarithm of the number of nodes, and what it passes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable, Iterator
from itertools import chain

from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import Queued
from updraft.scheduling.hosts import Held, Host, room_in

LOOKAHEAD = 64
"""How many nodes with enough of everything are looked at where a reservation may refuse them, and
among how many a reservation's are chosen."""

_Free = tuple[int, int, str]
_Kind = tuple[str | None, str, int, int, int]


class Kind:
    """Nodes with the same shape, network and owner, in the order in which they drain."""

    __slots__ = ("drains", "network", "serves", "total")

    def __init__(self, host: Host) -> None:
        self.serves, self.network, self.total = host.serves, host.network, host.total
        self.drains: list[tuple[float, str]] = []

    def holds(self, need: Resources, owner: str) -> int:
        """Return how many tasks of an owner's fit onto an empty one of these."""
        if self.serves not in (None, owner):
            return 0
        total = self.total
        return room_in((total.cpus_milli, total.memory_bytes, len(total.gpus)), need)


class Nodes:
    """The nodes of a pool."""

    def __init__(self) -> None:
        self.hosts: dict[str, Host] = {}
        self.kinds: dict[_Kind, Kind] = {}
        self.total = [0, 0, 0]
        """CPUs in thousandths, bytes of memory and GPUs of all that are open."""
        self.preemptible: dict[str, int] = {}
        """How many tasks that give way, and do not yet, run on which nodes."""
        self._free: dict[str | None, list[list[_Free]]] = {}  # by owner, by the number of free GPUs
        self._keys: dict[str, tuple[list[_Free], _Free, Kind, float]] = {}

    # -- looking

    def fullest(
        self, need: Resources, owner: str, accept: Callable[[Host], bool] | None = None
    ) -> Host | None:
        """Return the fullest node with room for ``need``, so that whole ones stay free.

        Nodes that serve only ``owner`` come first.  ``accept`` is asked a bounded number of times.
        """
        asked = 0
        for line in self._lines(owner, need.gpus):
            if not line or line[-1][0] < need.cpus_milli:
                continue
            at = bisect_left(line, (need.cpus_milli, need.memory_bytes))
            for place in range(at, len(line)):
                if line[place][1] < need.memory_bytes:
                    continue
                host = self.hosts[line[place][2]]
                if accept is None or accept(host):
                    return host
                asked += 1
                if asked == LOOKAHEAD:
                    return None
        return None

    def emptiest(self, owner: str, gpus: int = 0) -> Iterator[Host]:
        """Yield the open nodes that an owner's tasks may use, the emptiest first."""
        for line in reversed(list(self._lines(owner, gpus))):
            for _, _, name in reversed(line):
                yield self.hosts[name]

    def roomy(self, need: Resources, owner: str) -> Iterator[Host]:
        """Yield the nodes with room for ``need``, the emptiest first."""
        for line in reversed(list(self._lines(owner, need.gpus))):
            for cpus_milli, memory_bytes, name in reversed(line):
                if cpus_milli < need.cpus_milli:
                    break
                if memory_bytes >= need.memory_bytes:
                    yield self.hosts[name]

    def _lines(self, owner: str, gpus: int) -> Iterator[list[_Free]]:
        own, every = self._free.get(owner, ()), self._free.get(None, ())
        return chain(own[gpus:], every[gpus:])

    # -- changing

    def put(self, node: Node) -> Host:
        """A node is there, or has changed; ``node.free`` is all that it has to give to tasks."""
        host = self.hosts.get(node.name)
        if host is None:
            host = self.hosts[node.name] = Host(node.name)
        self._leave(host)
        host.offer(node)
        self._enter(host)
        self._count(host.total, 1)
        return host

    def close(self, name: str) -> None:
        """A node takes no more tasks; those that it has go on."""
        host = self.hosts.get(name)
        if host is not None:
            self._leave(host)
            host.open = False
            self._forget_idle(host)

    def take(self, host: Host, queued: Queued, tasks: int, now: float) -> tuple[str, ...]:
        """Start tasks on a node; return the GPUs that they get."""
        gpus = host.take(queued, tasks, now)
        self._note_preemptible(host, queued, tasks)
        self.moved(host)
        return gpus

    def adopt(
        self, name: str, queued: Queued, tasks: int, gpus: tuple[str, ...], now: float
    ) -> None:
        """Tasks run on a node, which need not be there now."""
        host = self.hosts.get(name)
        if host is None:
            host = self.hosts[name] = Host(name)
        host.adopt(queued, tasks, gpus, now)
        self._note_preemptible(host, queued, tasks)
        self.moved(host)

    def give_back(self, host: Host, held: Held, tasks: int, gpus: tuple[str, ...]) -> None:
        """Tasks on a node have ended."""
        running = held.tasks - held.stopping
        host.give_back(held, tasks, gpus)
        self._note_preemptible(host, held.queued, held.tasks - held.stopping - running)
        self.moved(host)
        self._forget_idle(host)

    def stop(self, host: Host, held: Held, tasks: int) -> None:
        """Tasks on a node, the youngest, give way from now on."""
        held.stopping += tasks
        self._note_preemptible(host, held.queued, -tasks)

    def claim(self, host: Host, need: Resources, tasks: int) -> None:
        """Keep what tasks need; a negative number gives it up."""
        host.claim(need, tasks)
        self.moved(host)

    def moved(self, host: Host) -> None:
        """Put a node at its place after a change of what is free there."""
        if not host.open:
            return
        line, key, kind, drained = self._keys[host.name]
        del line[bisect_left(line, key)]
        line, key = self._insert(host)
        if drained != host.drained:
            del kind.drains[bisect_left(kind.drains, (drained, host.name))]
            insort(kind.drains, (host.drained, host.name))
        self._keys[host.name] = (line, key, kind, host.drained)

    def _insert(self, host: Host) -> tuple[list[_Free], _Free]:
        lines = self._free.setdefault(host.serves, [])
        gpus = max(host.gpus, 0)
        while len(lines) <= gpus:
            lines.append([])
        key = (max(host.cpus_milli, 0), max(host.memory_bytes, 0), host.name)
        insort(lines[gpus], key)
        return lines[gpus], key

    def _enter(self, host: Host) -> None:
        line, key = self._insert(host)
        total = host.total
        name = (host.serves, host.network, total.cpus_milli, total.memory_bytes, len(total.gpus))
        kind = self.kinds.get(name)
        if kind is None:
            kind = self.kinds[name] = Kind(host)
        insort(kind.drains, (host.drained, host.name))
        self._keys[host.name] = (line, key, kind, host.drained)

    def _leave(self, host: Host) -> None:
        if not host.open:
            return
        line, key, kind, drained = self._keys.pop(host.name)
        del line[bisect_left(line, key)]
        del kind.drains[bisect_left(kind.drains, (drained, host.name))]
        if not kind.drains:
            self.kinds = {name: each for name, each in self.kinds.items() if each is not kind}
        self._count(host.total, -1)

    def _count(self, total: Capacity, sign: int) -> None:
        self.total[0] += sign * total.cpus_milli
        self.total[1] += sign * total.memory_bytes
        self.total[2] += sign * len(total.gpus)

    def _note_preemptible(self, host: Host, queued: Queued, tasks: int) -> None:
        if queued.entry.preemptible and tasks:
            left = self.preemptible.get(host.name, 0) + tasks
            if left > 0:
                self.preemptible[host.name] = left
            else:
                self.preemptible.pop(host.name, None)

    def _forget_idle(self, host: Host) -> None:
        if host.idle:
            del self.hosts[host.name]

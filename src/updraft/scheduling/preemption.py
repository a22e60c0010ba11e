"""Which running tasks give way to a job that fits nowhere else: the fewest, the youngest first."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from updraft.scheduling.entries import Entry
from updraft.scheduling.hosts import Held, Host, room_in
from updraft.scheduling.nodes import LOOKAHEAD, Nodes
from updraft.scheduling.reservation import fewest

_MOST = 256


@dataclass(slots=True, eq=False)
class _Unit:
    """What gives way together: one task, or a whole gang."""

    start: float
    parts: list[tuple[Host, Held, int]]

    @property
    def tasks(self) -> int:
        return sum(tasks for _, _, tasks in self.parts)


@dataclass(slots=True)
class Victims:
    """Who gives way, and which nodes get how many of the job's tasks then."""

    held: list[tuple[Host, Held, int]]
    parts: dict[str, int]


_Rooms = Callable[[Iterable[_Unit]], "dict[str, int] | None"]


def find_victims(
    nodes: Nodes, entry: Entry, changed: Collection[str] | None = None
) -> Victims | None:
    """Return whose end makes room for one task, or for a whole gang; None: nobody's would.

    ``changed``: nodes, of which at least one is involved; None: any.
    """
    best: tuple[int, float, Victims] | None = None
    for hosts in _groups(nodes, entry):
        if changed is not None and not any(host.name in changed for host in hosts):
            continue
        units = list(islice(_units(nodes, hosts, entry), _MOST))

        def rooms(chosen: Iterable[_Unit], hosts: list[Host] = hosts) -> dict[str, int] | None:
            return _rooms(hosts, entry, chosen)

        chosen = _fewest(units, rooms)
        parts = rooms(chosen)
        if parts is None or not chosen:
            continue
        tasks, youngest = sum(unit.tasks for unit in chosen), min(unit.start for unit in chosen)
        if best is None or (tasks, -youngest) < best[:2]:
            held = [part for unit in chosen for part in unit.parts]
            best = (tasks, -youngest, Victims(held, parts))
    return None if best is None else best[2]


def _fewest(units: list[_Unit], rooms: _Rooms) -> list[_Unit]:
    """Return a few of the units, none of which can be left out; the youngest where it is equal."""
    for unit in units:
        if rooms([unit]) is not None:
            return [unit]
    found: list[list[_Unit]] = []
    for order in (units, sorted(units, key=_size, reverse=True)):
        chosen: list[_Unit] = []
        for unit in order:
            chosen.append(unit)
            if rooms(chosen) is not None:
                break
        else:
            return []
        for unit in sorted(chosen, key=lambda each: each.start):
            without = [each for each in chosen if each is not unit]
            if rooms(without) is not None:
                chosen = without
        found.append(chosen)
    return min(found, key=len)


def _size(unit: _Unit) -> tuple[int, int, int]:
    need, tasks = unit.parts[0][1].queued.entry.need, unit.parts[0][2]
    return need.gpus * tasks, need.cpus_milli * tasks, need.memory_bytes * tasks


def _groups(nodes: Nodes, entry: Entry) -> Iterator[list[Host]]:
    """Yield the nodes that can have the entry's tasks together."""
    owner = entry.party.owner
    hosts = [
        nodes.hosts[name]
        for name in islice(nodes.preemptible, LOOKAHEAD)
        if nodes.hosts[name].takes(owner)
    ]
    tasks = entry.count if entry.gang else 1
    for host in hosts:
        if host.could_hold(entry.need) >= tasks:
            yield [host]
    if entry.gang:
        for network in dict.fromkeys(host.network for host in hosts if host.network):
            together = {host.name: host for host in hosts if host.network == network}
            for host in islice(nodes.roomy(entry.need, owner), tasks):
                if host.network == network:
                    together[host.name] = host
            yield list(together.values())


def _units(nodes: Nodes, hosts: list[Host], entry: Entry) -> Iterator[_Unit]:
    """Yield what may give way to the entry there, the youngest first."""
    found: list[_Unit] = []
    gangs: set[int] = set()
    for host in hosts:
        for serial, held in host.held.items():
            queued = held.queued
            if not gives_way(queued.entry, entry):
                continue
            if queued.entry.gang:
                if serial in gangs or held.stopping:
                    continue
                gangs.add(serial)
                places = [nodes.hosts[name] for name in queued.nodes]
                whole = [(each, each.held[serial], each.held[serial].tasks) for each in places]
                found.append(_Unit(held.runs[0][0], whole))
                continue
            staying = held.tasks - held.stopping
            for start, count in held.runs:
                found += [_Unit(start, [(host, held, 1)]) for _ in range(min(count, staying))]
                staying -= min(count, staying)
    found.sort(key=lambda unit: -unit.start)
    return iter(found)


def gives_way(running: Entry, entry: Entry) -> bool:
    """Whether running tasks give way to an entry's."""
    if not running.preemptible or running.serial == entry.serial:
        return False
    return not entry.preemptible or entry.priority > running.priority


def _rooms(hosts: list[Host], entry: Entry, chosen: Iterable[_Unit]) -> dict[str, int] | None:
    """Return where the entry's tasks fit when the chosen have ended; None: nowhere."""
    freed = {host.name: list(host.amounts) for host in hosts}
    for unit in chosen:
        for host, held, tasks in unit.parts:
            if host.name in freed:
                need, amounts = held.queued.entry.need, freed[host.name]
                amounts[0] += need.cpus_milli * tasks
                amounts[1] += need.memory_bytes * tasks
                amounts[2] += need.gpus * tasks
    rooms = {}
    for name, (cpus_milli, memory_bytes, gpus) in freed.items():
        room = room_in((cpus_milli, memory_bytes, gpus), entry.need)
        if room:
            rooms[name] = room
    tasks = entry.count if entry.gang else 1
    return fewest(rooms, tasks) if sum(rooms.values()) >= tasks else None

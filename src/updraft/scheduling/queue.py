"""The order of a pool's queue, and what fits into what is free."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from updraft.model.job import Resources


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a pool has, or what of it is free.  ``memory_bytes`` counts requests, not use."""

    cpus_milli: int
    memory_bytes: int
    gpus: frozenset[str]

    def fits(self, need: Resources) -> bool:
        """Whether ``need`` can be met from this; what is not needed need not be there.

        Less than nothing may be free: a runner can come back smaller than what runs on it.
        """
        return (
            need.cpus_milli <= max(self.cpus_milli, 0)
            and need.memory_bytes <= max(self.memory_bytes, 0)
            and need.gpus <= len(self.gpus)
        )

    def take(self, need: Resources) -> tuple[Capacity, tuple[str, ...]]:
        """Return what is left, and the ids of the GPUs that ``need`` gets."""
        chosen = tuple(sorted(self.gpus)[: need.gpus])
        return self.without(need, chosen), chosen

    def without(self, need: Resources, gpus: Iterable[str]) -> Capacity:
        """Return what is left when a task with ``need`` holds these GPUs."""
        return Capacity(
            self.cpus_milli - need.cpus_milli,
            self.memory_bytes - need.memory_bytes,
            self.gpus.difference(gpus),
        )

    def give_back(self, need: Resources, gpus: Iterable[str]) -> Capacity:
        """Return what is free once a task with ``need`` has ended."""
        return Capacity(
            self.cpus_milli + need.cpus_milli,
            self.memory_bytes + need.memory_bytes,
            self.gpus.union(gpus),
        )


@dataclass(frozen=True, slots=True)
class Waiting:
    """A queued task, as far as the decision needs it."""

    serial: int
    priority: int
    need: Resources

    @property
    def order(self) -> tuple[int, int]:
        """Higher priority first, then first come."""
        return (-self.priority, self.serial)


@dataclass(frozen=True, slots=True)
class Grant:
    """A task that may start, with the GPUs it gets."""

    serial: int
    gpus: tuple[str, ...]


class PoolQueue:
    """A pool's waiting tasks in their order: priority, then first come.

    The first task that does not fit holds its place: nothing behind it starts before it.  Only what
    needs no resources at all goes past, since it delays nobody (open shells).  Every operation
    costs what it changes, however many wait.
    """

    def __init__(self) -> None:
        self._costly: list[tuple[int, int, Resources]] = []
        self._costless: dict[int, Waiting] = {}

    def __len__(self) -> int:
        return len(self._costly) + len(self._costless)

    def push(self, waiting: Waiting) -> None:
        """Put a task at its place."""
        if waiting.need == NOTHING:
            self._costless[waiting.serial] = waiting
        else:
            insort(self._costly, (*waiting.order, waiting.need), key=_order)

    def discard(self, waiting: Waiting) -> None:
        """Take a task out; one that is not there is passed over."""
        if waiting.need == NOTHING:
            self._costless.pop(waiting.serial, None)
            return
        at = self.ahead_of(waiting)
        if at < len(self._costly) and _order(self._costly[at]) == waiting.order:
            del self._costly[at]

    def ahead_of(self, waiting: Waiting) -> int:
        """Return how many tasks come before this one."""
        if waiting.need == NOTHING:
            return 0
        return bisect_left(self._costly, waiting.order, key=_order)

    def choose(self, free: Capacity) -> tuple[list[Grant], Capacity]:
        """Take out the tasks to start now; return them, and what is free afterwards."""
        grants = [Grant(serial, ()) for serial in self._costless]
        self._costless.clear()
        count = 0
        for _, serial, need in self._costly:
            if not free.fits(need):
                break
            free, gpus = free.take(need)
            grants.append(Grant(serial, gpus))
            count += 1
        del self._costly[:count]
        return grants, free


NOTHING = Resources(cpus_milli=0)
"""The need of a task that costs the pool nothing."""


def _order(entry: tuple[int, int, Resources]) -> tuple[int, int]:
    return entry[:2]


def why_waiting(need: Resources, ahead: int, free: Capacity, pool: str) -> str:
    """Return the reason that a person reads for a task with ``ahead`` others before it."""
    if ahead:
        return f"pool {pool} is full ({ahead} ahead)"
    cpus_milli, memory_bytes = max(free.cpus_milli, 0), max(free.memory_bytes, 0)
    if need.cpus_milli > cpus_milli:
        name = "CPU" if need.cpus_milli == 1000 else "CPUs"
        missing = f"{_number(need.cpus_milli)} {name}; {_number(cpus_milli)} are free"
    elif need.memory_bytes > memory_bytes:
        missing = f"{need.memory_bytes >> 20} MiB of memory; {memory_bytes >> 20} are free"
    elif need.gpus > len(free.gpus):
        missing = f"{need.gpus} GPUs; {len(free.gpus)} are free"
    else:
        return f"pool {pool} is about to start it"
    return f"next in pool {pool}, waits for {missing}"


def never_fits(need: Resources, total: Capacity, pool: str) -> str | None:
    """Return why ``need`` can never be met, None when it can."""
    if need.cpus_milli > total.cpus_milli:
        return f"pool {pool} has {_number(total.cpus_milli)} CPUs; lower --cpus"
    if need.memory_bytes > total.memory_bytes:
        return f"pool {pool} has {total.memory_bytes >> 20} MiB of memory; lower --memory"
    if need.gpus > len(total.gpus):
        return f"pool {pool} has {len(total.gpus)} GPUs; lower --gpus"
    return None


def _number(milli: int) -> str:
    return f"{milli / 1000:g}"

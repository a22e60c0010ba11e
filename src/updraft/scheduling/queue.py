"""The order of a pool's queue, and what fits into what is free."""

from __future__ import annotations

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


def choose(queue: Iterable[Waiting], free: Capacity) -> tuple[list[Grant], Capacity]:
    """Return the tasks to start now, in order, and what is free afterwards.

    ``queue`` comes in its order.  The first that does not fit holds its place: nothing behind it
    starts before it, except what needs no resources at all and so delays nobody (open shells).
    """
    grants: list[Grant] = []
    blocked = False
    for waiting in queue:
        costs_nothing = waiting.need == _NOTHING
        if blocked and not costs_nothing:
            continue
        if not free.fits(waiting.need):
            blocked = True
            continue
        free, gpus = free.take(waiting.need)
        grants.append(Grant(waiting.serial, gpus))
    return grants, free


_NOTHING = Resources(cpus_milli=0)


def why_waiting(need: Resources, ahead: int, free: Capacity, pool: str) -> str:
    """Return the reason that a person reads for a task with ``ahead`` others before it."""
    if ahead:
        return f"pool {pool} is full ({ahead} ahead)"
    cpus_milli, memory_bytes = max(free.cpus_milli, 0), max(free.memory_bytes, 0)
    if need.cpus_milli > cpus_milli:
        missing = f"{_number(need.cpus_milli)} CPUs; {_number(cpus_milli)} are free"
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

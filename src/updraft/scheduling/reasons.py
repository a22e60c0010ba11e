"""Why a task waits, and why it would wait for ever: what a person reads."""

from __future__ import annotations

from collections.abc import Collection

from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity


def why_waiting(need: Resources, ahead: int, free: Collection[Capacity], pool: str) -> str:
    """Return the reason for a task with ``ahead`` others before it.

    ``free``: what is free on each of the pool's runners that take its owner's tasks.
    """
    if not free:
        return f"pool {pool} has no runner that takes it now"
    if ahead:
        return f"pool {pool} is full ({ahead} ahead)"
    if any(each.fits(need) for each in free):
        return f"pool {pool} is about to start it"
    return f"next in pool {pool}, waits for {_missing(need, free)}"


def limit_reached(whose: str, reached: str) -> str:
    """Return the reason for a job that a limit holds back, as ``2 of 2 running jobs`` says."""
    return f"{whose} has {reached}, its limit; waits for one of its running jobs to end"


def never_fits(need: Resources, totals: Collection[Capacity], pool: str) -> str | None:
    """Return why no runner with one of these totals can ever meet ``need``; None when one can."""
    if not totals or any(total.fits(need) for total in totals):
        return None
    has = f"pool {pool} has" if len(totals) == 1 else f"no runner of pool {pool} has more than"
    most = _most(totals)
    if need.cpus_milli > most.cpus_milli:
        return f"{has} {_number(most.cpus_milli)} CPUs; lower --cpus"
    if need.memory_bytes > most.memory_bytes:
        return f"{has} {most.memory_bytes >> 20} MiB of memory; lower --memory"
    if need.gpus > len(most.gpus):
        return f"{has} {len(most.gpus)} GPUs; lower --gpus"
    return f"no runner of pool {pool} has all of that; lower --cpus, --memory or --gpus"


def _missing(need: Resources, free: Collection[Capacity]) -> str:
    """Return what is missing, and how much of it there is where there is most."""
    most = _most(free)
    where = "are free" if len(free) == 1 else "at most are free on one runner"
    if need.cpus_milli > most.cpus_milli:
        name = "CPU" if need.cpus_milli == 1000 else "CPUs"
        return f"{_number(need.cpus_milli)} {name}; {_number(most.cpus_milli)} {where}"
    if need.memory_bytes > most.memory_bytes:
        return f"{need.memory_bytes >> 20} MiB of memory; {most.memory_bytes >> 20} {where}"
    if need.gpus > len(most.gpus):
        return f"{need.gpus} GPUs; {len(most.gpus)} {where}"
    return "a runner that has all it asks for free at once"


def _most(capacities: Collection[Capacity]) -> Capacity:
    """Return the most of each kind that one of them has; less than nothing is nothing."""
    return Capacity(
        max(0, *(each.cpus_milli for each in capacities)),
        max(0, *(each.memory_bytes for each in capacities)),
        max((each.gpus for each in capacities), key=len),
    )


def _number(milli: int) -> str:
    return f"{milli / 1000:g}"

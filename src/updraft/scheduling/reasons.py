"""Why a task waits, and why it would wait for ever: what a person reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity

_NAMED = 3


def why_waiting(need: Resources, ahead: int, free: Collection[Capacity], pool: str) -> str:
    """Return the reason for a task with ``ahead`` others before it.

    ``free``: what is free on each of the pool's runners that take its owner's tasks; at least one.
    """
    if ahead:
        return f"pool {pool} is full ({ahead} ahead)"
    if any(each.fits(need) for each in free):
        return f"pool {pool} is about to start it"
    return f"next in pool {pool}, waits for {_missing(need, free)}"


def none_takes(pool: str, drained: Sequence[str], away: Mapping[str, float]) -> str:
    """Return why none of a pool's runners takes a task: they are drained, or ``away``.

    ``away``: since how many seconds, by name.
    """
    match drained, list(away.items()):
        case [name], []:
            return f"runner {name} is drained; updraft runner drain {name} --undo"
        case [], [(name, seconds)]:
            return f"runner {name} is away, and was last heard of {_ago(seconds)} ago"
    parts = ((len(drained), "drained"), (len(away), "away"))
    counts = ", ".join(f"{count} {how}" for count, how in parts if count)
    return f"none of pool {pool}'s runners takes tasks now: {counts}; updraft runner list"


def serves_others(pool: str, serves: Mapping[str, str]) -> str:
    """Return why none of a pool's runners ever takes a task: ``serves`` says whom each serves."""
    named = [f"{name} serves {whom}" for name, whom in sorted(serves.items())]
    more = f" and {len(named) - _NAMED} more" if len(named) > _NAMED else ""
    return f"pool {pool} has only runners that serve others: {', '.join(named[:_NAMED])}{more}"


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


def _ago(seconds: float) -> str:
    """Return a length of time in the largest unit of which there are two."""
    for name, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds // length:.0f} {name}"
    return f"{max(seconds, 0):.0f} s"


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

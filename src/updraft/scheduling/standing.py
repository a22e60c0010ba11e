"""Where a job stands in its pool's queue: what is ahead, what it waits for, and when it can start.

An estimate is what time limits say, with its basis; where they say nothing, it says so.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass

from updraft.scheduling.entries import Entry, Queued
from updraft.scheduling.lines import Line
from updraft.scheduling.queue import Headroom, Headrooms
from updraft.scheduling.reservation import could_start
from updraft.scheduling.scheduler import PoolScheduler

_COUNTED = 1000

Name = Callable[[int], str]
"""How people know a job, by its serial."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job stands."""

    jobs_ahead: int
    """Whose turn comes before, as users' turns are now."""
    tasks_ahead: int | None
    """What they have waiting together; None: too many to count."""
    first: int | None
    """The serial of the job whose turn is next, if it is another."""
    blocked_by: str
    """What keeps it from starting, as a person reads it."""
    starts_by: float | None
    """When it can start at the latest, unless higher priorities come; None: nobody can tell."""
    basis: str
    """What the estimate is based on, or why there is none."""


def stand(
    scheduler: PoolScheduler,
    serial: int,
    now: float,
    name: Name = str,
    headrooms: Headrooms | None = None,
) -> Standing | None:
    """Return where a job stands; None for one that is not known or has nothing that waits."""
    queued = scheduler.entries.get(serial)
    if queued is None or not (queued.left or queued.claimed):
        return None
    if queued.claimed:
        text = "waits for tasks that make room for it to end"
        return Standing(0, 0, None, text, None, "unknown: they may take their grace to end")
    if queued.entry.costless:
        return Standing(0, 0, None, "waits for a runner", None, "unknown: no runner takes it now")
    if not queued.in_line:
        text = f"{queued.running} of its tasks run, as many as it allows at a time"
        return Standing(0, 0, None, text, None, "unknown: one of its own tasks has to end first")
    jobs, tasks, first = _ahead(scheduler, queued)
    limited = _limit(queued.entry, headrooms)
    starts_by, basis = _estimate(scheduler, queued, now, name)
    if limited is not None:
        blocked, starts_by = f"its limit of {limited} is reached", None
        basis = "unknown: one of its owner's or project's jobs has to end first"
    elif not could_start(scheduler.nodes, queued.entry):
        blocked = f"no runners that are there have {_shape(queued.entry)}"
        starts_by, basis = None, "unknown: a larger runner, or more of them, have to come"
    elif jobs:
        blocked = f"{jobs} ahead" if first is None else f"{jobs} ahead, the first is {name(first)}"
    else:
        blocked = f"next; waits for {_shape(queued.entry)} to be free"
    return Standing(jobs, tasks, first, blocked, starts_by, basis)


def _ahead(scheduler: PoolScheduler, queued: Queued) -> tuple[int, int | None, int | None]:
    """Return how many jobs and tasks come before, and the first of them."""
    entry = queued.entry
    own = scheduler.lines.of(entry.party)
    jobs, found, first = 0, list[Queued](), None
    passed_own = False
    for line in scheduler.lines:
        passed_own = passed_own or line is own
        count = line.place(queued) if line is own else _before(line, entry, passed_own)
        if count and first is None:
            first = line.items[0].entry.serial
        jobs += count
        found += line.items[: min(count, _COUNTED)]
    if jobs > _COUNTED:
        return jobs, None, first
    return jobs, sum(each.left for each in found), first


def _before(line: Line, entry: Entry, behind: bool) -> int:
    """Return how many of another's line come before an entry: higher, or equal and ahead."""
    least = -entry.priority + (0 if behind else 1)
    return bisect_left(line.items, (least, 0), key=lambda each: each.entry.order)


def _limit(entry: Entry, headrooms: Headrooms | None) -> str | None:
    if entry.beside or not headrooms:
        return None
    tasks = entry.count if entry.gang else 1
    found: tuple[Headroom | None, ...] = (
        headrooms.get(entry.party.project),
        headrooms.get(entry.party),
    )
    for each in found:
        if each is not None and (lacking := each.lacks(entry.need, tasks)) is not None:
            return lacking
    return None


def _estimate(
    scheduler: PoolScheduler, queued: Queued, now: float, name: Name
) -> tuple[float | None, str]:
    hold = scheduler.hold
    if hold is None:
        return None, "unknown: nothing is kept for it yet"
    if hold.queued is not queued:
        ahead = name(hold.queued.entry.serial)
        if queued.entry.priority > hold.queued.entry.priority:
            return None, "unknown: nothing is kept for it yet"
        hold.settle(scheduler.nodes, now)
        if not hold.parts:
            return None, f"unknown: job {ahead} ahead waits for tasks without a time limit"
        return None, f"unknown: job {ahead} ahead starts first"
    hold.settle(scheduler.nodes, now)
    if not hold.parts:
        return None, "unknown: it waits for tasks without a time limit"
    if queued.entry.gang:
        where = _count(len(hold.parts), "runner")
        return hold.at, f"by the time limits of the tasks on {where}"
    return hold.at, f"by the time limits of {_count(hold.ends, 'running task')}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _shape(entry: Entry) -> str:
    """Return what has to be free at once: ``4 × (2 CPUs, 1 GPU)``."""
    need = entry.need
    parts = [f"{need.cpus_milli / 1000:g} {'CPU' if need.cpus_milli == 1000 else 'CPUs'}"]
    if need.memory_bytes:
        parts.append(f"{need.memory_bytes >> 20} MiB of memory")
    if need.gpus:
        parts.append(f"{need.gpus} {'GPU' if need.gpus == 1 else 'GPUs'}")
    text = ", ".join(parts)
    return f"{entry.count} × ({text})" if entry.gang else text

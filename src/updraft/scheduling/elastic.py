"""How many nodes elastic jobs have: they run with any number between two, and give and take.

A job with ``nodes 2:8`` starts once it can have 2.  What is free goes to the jobs with the fewest
nodes first; a job that waits and fits if others go back towards their least takes from those with
the most.  Each change is a new generation of the job: members leave or join when it says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import heapify, heappop, heappush

from updraft import errors


class Phase(StrEnum):
    """Where a membership stands.  WAITING → FORMING → RUNNING ⇄ CHANGING; any may end."""

    WAITING = "WAITING"
    """It has fewer nodes than its least."""
    FORMING = "FORMING"
    """Its first members are being prepared; none runs before all are."""
    RUNNING = "RUNNING"
    CHANGING = "CHANGING"
    """The members of the next generation are being prepared, or told to leave."""
    ENDED = "ENDED"


MOVES: dict[Phase, frozenset[Phase]] = {
    Phase.WAITING: frozenset({Phase.FORMING, Phase.ENDED}),
    Phase.FORMING: frozenset({Phase.RUNNING, Phase.WAITING, Phase.ENDED}),
    Phase.RUNNING: frozenset({Phase.CHANGING, Phase.WAITING, Phase.ENDED}),
    Phase.CHANGING: frozenset({Phase.RUNNING, Phase.WAITING, Phase.ENDED}),
    Phase.ENDED: frozenset(),
}


@dataclass(frozen=True, slots=True)
class Size:
    """How many nodes a job may have."""

    least: int
    most: int

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise errors.BadRequest(
                f"nodes {self.least}:{self.most} is no range; write the smaller first, from 1: 2:8"
            )


def parse_size(text: str) -> Size:
    """Return a size: ``2:8``, or ``4`` for exactly that.  Raises ``errors.BadRequest``."""
    least, colon, most = text.partition(":")
    if not least.isdecimal() or (colon and not most.isdecimal()):
        raise errors.BadRequest(f"{text!r} is no number of nodes; write it like 4 or 2:8")
    return Size(int(least), int(most or least))


@dataclass(frozen=True, slots=True)
class Elastic:
    """An elastic job, as far as its size is decided."""

    serial: int
    size: Size
    has: int = 0
    """Nodes now; 0 while it waits."""
    generation: int = 0


@dataclass(frozen=True, slots=True)
class Resize:
    """The message that starts a generation: the job has so many nodes from then on.

    Members of older generations, and what they send, are refused from then on.
    """

    serial: int
    generation: int
    before: int
    after: int

    @property
    def grows(self) -> bool:
        """Whether members join; else some leave."""
        return self.after > self.before


def share(free: int, jobs: Sequence[Elastic]) -> list[Resize]:
    """Return how jobs, in their order, change so that ``free`` nodes are used and all may start.

    Never takes a job below its least, never ends one; those that shrink come first.
    """
    after = {job.serial: job.has for job in jobs}
    for job in jobs:
        if job.has:
            continue
        spare = sum(max(after[each.serial] - each.size.least, 0) for each in jobs if each.has)
        if free + spare < job.size.least:
            break  # it keeps its turn
        free -= job.size.least - _shrink(job.size.least - free, jobs, after)
        after[job.serial] = job.size.least
    _grow(free, jobs, after)
    changes = [
        Resize(job.serial, job.generation + 1, job.has, after[job.serial])
        for job in jobs
        if after[job.serial] != job.has
    ]
    return sorted(changes, key=lambda change: change.grows)


def _shrink(short: int, jobs: Iterable[Elastic], after: dict[int, int]) -> int:
    """Take nodes from the jobs that have the most; return how many."""
    taken = 0
    heap = [
        (-after[job.serial], -job.serial, job.size.least)
        for job in jobs
        if job.has and after[job.serial] > job.size.least
    ]
    heapify(heap)
    while taken < short and heap:
        has, serial, least = heappop(heap)
        after[-serial] -= 1
        taken += 1
        if -has - 1 > least:
            heappush(heap, (has + 1, serial, least))
    return taken


def _grow(free: int, jobs: Iterable[Elastic], after: dict[int, int]) -> None:
    """Give nodes to the jobs that have the fewest, while there are some."""
    if any(not after[job.serial] for job in jobs):
        return  # kept for the one that waits
    heap = [
        (after[job.serial], job.serial, job.size.most)
        for job in jobs
        if after[job.serial] < job.size.most
    ]
    heapify(heap)
    while free > 0 and heap:
        has, serial, most = heappop(heap)
        after[serial] += 1
        free -= 1
        if has + 1 < most:
            heappush(heap, (has + 1, serial, most))


def lost(job: Elastic, nodes: int) -> tuple[Elastic, Resize | None]:
    """Return a job that has lost nodes, and its next generation; None: it waits, for its least."""
    left = max(job.has - nodes, 0)
    if left < job.size.least:
        return replace(job, has=0, generation=job.generation + 1), None
    after = replace(job, has=left, generation=job.generation + 1)
    return after, Resize(job.serial, after.generation, job.has, left)

"""What waits in a pool's queue: jobs, whatever number of tasks they have."""

from __future__ import annotations

from dataclasses import dataclass, field

from updraft.model.job import Resources
from updraft.scheduling.capacity import NOTHING
from updraft.scheduling.queue import Party

UNKNOWN = float("inf")
"""A time that no time limit tells."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A job, as far as decisions need it."""

    serial: int
    """Jobs that came earlier have lower ones."""
    party: Party
    need: Resources
    """Of one task."""
    priority: int = 0
    count: int = 1
    """How many tasks it has: 1 of a single job, any number of an array, the ranks of a gang."""
    max_parallel: int | None = None
    """How many of an array's tasks may run at a time; None: as many as there is room for."""
    gang: bool = False
    """Whether all its tasks start at once or none."""
    time_limit_seconds: float | None = None
    """Of one task, from its start; None: it may run for ever."""
    preemptible: bool = False
    """Whether its tasks give way to others, and wait again."""
    beside: bool = False
    """Whether another stage of its pipeline runs, and waits for it: no limit keeps it from that."""

    @property
    def shape(self) -> tuple[float | None, ...]:
        """What it asks for: where it does not fit, none of the same shape does."""
        need, ranks = self.need, self.count if self.gang else 0
        return (need.cpus_milli, need.memory_bytes, need.gpus, self.time_limit_seconds, ranks)

    @property
    def costless(self) -> bool:
        """Whether it delays nobody."""
        return self.need == NOTHING and self.count == 1

    @property
    def order(self) -> tuple[int, int]:
        """Among its party's: higher priority first, then first come."""
        return (-self.priority, self.serial)

    def ends_by(self, start: float) -> float:
        """Return when its time limit ends a task that starts then."""
        limit = self.time_limit_seconds
        return UNKNOWN if limit is None else start + limit


@dataclass(frozen=True, slots=True)
class Preemption:
    """Tasks that are to end at once and wait again, since another job needs their place."""

    serial: int
    node: str
    tasks: int
    """How many of the job's tasks there, the youngest first."""
    by: int
    """The serial of the job that gets the place."""


@dataclass(slots=True, eq=False)
class Queued:
    """An entry while it waits or runs, and what is known of where it does not fit."""

    entry: Entry
    left: int
    """Tasks that wait."""
    running: int = 0
    claimed: int = 0
    """Tasks that wait for others to give way: they have their places."""
    in_line: bool = False
    looked: int = -1
    """How much growth its last look at all nodes had seen; -1: it never looked."""
    behind: bool = False
    """Whether a reservation kept some of them from it."""
    asked: int = -1
    """As ``looked``, of its last look at who could give way."""
    short: int = 1
    """How many tasks had no room then."""
    shape: tuple[float | None, ...] = ()
    """The entry's, taken once."""
    nodes: list[str] = field(default_factory=list)
    """Where the ranks of a gang run."""

    @property
    def ready(self) -> bool:
        """Whether more of its tasks may start as far as it goes itself."""
        return self.room > 0

    @property
    def room(self) -> int:
        """How many of its tasks may start as far as it goes itself; a gang's: all or none."""
        entry = self.entry
        if entry.gang:
            return self.left if self.left == entry.count else 0
        if entry.max_parallel is None:
            return self.left
        return min(self.left, entry.max_parallel - self.running - self.claimed)

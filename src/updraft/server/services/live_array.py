"""What the server holds in memory of an array: its queued tasks as ranges, its crews, what runs."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from updraft.model.dependencies import Edge
from updraft.model.job import Resources
from updraft.model.ranges import Ranges
from updraft.model.states import State

if TYPE_CHECKING:
    from updraft.server.services.live import LiveJob

_AHEAD_SECONDS = 0.25
"""How much work a crew has ahead: enough to never wait, little enough to soon give way."""

_MOST_AHEAD = 512

_SMOOTHING = 0.1


@dataclass(slots=True, eq=False)
class LiveTask:
    """A task of an array that has a grant."""

    serial: int
    """Its attempt's."""
    index: int
    number: int
    crew: LiveCrew = field(repr=False)
    granted_ns: int
    tried: int = 0
    """How many attempts before this one count: those that were recalled do not."""
    started_ns: int | None = None
    pid: int | None = None
    stored: bool = False
    """Whether its grant is in the database; before that no runner hears of it."""
    start_stored: bool = False
    cancelled: bool = False

    def within(self, at_ns: int, now_ns: int) -> int:
        """Return a runner's time as one that can be: since the grant, and not to come."""
        return min(max(at_ns, self.granted_ns), now_ns)


@dataclass(slots=True, eq=False)
class LiveCrew:
    """The tasks of one array on one runner."""

    serial: int
    job: LiveJob = field(repr=False)
    runner: str
    slot: Resources
    """What each of its tasks takes of the runner."""
    gpus: tuple[str, ...] = ()
    """A crew with GPUs has one slot."""
    width: int = 0
    """How many slots it has, each of which holds its part of the runner."""
    tasks: dict[int, LiveTask] = field(default_factory=dict)
    """By their attempts' serials, in the order of their grants."""
    keeper: str = ""
    """Whom it was sent to; empty: nobody, or by an earlier server."""
    told_width: int = 0
    """What its runner was told last."""
    expects: int = 0
    """How many tasks are taken back from other crews for it, for a moment."""

    @property
    def has(self) -> Resources:
        """What its tasks may use, and lend to jobs that they wait for."""
        slot, width = self.slot, self.width
        return Resources(slot.cpus_milli * width, slot.memory_bytes * width, slot.gpus * width)


@dataclass(frozen=True, slots=True)
class Retried:
    """An ended task that is to be queued anew."""

    attempt: int
    """The serial of its last attempt."""
    number: int
    stored: asyncio.Future[None]


@dataclass(slots=True, eq=False)
class LiveArray:
    """An array that has not ended."""

    count: int
    """Of its indices; some may not be asked for."""
    total: int
    """How many tasks it has."""
    max_parallel: int | None
    queued: Ranges
    ok: int = 0
    ended: int = 0
    not_ok: Counter[State] = field(default_factory=Counter)
    worst: tuple[int, int | None] | None = None
    """The lowest task that is not ok, and its exit code."""
    tries: dict[int, tuple[int, int]] = field(default_factory=dict)
    """Of tasks that are tried again: their last attempt's number, and how many count as retries."""
    later: set[int] = field(default_factory=set)
    """Queued tasks whose next attempt is not due yet."""
    ready: Ranges | None = None
    """Queued tasks that may run, where they wait for others' tasks one by one; None: all may."""
    pairs: dict[Edge, Ranges] = field(default_factory=dict)
    """Which of its tasks each pairing still holds back."""
    doomed: dict[str, Ranges] = field(default_factory=dict)
    """Queued tasks that cannot run any more and are to end, by why."""
    crews: dict[int, LiveCrew] = field(default_factory=dict)
    tasks: dict[int, LiveTask] = field(default_factory=dict)
    """Those with a grant, by their attempts' serials."""
    said: list[tuple[LiveTask, dict[str, Any]]] = field(default_factory=list)
    """Starts (nothing) and ends that are to be stored."""
    withdrawn: list[tuple[int, asyncio.Future[None]]] = field(default_factory=list)
    """Tasks that are to end before they start, and who waits for that to be stored."""
    retrying: dict[int, Retried] = field(default_factory=dict)
    """Ended tasks that are to be queued anew, by their indices."""
    pumping: bool = False
    seconds: float = 0.0
    """How long its tasks take, about; 0: not known yet."""

    @property
    def slots(self) -> int:
        """How many slots its crews have."""
        return sum(crew.width for crew in self.crews.values())

    @property
    def wants(self) -> int:
        """How many more slots it could use now."""
        due = self.queued if self.ready is None else self.ready
        most = len(due) - len(self.later)
        # What a crew has ahead could run at once elsewhere.
        most += sum(max(len(crew.tasks) - crew.width, 0) for crew in self.crews.values())
        if self.max_parallel is not None:
            most = min(most, self.max_parallel - self.slots)
        return max(most, 0)

    @property
    def over(self) -> bool:
        """Whether all its tasks have ended."""
        return self.ended == self.total

    def running(self) -> int:
        """Return how many tasks run, as far as is known."""
        return sum(1 for task in self.tasks.values() if task.started_ns is not None)

    def number_of(self, index: int) -> int | None:
        """Return the number of a task's attempt that has a grant, None when none has."""
        return next((each.number for each in self.tasks.values() if each.index == index), None)

    def waits(self, index: int) -> bool:
        """Whether a task waits for its (next) attempt."""
        return index in self.queued or index in self.retrying

    def crew_on(self, runner: str) -> LiveCrew | None:
        """Return the crew on a runner that more slots can be given to."""
        for crew in self.crews.values():
            if crew.runner == runner and not crew.gpus:
                return crew
        return None

    def took(self, seconds: float) -> None:
        """A task took so long."""
        if self.seconds:
            seconds = self.seconds + _SMOOTHING * (seconds - self.seconds)
        self.seconds = max(seconds, 1e-4)

    def lacking(self, crew: LiveCrew) -> int:
        """Return how many tasks a crew lacks to have none of its slots wait."""
        ahead = 0
        if self.seconds:
            ahead = min(int(crew.width * _AHEAD_SECONDS / self.seconds), _MOST_AHEAD)
            # At the end everybody gets a share: none is to wait for another's.
            ahead = min(ahead, len(self.queued) // max(len(self.crews), 1))
        return max(crew.width + ahead - len(crew.tasks), 0)

    def take(self, most: int) -> list[int]:
        """Take up to ``most`` indices of tasks that may start now out of the queue."""
        due = self.queued if self.ready is None else self.ready
        if self.later:
            taken = [index for index, _ in zip(self._due(due), range(most), strict=False)]
            for index in taken:
                due.discard(index)
        else:
            taken = due.take(most)
        if self.ready is not None:
            for index in taken:
                self.queued.discard(index)
        return taken

    def _due(self, those: Ranges) -> Iterator[int]:
        return (index for index in list(those) if index not in self.later)

    def queue_again(self, index: int) -> None:
        """A task waits for its next attempt; what it had to wait for before, it need not again."""
        self.queued.add(index)
        if self.ready is not None:
            self.ready.add(index)

    def withdraw(self, index: int) -> None:
        """A queued task is to have no attempt any more."""
        self.queued.discard(index)
        self.later.discard(index)
        for held in (self.ready, *self.pairs.values(), *self.doomed.values()):
            if held is not None:
                held.discard(index)

    def ended_with(self, index: int, state: State, exit_code: int | None) -> None:
        """A task came to its end."""
        self.ended += 1
        if state is State.SUCCESS and exit_code == 0:
            self.ok += 1
            return
        self.not_ok[state] += 1
        if self.worst is None or index < self.worst[0]:
            self.worst = (index, exit_code)

    def take_back(
        self,
        index: int,
        state: State,
        exit_code: int | None,
        next_worst: tuple[int, int | None] | None,
    ) -> None:
        """A task that ended so has not ended any more; ``next_worst``: of those above it."""
        self.ended -= 1
        if state is State.SUCCESS and exit_code == 0:
            self.ok -= 1
            return
        self.not_ok[state] -= 1
        if self.worst is not None and self.worst[0] == index:
            self.worst = next_worst

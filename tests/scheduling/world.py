"""A pool on virtual time, whose every decision is checked against a plain account of what is free.

Jobs run as long as they are told to, at most to their time limit.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import count

from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import Entry, Preemption
from updraft.scheduling.queue import Grant, Headroom, Headrooms, Party
from updraft.scheduling.scheduler import PoolScheduler
from updraft.scheduling.shares import Fairness


@dataclass(frozen=True)
class Job:
    """A job that comes at a time, and whose tasks take a time."""

    entry: Entry
    comes: float
    takes: float


@dataclass
class World:
    """Nodes, jobs, and a scheduler between them."""

    nodes: list[Node]
    limits: dict[Party | str, Headroom] = field(default_factory=dict)
    fairness: Fairness = field(default_factory=Fairness)
    settles: bool = False
    """Whether every reservation is found at once, and not only when somebody might use it."""

    def __post_init__(self) -> None:
        self.scheduler = PoolScheduler(self.fairness)
        self.now = 0.0
        self.free = {node.name: node.free for node in self.nodes}
        self.jobs: dict[int, Job] = {}
        self.starts: dict[int, list[float]] = {}
        self.waiting: Counter[int] = Counter()
        self.running: dict[int, tuple[Grant, float]] = {}  # by a number of their own
        self.preempted: list[Preemption] = []
        self.first_held: int | None = None
        self.reserved: dict[int, list[tuple[float, float]]] = {}
        # When who was given which time to start by.
        self._numbers = count()
        self._events: list[tuple[float, int, Job | int]] = []
        self._stopping: list[int] = []
        for node in self.nodes:
            self.scheduler.put_node(node, 0.0)

    def run(self, jobs: list[Job], until: float = float("inf")) -> None:
        """Let the jobs come, and all that starts end."""
        for job in jobs:
            self._push(job.comes, job)
        while self._events and self._events[0][0] <= until:
            self.now = self._events[0][0]
            while self._events and self._events[0][0] == self.now:
                self._happen(heapq.heappop(self._events)[2])
            self.decide()

    def decide(self) -> None:
        """Ask what starts, and check it; whoever is to give way ends at once."""
        while True:
            left = {key: replace(limit) for key, limit in self._left().items()}
            decisions = self.scheduler.decide(self.now, left)
            self._check(decisions)
            hold = self.scheduler.hold
            if hold is not None and self.first_held is None:
                self.first_held = hold.queued.entry.serial
            if hold is not None and self.settles:
                hold.settle(self.scheduler.nodes, self.now)
            if hold is not None and hold.settled and hold.parts:
                serial = hold.queued.entry.serial
                self.reserved.setdefault(serial, []).append((self.now, hold.at))
            if not self._stopping:
                check_index(self.scheduler)
                return
            for number in self._stopping:
                self._end(number, again=True)
            self._stopping.clear()

    def _push(self, moment: float, what: Job | int) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), what))

    def _happen(self, what: Job | int) -> None:
        if isinstance(what, Job):
            self.jobs[what.entry.serial] = what
            self.waiting[what.entry.serial] = what.entry.count
            self.scheduler.submit(what.entry, self.now)
        elif what in self.running:
            self._end(what)

    def _end(self, number: int, *, again: bool = False) -> None:
        grant, _ = self.running.pop(number)
        if again:
            self.waiting[grant.serial] += grant.tasks
        free = self.free[grant.node]
        for _ in range(grant.tasks):
            free = free.give_back(grant.need, ())
        self.free[grant.node] = replace(free, gpus=free.gpus | set(grant.gpus))
        self.scheduler.ended(grant, self.now, again=again)

    def _left(self) -> Headrooms:
        left = {key: replace(limit) for key, limit in self.limits.items()}
        for grant, _ in self.running.values():
            party = self.jobs[grant.serial].entry.party
            for key in (party, party.project):
                if key in left:
                    left[key].take(grant.need, grant.tasks)
        return left

    def _check(self, decisions: list[Grant | Preemption]) -> None:
        ranks: Counter[int] = Counter()
        for decision in decisions:
            if isinstance(decision, Preemption):
                self._give_way(decision)
                continue
            entry = self.jobs[decision.serial].entry
            node = next(each for each in self.nodes if each.name == decision.node)
            assert node.takes(entry.party.owner)
            assert decision.tasks >= 1
            assert decision.need == entry.need
            free = self.free[decision.node]
            for at in range(decision.tasks):
                assert free.fits(replace(entry.need, gpus=0))
                each = entry.need.gpus
                gpus = decision.gpus[at * each : (at + 1) * each]
                assert len(set(gpus)) == each
                assert set(gpus) <= free.gpus
                free = free.without(entry.need, gpus)
            assert len(decision.gpus) == entry.need.gpus * decision.tasks
            self.free[decision.node] = free
            self.waiting[decision.serial] -= decision.tasks
            assert self.waiting[decision.serial] >= 0
            if entry.gang:
                ranks[decision.serial] += decision.tasks
            self._start(decision)
        for serial, started in ranks.items():
            assert started == self.jobs[serial].entry.count, "a gang starts all its ranks or none"
            names = {grant.node for grant, _ in self.running.values() if grant.serial == serial}
            networks = {node.peer_network for node in self.nodes if node.name in names}
            assert len(names) == 1 or (len(networks) == 1 and "" not in networks)
        for serial, job in self.jobs.items():
            if job.entry.max_parallel is not None:
                together = sum(g.tasks for g, _ in self.running.values() if g.serial == serial)
                assert together <= job.entry.max_parallel
        for limit in self._left().values():
            for left in (limit.tasks, limit.cpus_milli, limit.memory_bytes, limit.gpus):
                assert left is None or left >= 0

    def _start(self, grant: Grant) -> None:
        job = self.jobs[grant.serial]
        self.starts.setdefault(grant.serial, []).extend([self.now] * grant.tasks)
        parts = [grant] if job.entry.gang else _one_by_one(grant)
        for part in parts:
            number = next(self._numbers)
            self.running[number] = (part, self.now)
            limit = job.entry.time_limit_seconds
            takes = job.takes if limit is None else min(job.takes, limit)
            self._push(self.now + takes, number)

    def _give_way(self, preemption: Preemption) -> None:
        self.preempted.append(preemption)
        entry, by = self.jobs[preemption.serial].entry, self.jobs[preemption.by].entry
        assert entry.preemptible
        assert not by.preemptible or by.priority > entry.priority
        there = [
            number
            for number, (grant, _) in self.running.items()
            if (grant.serial, grant.node) == (preemption.serial, preemption.node)
            and number not in self._stopping
        ]
        there.sort(key=lambda number: (-self.running[number][1], -number))
        chosen: list[int] = []
        while sum(self.running[number][0].tasks for number in chosen) < preemption.tasks:
            chosen.append(there.pop(0))
        self._stopping += chosen


def _one_by_one(grant: Grant) -> list[Grant]:
    each = grant.need.gpus
    return [
        replace(grant, tasks=1, gpus=grant.gpus[at * each : (at + 1) * each])
        for at in range(grant.tasks)
    ]


def check_index(scheduler: PoolScheduler) -> None:
    """Compare what the scheduler keeps with what it would be if it were counted anew."""
    nodes = scheduler.nodes
    assert len(scheduler.claims) == 0
    keys = []
    for host in nodes.hosts.values():
        cpus_milli, memory_bytes, gpus = (
            host.total.cpus_milli, host.total.memory_bytes, len(host.total.gpus)
        )  # fmt: skip
        for held in host.held.values():
            need = held.queued.entry.need
            assert held.tasks == sum(tasks for _, tasks in held.runs) > 0
            cpus_milli -= need.cpus_milli * held.tasks
            memory_bytes -= need.memory_bytes * held.tasks
            gpus -= need.gpus * held.tasks
        assert host.amounts == (cpus_milli, memory_bytes, gpus)
        drained = max((held.ends_by for held in host.held.values()), default=float("-inf"))
        assert host.drained == drained
        if host.open:
            keys.append((host.serves, gpus, max(cpus_milli, 0), max(memory_bytes, 0), host.name))
    found = [
        (owner, gpus, *key)
        for owner, lines in nodes._free.items()
        for gpus, line in enumerate(lines)
        for key in line
    ]
    assert sorted(found, key=str) == sorted(keys, key=str)
    for lines in nodes._free.values():
        assert all(line == sorted(line) for line in lines)
    for kind in nodes.kinds.values():
        assert kind.drains == sorted(kind.drains)
        for drained, name in kind.drains:
            assert nodes.hosts[name].drained == drained
    running: Counter[int] = Counter()
    for host in nodes.hosts.values():
        for serial, held in host.held.items():
            running[serial] += held.tasks
    for serial, queued in scheduler.entries.items():
        assert queued.running == running[serial]
        assert queued.running + queued.left > 0
        assert queued.in_line == (queued.ready and not queued.entry.costless)
    order = [line.key for line in scheduler.lines]
    assert order == sorted(key for key in order if key is not None)
    for line in scheduler.lines:
        orders = [queued.entry.order for queued in line.items]
        assert orders == sorted(orders)
        assert orders


def capacity(cpus: int, memory_bytes: int = 1 << 30, gpus: int = 0, name: str = "g") -> Capacity:
    """Return a capacity of whole CPUs."""
    return Capacity(cpus * 1000, memory_bytes, frozenset(f"{name}{at}" for at in range(gpus)))

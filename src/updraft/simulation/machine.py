"""A virtual machine room: jobs of a trace come, a policy decides, tasks run and end.

Time is virtual.  Only the CPU time of decisions is read from a clock, and told apart.  Runners do
not fail, launching takes no time, and what gives way ends at once and loses what it did.
"""

from __future__ import annotations

import heapq
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from updraft import errors
from updraft.model.job import Resources
from updraft.scheduling.capacity import Capacity, Node
from updraft.scheduling.entries import Entry, Preemption
from updraft.scheduling.lines import REFRESH_SECONDS
from updraft.scheduling.queue import Grant, Party
from updraft.scheduling.shares import Fairness
from updraft.simulation.generator import Machines
from updraft.simulation.metrics import Metrics
from updraft.simulation.trace import TraceJob

Sample = tuple[float, float, float, int]


class Policy(Protocol):
    """What decides; ``PoolScheduler`` is one."""

    def submit(self, entry: Entry, now: float) -> None:
        """A job waits."""

    def put_node(self, node: Node, now: float) -> None:
        """A node takes tasks."""

    def ended(self, grant: Grant, now: float, *, again: bool = False) -> None:
        """Tasks have ended."""

    def decide(self, now: float) -> Sequence[Grant | Preemption]:
        """Return what starts now, and what gives way."""


@dataclass(slots=True)
class Result:
    """What a run was like."""

    metrics: Metrics
    machines: Machines
    jobs: int
    tasks: int
    events: int = 0
    preempted: int = 0
    end_s: float = 0.0
    cpu_utilisation: float = 0.0
    gpu_utilisation: float = 0.0
    longest_gap_s: float = 0.0
    gap_bound_s: float | None = None
    """What the longest gap is at most (docs/scheduling.md); None: where there is no bound, since
    some job has no time limit, has a priority, or gives way."""
    decision_seconds: array[float] | None = None
    """The CPU time of each decision, with the events that it followed."""
    busy: list[Sample] | None = None
    """By time: the share of CPUs in use, of GPUs in use, and how many tasks wait."""


@dataclass(slots=True, eq=False)
class _Run:
    """What one grant started."""

    grant: Grant
    job: int
    start: float
    over: bool = False


_SAMPLES = 400


class Machine:
    """One run of a trace under a policy."""

    def __init__(self, jobs: Sequence[TraceJob], machines: Machines, policy: Policy) -> None:
        self._jobs = jobs
        self._patience_s = Fairness().patience_seconds
        self._machines = machines
        self._policy = policy
        self._metrics = Metrics()
        self._ends: list[tuple[float, int, _Run]] = []
        self._number = 0
        self._preemptible: dict[tuple[int, str], list[_Run]] = {}
        self._left = [job.tasks for job in jobs]
        self._waits: dict[Party, int] = {}
        self._since: dict[Party, float] = {}
        self._used = [0, 0]
        self._spent = [0.0, 0.0]
        self._waiting = 0
        self._now = 0.0
        self._last = jobs[-1].submit_s
        self._parties = [Party(job.project, job.user) for job in jobs]
        self._result = Result(self._metrics, machines, len(jobs), sum(j.tasks for j in jobs))

    def run(self) -> Result:
        """Run to the end of the last task.

        Raises ``errors.BadRequest`` for a job that never fits.
        """
        self._check()
        for number in range(self._machines.runners):
            self._policy.put_node(self._node(number), 0.0)
        result, jobs = self._result, self._jobs
        took: array[float] = array("d")
        busy: list[Sample] = []
        first = jobs[0].submit_s
        step = max(self._last - first, 1.0) / _SAMPLES
        due, at = first, 0
        while at < len(jobs) or self._ends:
            comes = jobs[at].submit_s if at < len(jobs) else float("inf")
            ends = self._ends[0][0] if self._ends else float("inf")
            self._advance(min(comes, ends))
            now = self._now
            began = time.thread_time()
            while self._ends and self._ends[0][0] <= now:
                self._end(heapq.heappop(self._ends)[2])
                result.events += 1
            while at < len(jobs) and jobs[at].submit_s <= now:
                self._submit(at)
                result.events += 1
                at += 1
            self._decide()
            took.append(time.thread_time() - began)
            if now >= due and now <= self._last:
                busy.append((now, *self._shares(), self._waiting))
                due = now + step
        result.decision_seconds, result.busy, result.end_s = took, busy, self._now
        self._sum_up(first)
        return result

    def _sum_up(self, first: float) -> None:
        result, machines = self._result, self._machines
        window = max(self._last - first, 1e-9) * machines.runners
        result.cpu_utilisation = self._spent[0] / (window * machines.cpus * 1000)
        result.gpu_utilisation = self._spent[1] / (window * max(machines.gpus, 1))
        limits = [job.time_limit_s for job in self._jobs]
        if None not in limits and not any(job.priority or job.preemptible for job in self._jobs):
            users = len(set(self._parties))
            longest = max(limit for limit in limits if limit is not None)
            result.gap_bound_s = self._patience_s + REFRESH_SECONDS + (users + 1) * longest

    def _shares(self) -> tuple[float, float]:
        machines = self._machines
        cpus = self._used[0] / (machines.cpus * 1000 * machines.runners)
        return cpus, self._used[1] / (max(machines.gpus, 1) * machines.runners)

    def _advance(self, now: float) -> None:
        passed = min(now, self._last) - min(self._now, self._last)
        self._spent[0] += self._used[0] * passed
        self._spent[1] += self._used[1] * passed
        self._now = now

    # -- what happens

    def _submit(self, at: int) -> None:
        job, party = self._jobs[at], self._parties[at]
        self._wait(party, job.tasks)
        self._policy.submit(entry_of(at, job), self._now)

    def _wait(self, party: Party, tasks: int) -> None:
        if not self._waits.get(party):
            self._since[party] = self._now
        self._waits[party] = self._waits.get(party, 0) + tasks
        self._waiting += tasks

    def _decide(self) -> None:
        while True:
            again = False
            for decision in self._policy.decide(self._now):
                if isinstance(decision, Preemption):
                    self._give_way(decision)
                    again = True
                else:
                    self._start(decision)
            if not again:
                return

    def _start(self, grant: Grant) -> None:
        job, now, tasks = self._jobs[grant.serial], self._now, grant.tasks
        party = self._parties[grant.serial]
        gap = now - self._since[party]
        if gap > self._result.longest_gap_s:
            self._result.longest_gap_s = gap
        self._since[party] = now
        self._waits[party] -= tasks
        self._waiting -= tasks
        self._used[0] += grant.need.cpus_milli * tasks
        self._used[1] += grant.need.gpus * tasks
        run = _Run(grant, grant.serial, now)
        if job.preemptible:
            self._preemptible.setdefault((grant.serial, grant.node), []).append(run)
        self._number += 1
        heapq.heappush(self._ends, (now + _runs_for(job), self._number, run))

    def _end(self, run: _Run) -> None:
        if run.over:
            return
        grant, job, tasks = run.grant, self._jobs[run.job], run.grant.tasks
        self._release(run)
        self._policy.ended(grant, self._now)
        self._left[run.job] -= tasks
        kind = "gang" if job.gang else "array" if job.tasks > 1 else "single"
        count = tasks
        if job.gang:
            count = 0 if self._left[run.job] else 1
        if count:
            wait = run.start - job.submit_s
            self._metrics.ended(run.job, job.user, kind, (count, wait, _runs_for(job)))

    def _release(self, run: _Run) -> None:
        grant, tasks = run.grant, run.grant.tasks
        self._used[0] -= grant.need.cpus_milli * tasks
        self._used[1] -= grant.need.gpus * tasks
        key = (grant.serial, grant.node)
        if self._jobs[run.job].preemptible:
            runs = self._preemptible[key]
            runs.remove(run)
            if not runs:
                del self._preemptible[key]

    def _give_way(self, preemption: Preemption) -> None:
        left = preemption.tasks
        self._result.preempted += left
        while left:
            run = self._preemptible[preemption.serial, preemption.node][-1]
            grant, tasks = run.grant, min(left, run.grant.tasks)
            left -= tasks
            keeps = grant.tasks - tasks
            gpus = grant.gpus[keeps * grant.need.gpus :]
            stopped = replace(grant, tasks=tasks, gpus=gpus)
            if keeps:
                run.grant = replace(
                    grant, tasks=keeps, gpus=grant.gpus[: len(grant.gpus) - len(gpus)]
                )
                self._used[0] -= grant.need.cpus_milli * tasks
                self._used[1] -= grant.need.gpus * tasks
            else:
                self._release(run)
                run.over = True
            self._wait(self._parties[run.job], tasks)
            self._policy.ended(stopped, self._now, again=True)

    # -- at the beginning

    def _node(self, number: int) -> Node:
        machines = self._machines
        gpus = frozenset(f"gpu{at}" for at in range(machines.gpus))
        free = Capacity(machines.cpus * 1000, machines.memory_bytes, gpus)
        return Node(f"n{number:05}", free, peer_network="net")

    def _check(self) -> None:
        """Refuse what would wait for ever."""
        machines = self._machines
        free = self._node(0).free
        for number, job in enumerate(self._jobs, 1):
            need = entry_of(number, job).need
            room = machines.runners if job.gang else 1
            each = 1
            while each < job.tasks and free.fits(_times(need, each + 1)):
                each += 1
            if not free.fits(need) or (job.gang and room * each < job.tasks):
                raise errors.BadRequest(
                    f"job {number} by time (user {job.user}, submit_s {job.submit_s:g}) never fits "
                    f"on {machines.runners} runners with {machines.cpus} CPUs, "
                    f"{machines.memory_bytes >> 30} GiB and {machines.gpus} GPUs; raise --runners, "
                    "--cpus, --memory or --gpus"
                )


def entry_of(serial: int, job: TraceJob) -> Entry:
    """Return a row of a trace as the scheduler knows jobs."""
    return Entry(
        serial=serial,
        party=Party(job.project, job.user),
        need=Resources(round(job.cpus * 1000), job.memory_bytes, job.gpus),
        priority=job.priority,
        count=job.tasks,
        gang=job.gang,
        time_limit_seconds=job.time_limit_s,
        preemptible=job.preemptible,
    )


def _runs_for(job: TraceJob) -> float:
    return job.duration_s if job.time_limit_s is None else min(job.duration_s, job.time_limit_s)


def _times(need: Resources, tasks: int) -> Resources:
    return Resources(need.cpus_milli * tasks, need.memory_bytes * tasks, need.gpus * tasks)

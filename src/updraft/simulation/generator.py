"""A made-up trace of a cluster for machine learning, with the tails that real ones have.

Shapes, not measurements: log-normal durations with a Pareto tail, Poisson arrivals by day and week,
users by Zipf's law, gangs of powers of two, arrays with Pareto counts, and time limits that are
rounded up from over-estimates (Mu'alem and Feitelson, 2001; Jeon et al., ATC 2019).  The same seed
is the same trace.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from random import Random

from updraft.simulation.trace import TraceJob

GIB = 1 << 30
_LIMITS = (300, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400, 172800, 345600)
_LONGEST = 172800.0
_DAY = 86400.0
_WEEK = 7 * _DAY


@dataclass(frozen=True, slots=True)
class Machines:
    """A pool's runners, which are all alike."""

    runners: int = 200
    cpus: int = 64
    memory_bytes: int = 512 * GIB
    gpus: int = 8


def generate(
    seed: int, tasks: int = 100_000, machines: Machines | None = None, load: float = 0.95
) -> list[TraceJob]:
    """Return jobs with so many tasks that ask for ``load`` of the machines while they come."""
    machines = machines or Machines()
    dice = Random(seed)  # noqa: S311 - a trace, not a secret
    jobs = list(_jobs(dice, tasks, machines))
    work = [0.0, 0.0]
    for job in jobs:
        work[0] += job.cpus * job.tasks * job.duration_s / machines.cpus
        work[1] += job.gpus * job.tasks * job.duration_s / max(machines.gpus, 1)
    span = max(work) / machines.runners / load
    moments = sorted(_moments(dice, len(jobs), span))
    dice.shuffle(jobs)
    return [
        replace(job, submit_s=round(moment, 3)) for job, moment in zip(jobs, moments, strict=True)
    ]


def _jobs(dice: Random, tasks: int, machines: Machines) -> Iterator[TraceJob]:
    users = min(20 + tasks // 2000, 400)
    weights = list(accumulate(1 / rank**1.1 for rank in range(1, users + 1)))
    left = tasks
    while left > 0:
        rank = bisect_left(weights, dice.random() * weights[-1])
        job = _one(dice, left, tasks, machines)
        left -= job.tasks
        yield replace(job, user=f"user{rank:03}", project=f"project{rank % 12:02}")


def _one(dice: Random, left: int, tasks: int, machines: Machines) -> TraceJob:
    """Return a job with at most ``left`` tasks."""
    kind = dice.choices(("single", "array", "gang"), (0.68, 0.22, 0.10))[0]
    duration = _duration(dice)
    gpus = dice.choices((0, 1, 2, 4, 8), (0.4, 0.38, 0.09, 0.07, 0.06))[0]
    count = 1
    if kind == "array" and left > 1:
        count = min(int(2 * dice.paretovariate(0.8)), max(tasks // 50, 2), left)
        gpus = dice.choices((0, 1), (0.7, 0.3))[0]
        duration = min(duration, 14400.0)
    elif kind == "gang" and left > 1:
        most = max(int(math.log2(max(machines.runners // 4, 2))), 1)
        count = 1 << min(1 + int(dice.expovariate(0.9)), most, int(math.log2(left)))
        gpus = dice.choices((1, 4, 8), (0.2, 0.3, 0.5))[0]
    gpus = min(gpus, machines.gpus)
    cpus = (
        gpus * dice.choice((4, 6, 8))
        if gpus
        else dice.choices((1, 2, 4, 8, 16), (4, 2, 2, 1, 1))[0]
    )
    share = min(cpus, machines.cpus) / machines.cpus
    memory = int(machines.memory_bytes * share * dice.choice((0.25, 0.5, 0.75, 1.0)))
    return TraceJob(
        submit_s=0.0,
        user="",
        duration_s=round(duration, 3),
        cpus=float(min(cpus, machines.cpus)),
        memory_bytes=memory >> 20 << 20,
        gpus=gpus,
        time_limit_s=_limit(dice, duration),
        tasks=count,
        gang=kind == "gang" and count > 1,
    )


def _duration(dice: Random) -> float:
    if dice.random() < 0.08:
        return min(3600.0 * dice.paretovariate(1.1), _LONGEST)
    return min(max(dice.lognormvariate(math.log(400), 1.7), 1.0), _LONGEST)


def _limit(dice: Random, duration: float) -> float | None:
    """Return a time limit as people give them: too long, and round; some give none."""
    if dice.random() < 0.02:
        return None
    guess = duration * (1 + dice.lognormvariate(0.5, 1.0))
    return float(next((limit for limit in _LIMITS if limit >= guess), _LIMITS[-1]))


def _moments(dice: Random, count: int, span: float) -> Iterator[float]:
    """Yield when jobs come: by thinning, more by day than at night and at weekends."""
    while count:
        moment = dice.random() * span
        day = 1 + 0.7 * math.sin(2 * math.pi * (moment % _DAY) / _DAY)
        weekend = 0.6 if moment % _WEEK > 5 * _DAY else 1.0
        if dice.random() * 1.7 < day * weekend:
            yield moment
            count -= 1

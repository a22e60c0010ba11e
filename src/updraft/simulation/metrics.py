"""What is measured of a simulated pool, with the definitions.

- The *bounded slowdown* of a task is its time from submission to end over its run time, both of at
  least 10 s, and at least 1 (Feitelson et al., 1997).  The mean is over tasks: each task of an
  array counts, a gang counts once.  ``by job`` is the mean over jobs of their tasks' mean.
- A user's *service* is the mean over their tasks of 1 / bounded slowdown: 1 when they never wait.
  *Jain's fairness* is (Σx)² / (n Σx²) over all users' services.
- *Utilisation* is the share of the pool's CPUs and GPUs in use from the first submission to the
  last, so that neither the end, when less and less waits, nor an idle pool before counts.
- The *longest gap* is the longest time in which something of a user's waited and nothing of theirs
  started.
"""

from __future__ import annotations

from dataclasses import dataclass, field

BOUND_SECONDS = 10.0


@dataclass(slots=True)
class Waits:
    """The waits of the tasks of one class; each of a gang's counts once."""

    tasks: int = 0
    total_seconds: float = 0.0
    longest_seconds: float = 0.0
    samples: list[tuple[float, int]] = field(default_factory=list)
    """Waits, and of how many tasks."""

    def add(self, wait: float, tasks: int) -> None:
        """So many tasks have waited so long."""
        self.tasks += tasks
        self.total_seconds += wait * tasks
        self.longest_seconds = max(self.longest_seconds, wait)
        self.samples.append((wait, tasks))

    @property
    def mean_seconds(self) -> float:
        """Return the mean over tasks."""
        return self.total_seconds / self.tasks if self.tasks else 0.0

    def quantile(self, part: float) -> float:
        """Return the wait that ``part`` of the tasks do not exceed."""
        self.samples.sort()
        left = part * self.tasks
        for wait, tasks in self.samples:
            left -= tasks
            if left <= 0:
                return wait
        return self.longest_seconds


@dataclass(slots=True)
class _Sum:
    slowdowns: float = 0.0
    services: float = 0.0
    tasks: int = 0


def bounded_slowdown(wait: float, run: float) -> float:
    """Return how much longer a task took than it had to."""
    return max((wait + run) / max(run, BOUND_SECONDS), 1.0)


def jain(values: list[float]) -> float:
    """Return Jain's index: 1 when all are equal, 1/n when one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


class Metrics:
    """Collects what tasks did."""

    def __init__(self) -> None:
        self.waits: dict[str, Waits] = {}
        self._jobs: dict[int, _Sum] = {}
        self._users: dict[str, _Sum] = {}

    def ended(self, job: int, user: str, kind: str, tasks: tuple[int, float, float]) -> None:
        """So many tasks have ended: how many, how long they waited, how long they ran."""
        count, wait, run = tasks
        slowdown = bounded_slowdown(wait, run)
        self.waits.setdefault(kind, Waits()).add(wait, count)
        for each in (self._jobs.setdefault(job, _Sum()), self._users.setdefault(user, _Sum())):
            each.slowdowns += slowdown * count
            each.services += count / slowdown
            each.tasks += count

    @property
    def mean_bounded_slowdown(self) -> float:
        """Return the mean over tasks."""
        tasks = sum(each.tasks for each in self._users.values())
        return sum(each.slowdowns for each in self._users.values()) / tasks if tasks else 0.0

    @property
    def mean_bounded_slowdown_by_job(self) -> float:
        """Return the mean over jobs."""
        found = [each.slowdowns / each.tasks for each in self._jobs.values()]
        return sum(found) / len(found) if found else 0.0

    @property
    def fairness(self) -> float:
        """Return Jain's index of the users' services."""
        return jain([each.services / each.tasks for each in self._users.values()])

"""What running jobs hold together, by project, by user in a project, and by pool.

Kept as attempts are granted and end, so that limits cost the same however many jobs there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

from updraft.model.job import Resources
from updraft.model.limits import NO_LIMITS, Limits, Usage, reached
from updraft.scheduling.queue import Headroom, Party
from updraft.scheduling.reasons import limit_reached

LimitsOf = Callable[[str, str], tuple[Limits, Limits]]
"""A project's limits, and those of a user in it."""


def no_limits(_project: str, _owner: str) -> tuple[Limits, Limits]:
    """Say that there are none."""
    return NO_LIMITS, NO_LIMITS


class Holdings:
    """Counts what is held; ``limits_of`` says how much may be."""

    def __init__(self) -> None:
        self.limits_of: LimitsOf = no_limits
        self._used: dict[Party | str, Usage] = {}
        self._running: Counter[tuple[str, str]] = Counter()

    def take(self, party: Party, pool: str, need: Resources) -> None:
        """A job of the party's has its grant in a pool."""
        self._running[pool, party.project] += 1
        for key in (party.project, party):
            self._used[key] = self.used(key).plus(need)

    def give_back(self, party: Party, pool: str, need: Resources) -> None:
        """Its attempt is over."""
        self._running[pool, party.project] -= 1
        if not self._running[pool, party.project]:
            del self._running[pool, party.project]
        for key in (party.project, party):
            left = self.used(key).minus(need)
            if left.running_jobs:
                self._used[key] = left
            else:
                self._used.pop(key, None)

    def used(self, key: Party | str) -> Usage:
        """Return what a project, or a user in it, has now."""
        return self._used.get(key, Usage())

    def running_in(self, pool: str, project: str | None = None) -> int:
        """Return how many jobs have a grant in a pool, of one project or of all."""
        if project is not None:
            return self._running[pool, project]
        return sum(count for (name, _), count in self._running.items() if name == pool)

    def headrooms(self, parties: Iterable[Party]) -> dict[Party | str, Headroom]:
        """Return what these may still start; who is not in it has no limits."""
        found: dict[Party | str, Headroom] = {}
        for party in parties:
            for key, limits in self._limits(party):
                if limits != NO_LIMITS and key not in found:
                    found[key] = _left(limits, self.used(key))
        return found

    def why_waiting(self, party: Party, need: Resources) -> str | None:
        """Return which limit keeps a job from starting now; None: no limit does."""
        whose = (f"project {party.project}", f"{party.owner} in project {party.project}")
        for (key, limits), name in zip(self._limits(party), whose, strict=True):
            said = reached(limits, self.used(key), need)
            if said is not None:
                return limit_reached(name, said)
        return None

    def _limits(self, party: Party) -> list[tuple[Party | str, Limits]]:
        projects, owners = self.limits_of(party.project, party.owner)
        return [(party.project, projects), (party, owners)]


def _left(limits: Limits, used: Usage) -> Headroom:
    def left(limit: int | None, taken: int) -> int | None:
        return None if limit is None else limit - taken

    return Headroom(
        tasks=left(limits.running_jobs, used.running_jobs),
        cpus_milli=left(limits.cpus_milli, used.cpus_milli),
        memory_bytes=left(limits.memory_bytes, used.memory_bytes),
        gpus=left(limits.gpus, used.gpus),
    )

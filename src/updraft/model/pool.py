"""Pools and the runners that they consist of."""

from __future__ import annotations

from dataclasses import dataclass, field
from decimal import Decimal

LOCAL_POOL = "local"
LOCAL_RUNNER = "local"
LOCAL_JURISDICTION = "local"


@dataclass(frozen=True, slots=True)
class Shape:
    """What one runner of a pool gives to tasks at most; None: all that its machine has."""

    cpus_milli: int | None = None
    memory_bytes: int | None = None
    gpus: tuple[tuple[str, int], ...] = ()
    """(kind, count); empty: all that there are."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Named capacity with one shape and one policy, in one region and jurisdiction."""

    name: str
    shape: Shape = Shape()
    labels: dict[str, str] = field(default_factory=dict)
    region: str = ""
    jurisdiction: str = LOCAL_JURISDICTION
    peer_network: str = ""
    """Runners with the same one reach each other directly; empty: they do not."""
    projects: frozenset[str] = frozenset()
    """Whose jobs it takes; empty: every project's."""
    preemptible: bool = False
    price_per_hour: Decimal | None = None
    """Of one runner."""
    time_limit_ms: int | None = None
    """The longest that a job may ask for; jobs that ask for none get it."""
    most_runners: int | None = None
    """How many runners may join; None: as many as there are tokens for."""
    draining: bool = False
    """Whether it takes no new jobs."""

    def takes(self, project: str) -> bool:
        """Whether it takes jobs of ``project``."""
        return not self.projects or project in self.projects


@dataclass(frozen=True, slots=True)
class Runner:
    """A machine's presence in a pool, as the server knows it between connections."""

    name: str
    pool: str
    remote: bool = True
    """Whether it is on another machine, or might be: it shares no files with the server."""
    serves: str | None = None
    """The one owner whose tasks it takes, if it cannot keep several owners apart."""
    draining: bool = False
    """Whether it takes no new tasks."""
    credential: str = ""
    """The id of the one that it joined with: another machine may get its name later."""


LOCAL = Runner(LOCAL_RUNNER, LOCAL_POOL, remote=False)
"""The runner that a personal server starts on its own machine."""

"""What the server counts, in plain numbers: cheap enough for the path of a launch.

All of it happens on the event loop, so nothing is locked.  ``exposition`` turns it into what
Prometheus reads when it asks; until then its library need not even be imported.  Labels are
bounded: pools, loops, error codes and route templates, never an id or a name that a client chose.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

_LAUNCH_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_WAIT_SECONDS = (0.01, 0.1, 1, 10, 60, 300, 900, 3600, 14400, 86400)
_LAG_SECONDS = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)

Direction = Literal["to_client", "to_runner"]


@dataclass(slots=True)
class Histogram:
    """Counts of what was at most each bound, the last one of all that was more."""

    bounds: tuple[float, ...]
    counts: list[int] = field(default_factory=list)
    sum: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Count one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value


@dataclass(frozen=True, slots=True)
class Live:
    """What is true at the moment, looked up when somebody asks."""

    queued: Mapping[str, int]
    """Waiting jobs by pool."""
    running: Mapping[str, int]
    """Running jobs by pool."""
    runners: Mapping[tuple[str, str], int]
    """Runners by pool and state."""
    connections: Mapping[str, int]
    """Connections by what they are."""
    commits: int
    writes: int
    """Writes that those commits carried."""


class Measures:
    """All counters of one server."""

    def __init__(self) -> None:
        self.launches: dict[str, Histogram] = {}
        self.waits: dict[str, Histogram] = {}
        self.relayed: Counter[str] = Counter()
        self.lag = Histogram(_LAG_SECONDS)
        self.passes: Counter[str] = Counter()
        self.failed_passes: Counter[str] = Counter()
        self.pass_seconds: Counter[str] = Counter()  # seconds, as floats
        self.errors: Counter[str] = Counter()
        self.requests: Counter[tuple[str, str, int]] = Counter()
        self.request_seconds: dict[tuple[str, str, int], float] = {}
        self.notified: Counter[tuple[str, str]] = Counter()

    def launched(self, pool: str, waited_seconds: float, launch_seconds: float) -> None:
        """A job's first attempt runs: it waited for its grant, and then took until it ran."""
        self.waits.setdefault(pool, Histogram(_WAIT_SECONDS)).add(max(waited_seconds, 0.0))
        self.launches.setdefault(pool, Histogram(_LAUNCH_SECONDS)).add(max(launch_seconds, 0.0))

    def relay(self, direction: Direction, count: int) -> None:
        """So many bytes of a stream passed."""
        self.relayed[direction] += count

    def lagged(self, seconds: float) -> None:
        """The event loop came back this much later than it was asked to."""
        self.lag.add(seconds)

    def passed(self, loop: str, seconds: float, *, failed: bool) -> None:
        """A loop has made a pass."""
        self.passes[loop] += 1
        self.failed_passes[loop] += failed
        self.pass_seconds[loop] += seconds  # type: ignore[assignment] # a counter of floats

    def error(self, code: str) -> None:
        """A request was refused, or failed, with this code of ours."""
        self.errors[code] += 1

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered."""
        key = (method, route, status)
        self.requests[key] += 1
        self.request_seconds[key] = self.request_seconds.get(key, 0.0) + seconds

    def notification(self, receiver: str, result: Literal["sent", "failed", "dropped"]) -> None:
        """A notification was sent, will be tried again, or never will be."""
        self.notified[receiver, result] += 1

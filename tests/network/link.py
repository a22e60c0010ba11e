"""Links between a host and the router: what they do to packets, and how to change it meanwhile."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, cast

from tests.network.servant import NetworkError, Servant

Way = Literal["up", "down"]
Direction = Literal["both", "up", "down"]
"""`up` is from the host to the router, `down` from the router to the host."""

_WAYS: dict[Direction, tuple[Way, ...]] = {"both": ("up", "down"), "up": ("up",), "down": ("down",)}


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """What one direction of a link does to packets; there and back meets it twice."""

    delay_ms: float = 0
    loss: float = 0
    """Probability that a packet is lost."""
    rate_bytes: int = 0
    """Bytes per second, headers from IP on included; 0 is no limit."""
    queue_bytes: int = 0
    """What waits at most for a wire with a rate; the rest is dropped. 0 chooses 250 ms' worth."""

    def __post_init__(self) -> None:
        if not 0 <= self.loss <= 1:
            raise ValueError(f"loss is a probability from 0 to 1, not {self.loss}")
        if min(self.delay_ms, self.rate_bytes, self.queue_bytes) < 0:
            raise ValueError(f"a delay, a rate and a queue are not negative: {self}")

    def for_shuttle(self) -> dict[str, float]:
        # A queue that holds less than a few packets would be a loss of its own.
        queue = self.queue_bytes or max(self.rate_bytes // 4, 16 * 1500)
        return {
            "delay_seconds": self.delay_ms / 1000,
            "loss": self.loss,
            "rate_bytes": self.rate_bytes,
            "queue_bytes": queue,
        }


LAN = Conditions()
FAR = Conditions(delay_ms=100, loss=0.01, rate_bytes=1_000_000)
"""200 ms there and back, 1 % loss and 1 MB/s each way."""


@dataclass(frozen=True)
class Counters:
    """What happened in one direction since the link was made."""

    packets: int
    """Passed; so with ``bytes``."""
    bytes: int
    lost: int = 0
    overflowed: int = 0
    """Dropped because the queue was full."""
    blocked: int = 0
    """Dropped because the link was cut."""


class Link(Protocol):
    """A link as tests use it. Every change holds when the call returns."""

    def set(
        self,
        *,
        direction: Direction = "both",
        delay_ms: float | None = None,
        loss: float | None = None,
        rate_bytes: int | None = None,
        queue_bytes: int | None = None,
    ) -> None:
        """Change some conditions; those that are not given stay."""

    def apply(self, conditions: Conditions, direction: Direction = "both") -> None:
        """Replace all conditions, for example by `FAR`; a cut stays."""

    def cut(self, direction: Direction = "both") -> None:
        """Let nothing pass, and lose what is under way; neither end is told."""

    def heal(self, direction: Direction = "both") -> None:
        """Let packets pass again; conditions are what they were."""

    def counters(self) -> dict[Way, Counters]:
        """What passed and what did not, each way."""


class EmulatedLink:
    """A link whose packets a process of its own carries; see shuttle.py."""

    def __init__(self, shuttle: Servant, conditions: Conditions) -> None:
        self._shuttle = shuttle
        self._conditions: dict[Way, Conditions] = {"up": LAN, "down": LAN}
        self.apply(conditions)

    def set(
        self,
        *,
        direction: Direction = "both",
        delay_ms: float | None = None,
        loss: float | None = None,
        rate_bytes: int | None = None,
        queue_bytes: int | None = None,
    ) -> None:
        given = {
            "delay_ms": delay_ms,
            "loss": loss,
            "rate_bytes": rate_bytes,
            "queue_bytes": queue_bytes,
        }
        changed = {name: value for name, value in given.items() if value is not None}
        self._apply(
            {
                way: dataclasses.replace(self._conditions[way], **changed)  # type: ignore[arg-type]
                for way in _WAYS[direction]
            }
        )

    def apply(self, conditions: Conditions, direction: Direction = "both") -> None:
        self._apply(dict.fromkeys(_WAYS[direction], conditions))

    def cut(self, direction: Direction = "both") -> None:
        self._shuttle.ask({way: {"cut": True} for way in _WAYS[direction]})

    def heal(self, direction: Direction = "both") -> None:
        self._shuttle.ask({way: {"cut": False} for way in _WAYS[direction]})

    def counters(self) -> dict[Way, Counters]:
        value = cast("dict[Way, dict[str, int]]", self._shuttle.ask({})[0])
        return {way: Counters(**counted) for way, counted in value.items()}

    def _apply(self, conditions: dict[Way, Conditions]) -> None:
        self._shuttle.ask({way: value.for_shuttle() for way, value in conditions.items()})
        self._conditions |= conditions


class Router(Protocol):
    def configure(self, program: Sequence[str], script: str = "") -> str:
        """Run `ip` or `nft` in the router, over a script, for its output."""


class PlainLink:
    """The kernel's own pair of devices: as fast as it goes, and always a LAN; it can be cut.

    A filter in the router cuts and counts; it sees what the kernel has not yet split into packets
    of a wire's size, so there are fewer of them.
    """

    def __init__(self, router: Router, number: int, device: str) -> None:
        self._router = router
        self._table = f"inet link{number}"
        # As early, and as late, as there is a hook; `down` meets what the router itself sends too.
        self._hooks = {
            "up": ("prerouting priority -400", f'iifname "{device}"'),
            "down": ("postrouting priority 400", f'oifname "{device}"'),
        }
        lines = [f"add table {self._table}"]
        for way, (hook, _) in self._hooks.items():
            lines += [f"add counter {self._table} {way}_{what}" for what in ("passed", "blocked")]
            lines.append(f"add chain {self._table} {way} {{ type filter hook {hook}; }}")
        self._nft("\n".join([*lines, *self._rules(_WAYS["both"], "passed")]))

    def set(
        self,
        *,
        direction: Direction = "both",
        delay_ms: float | None = None,
        loss: float | None = None,
        rate_bytes: int | None = None,
        queue_bytes: int | None = None,
    ) -> None:
        if any((delay_ms, loss, rate_bytes)):
            raise NetworkError("this link is the kernel's own; make its host with emulated=True")

    def apply(self, conditions: Conditions, direction: Direction = "both") -> None:
        self.set(
            delay_ms=conditions.delay_ms, loss=conditions.loss, rate_bytes=conditions.rate_bytes
        )

    def cut(self, direction: Direction = "both") -> None:
        self._nft("\n".join(self._rules(_WAYS[direction], "blocked")))

    def heal(self, direction: Direction = "both") -> None:
        self._nft("\n".join(self._rules(_WAYS[direction], "passed")))

    def counters(self) -> dict[Way, Counters]:
        asked = ["nft", "-j", "list", "counters", "table", *self._table.split()]
        listed = json.loads(self._router.configure(asked))["nftables"]
        found = {each["counter"]["name"]: each["counter"] for each in listed if "counter" in each}
        return {
            way: Counters(
                packets=found[f"{way}_passed"]["packets"],
                bytes=found[f"{way}_passed"]["bytes"],
                blocked=found[f"{way}_blocked"]["packets"],
            )
            for way in _WAYS["both"]
        }

    def _nft(self, script: str) -> None:
        self._router.configure(["nft", "-f", "-"], script)

    def _rules(self, ways: Iterable[Way], what: str) -> Iterable[str]:
        for way in ways:
            verdict = "drop" if what == "blocked" else "accept"
            match = self._hooks[way][1]
            yield f"flush chain {self._table} {way}"
            yield f"add rule {self._table} {way} {match} counter name {way}_{what} {verdict}"

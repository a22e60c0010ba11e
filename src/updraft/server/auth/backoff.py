"""Makes guessing slow: after some failures under a key, each further try has to wait longer."""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from updraft import errors

_MAX_KEYS = 10_000


@dataclass(slots=True)
class _Failures:
    count: int
    last: float


class Backoff:
    """Failures by key, in bounded memory: the ones longest ago go first.

    ``free`` tries cost nothing; then waits double from one second up to ``longest_seconds``, and
    all is forgotten after as long a time without a failure again, but at least ten minutes.
    """

    def __init__(
        self,
        free: int,
        longest_seconds: float,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self._free = free
        self._longest = longest_seconds
        self._forget_seconds = max(longest_seconds, 600.0)
        self._clock = clock
        self._max_keys = max_keys
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def check(self, key: str) -> None:
        """Raise ``errors.TooManyRequests`` while the key has to wait."""
        found = self._failures.get(key)
        if found is None or found.count < self._free:
            return
        pause = min(2.0 ** min(found.count - self._free, 30), self._longest)
        left = found.last + pause - self._clock()
        if left > 0:
            raise errors.TooManyRequests(
                f"too many failed sign-ins; try again in {math.ceil(left)} s", left
            )

    def failed(self, key: str) -> None:
        """Count a failure."""
        now = self._clock()
        found = self._failures.pop(key, None)
        if found is None or now - found.last > self._forget_seconds:
            found = _Failures(0, now)
        self._failures[key] = _Failures(found.count + 1, now)
        while len(self._failures) > self._max_keys:
            self._failures.popitem(last=False)

    def forgive(self, key: str) -> None:
        """Take back one failure: a success that says nothing of the others."""
        found = self._failures.get(key)
        if found is not None:
            found.count = max(found.count - 1, 0)

    def succeeded(self, key: str) -> None:
        """Forget the key's failures."""
        self._failures.pop(key, None)


def network_of(peer: str) -> str:
    """Return what counts as one peer: an IPv4 address, or the /64 that one host has of IPv6."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if address.version == 4:
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))

"""How often somebody may ask: so many times a second, and a few seconds' worth of it at once."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

_AT_ONCE_SECONDS = 5.0
_MAX_KEYS = 10_000


class Rates:
    """Token buckets by key, in bounded memory: whoever asked longest ago is forgotten first."""

    def __init__(
        self,
        per_second: float,
        clock: Callable[[], float] = time.monotonic,
        max_keys: int = _MAX_KEYS,
    ) -> None:
        self._per_second = per_second
        self._most = per_second * _AT_ONCE_SECONDS
        self._clock = clock
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, key: str) -> float:
        """Count a request; return 0, or after how many seconds it may come again."""
        now = self._clock()
        left, then = self._buckets.pop(key, (self._most, now))
        left = min(left + (now - then) * self._per_second, self._most)
        taken = left >= 1
        self._buckets[key] = (left - 1 if taken else left, now)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._per_second

    def put_back(self, key: str) -> None:
        """Take back one that was counted."""
        found = self._buckets.get(key)
        if found is not None:
            self._buckets[key] = (min(found[0] + 1, self._most), found[1])

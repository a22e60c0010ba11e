"""Whether the server's loops still make their passes, which are timed, logged and counted here."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from updraft.server.observe.measures import Measures

log = logging.getLogger("updraft.loops")


class Beats:
    """The loops of one server, each with the time within which it passes."""

    def __init__(self, measures: Measures, clock: Callable[[], float] = time.monotonic) -> None:
        self._measures = measures
        self._clock = clock
        self._within: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def expect(self, loop: str, within_seconds: float) -> None:
        """From now on ``loop`` makes a pass at least this often, or the server is not ready.

        One that begins again and again without a pass is late all the same.
        """
        self._within[loop] = within_seconds
        self._last.setdefault(loop, self._clock())

    def forget(self, loop: str) -> None:
        """``loop`` has ended on purpose."""
        self._within.pop(loop, None)
        self._last.pop(loop, None)

    def goes_on(self, loop: str) -> None:
        """``loop`` is in a pass that takes long, and does what it should."""
        self._last[loop] = self._clock()

    @contextmanager
    def one_pass(self, loop: str) -> Iterator[None]:
        """Run one pass; what it raises is logged and counted, and the loop goes on."""
        begun = self._clock()
        failed = False
        try:
            yield
        except Exception:
            failed = True
            log.exception("a pass of the loop %r failed", loop)
        finally:
            now = self._clock()
            self._last[loop] = now
            self._measures.passed(loop, now - begun, failed=failed)

    def late(self) -> list[str]:
        """Return the loops that have not passed in time."""
        now = self._clock()
        return [loop for loop, within in self._within.items() if now - self._last[loop] > within]

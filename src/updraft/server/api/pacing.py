"""Keeps floods of frames from taking the server's time away from everybody else.

A frame costs the same time whether it says something or not, and thousands fit into what is read at
once.  Each connection has an allowance of frames a second that no honest client uses up.  Above it,
what is left of a flood waits in one queue, and is handled a piece at a time, one connection after
another, for at most half of the time; meanwhile nothing more is read from those connections.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from updraft.wire import frames

TURN = 512
"""The work that is done in one go."""
_COSTS = {
    frames.DATA: 8,
    **dict.fromkeys((frames.SIGNAL, frames.RESIZE, frames.EOF, frames.CLOSE), 64),
}
"""What goes on to a runner costs there, too, where one process serves everybody."""
_AGENT_COSTS = {frames.DATA: 4, frames.EOF: 64}
"""What is stored costs more, and a cut makes a file."""
CLIENT_RATE = 20_000
AGENT_RATE = 50_000
"""Of work in a second, and at once.  An agent speaks for all tasks of its runner."""
_REST_SECONDS = 0.001
_SLOW_SECONDS = 0.05


def cost(kind: int, size: int) -> int:
    """Return the work of a frame: one, or what its kind costs, and one for each KiB."""
    return _COSTS.get(kind, 1) + (size >> 10)


def agent_cost(kind: int, size: int) -> int:
    """Return the work of an agent's frame; bytes of output cost next to nothing."""
    return _AGENT_COSTS.get(kind) or 1 + (size >> 10)


class Flooding(Protocol):
    """A connection with more to handle than its allowance."""

    def go_on(self) -> None:
        """Handle a turn's work."""


class Queue:
    """The connections that have used up their allowance."""

    def __init__(self, held_up: Callable[[], bool]) -> None:
        """``held_up``: whether what the frames lead to is behind, so that there be less of them."""
        self._waiting: deque[Flooding] = deque()
        self._held_up = held_up
        self._timer: asyncio.TimerHandle | None = None

    def add(self, each: Flooding) -> None:
        """Have ``each`` go on when it is its turn."""
        self._waiting.append(each)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_REST_SECONDS, self._turn)

    def _turn(self) -> None:
        loop = asyncio.get_running_loop()
        begun = loop.time()
        # The timer stays set meanwhile: who gets in line again sets no other.
        self._waiting.popleft().go_on()
        self._timer = None
        if self._waiting:
            rest = max(loop.time() - begun, _REST_SECONDS)
            if self._held_up():
                rest = max(rest, _SLOW_SECONDS)
            self._timer = loop.call_later(rest, self._turn)


class Allowance:
    """What one connection may have handled at once."""

    def __init__(self, now: float, rate: int) -> None:
        """``rate``: of work in a second, and at once."""
        self._rate = rate
        self._left = float(rate)
        self._seen = now

    def take(self, now: float) -> int:
        """Return how much may be done now, at most a turn's work; 0: it is used up."""
        self._left = min(self._left + (now - self._seen) * self._rate, self._rate)
        self._seen = now
        return min(int(self._left), TURN)

    def used(self, work: int) -> None:
        """So much was done."""
        self._left = max(self._left - work, 0)

"""An event loop whose time goes on when it is told to: what is due in an hour is due at once."""

from __future__ import annotations

import asyncio
import time


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """Timers follow a clock of their own; sockets and threads are waited for as usual."""

    def __init__(self) -> None:
        super().__init__()
        self._ahead = 0.0

    def time(self) -> float:
        """Return the virtual time (monotonic seconds)."""
        return time.monotonic() + self._ahead

    async def advance(self, seconds: float) -> None:
        """Let so much time pass, and all that becomes due happen."""
        self._ahead += seconds
        for _ in range(3):
            await asyncio.sleep(0)

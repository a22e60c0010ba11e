"""Keeps a loop going that ended by an exception outside of its passes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

log = logging.getLogger("updraft.loops")

AGAIN_SECONDS = 5.0

Loop = Callable[[], Awaitable[None]]


async def lasting(name: str, loop: Loop, again_seconds: float = AGAIN_SECONDS) -> None:
    """Run ``loop``, and run it again when it fails; return when it does."""
    while True:
        try:
            return await loop()
        except Exception:
            log.exception("the loop %r ended; it begins again in %.0f s", name, again_seconds)
        await asyncio.sleep(again_seconds)

"""Measures how late the event loop comes back: a first sign of work that does not belong there."""

from __future__ import annotations

import asyncio

from updraft.server.observe.beats import Beats
from updraft.server.observe.measures import Measures

_EVERY_SECONDS = 1.0
_WITHIN_SECONDS = 30.0

NAME = "lag"


async def watch_lag(measures: Measures, beats: Beats) -> None:
    """Ask the loop to come back after a second, again and again, and note how late it was."""
    clock = asyncio.get_running_loop().time
    beats.expect(NAME, _WITHIN_SECONDS)
    while True:
        due = clock() + _EVERY_SECONDS
        await asyncio.sleep(_EVERY_SECONDS)
        with beats.one_pass(NAME):
            measures.lagged(max(clock() - due, 0.0))

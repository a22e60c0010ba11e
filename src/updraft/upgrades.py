"""Notices that Updraft was upgraded on the disk, and makes way for the new release.

The server ends without being asked to stop, so the agent starts it again, from the new files; the
agent does the same, and is started by the keeper.  Tasks do not notice, and clients come back by
themselves.  A keeper is replaced when it has no task.  An upgrade that is still being written, or
that does not work, replaces nothing.
"""

from __future__ import annotations

import asyncio
import logging
import sys

from updraft import settings

log = logging.getLogger("updraft.upgrade")

_LOOK_SECONDS = 1.0


async def wait_for_upgrade(modules: str, own: str = "") -> None:
    """Return when another release lies on the disk, of which these ``modules`` can be imported.

    ``own``: the release that runs, if it was looked up earlier.
    """
    own = own or settings.installed_release()
    refused = own
    while True:
        await asyncio.sleep(_LOOK_SECONDS)
        found = settings.installed_release()
        if found in (own, refused):
            continue
        await asyncio.sleep(_LOOK_SECONDS)
        if settings.installed_release() != found:
            continue  # still being written
        if await _works(modules):
            log.info("upgraded from %s to %s: restarting", own, found)
            return
        log.error("the upgrade to %s does not work; going on with %s", found, own)
        refused = found


async def _works(modules: str) -> bool:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-c",
        f"import {modules}",
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    return await process.wait() == 0

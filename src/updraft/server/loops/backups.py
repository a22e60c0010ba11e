"""Makes regular backups and lets the old ones go."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from updraft import settings
from updraft.configuration import Configuration
from updraft.server.observe.beats import Beats
from updraft.server.services import backups

log = logging.getLogger("updraft.backups")

NAME = "backups"
_LOOK_SECONDS = 30.0
_LATE_SECONDS = 6 * 3600.0
"""A backup that takes this long hangs."""
_OURS = re.compile(r"updraft-\d{8}T\d{6}Z\.tar\.gz")
"""Of those that are made here: what else lies in the folder is somebody's own."""


async def keep_backups(
    folders: settings.Folders, configuration: Configuration, beats: Beats
) -> None:
    """Look now and then whether a backup is due, for ever."""
    beats.expect(NAME, _LATE_SECONDS)
    while True:
        with beats.one_pass(NAME):
            await asyncio.to_thread(back_up_if_due, folders, configuration)
        await asyncio.sleep(min(_LOOK_SECONDS, configuration.backup.every / 2))


def back_up_if_due(
    folders: settings.Folders,
    configuration: Configuration,
    clock: Callable[[], float] = time.time,
) -> str | None:
    """Make a backup when the last one is old enough, drop those beyond ``keep``; return its path.

    The files' own times tell, so a server that is restarted does not begin anew.
    """
    wanted = configuration.backup
    folder = Path(wanted.folder)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ours = [path for path in folder.iterdir() if _OURS.fullmatch(path.name)]
    there = sorted(ours, key=lambda path: path.stat().st_mtime)
    now = clock()
    if there and 0 <= now - there[-1].stat().st_mtime < wanted.every:
        return None
    stamp = datetime.fromtimestamp(now, UTC).strftime("%Y%m%dT%H%M%SZ")
    file = folder / f"updraft-{stamp}.tar.gz"
    made = backups.make(folders, configuration.server.database, file)
    log.info("backed up %d jobs to %s", made.jobs, file)
    for old in [*there, file][: -wanted.keep]:
        old.unlink(missing_ok=True)
    return str(file)

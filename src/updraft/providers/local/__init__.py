"""This machine as a pool: one runner, started in the background."""

from __future__ import annotations

import sys
from pathlib import Path

from updraft import bootstrap, configuration, settings


def launch_runner(folders: settings.Folders) -> None:
    """Start the runner if none lives: a keeper finds the lock of a living one and leaves.

    Raises ``errors.BadConfiguration``.
    """
    agent = [sys.executable, "-I", "-m", "updraft.runner.agent", "--folder", folders.runner]
    keeper = [sys.executable, "-I", "-m", "updraft.runner.keeper", "--folder", folders.runner]
    if not configuration.load(folders).runner.cgroups:
        keeper.append("--no-cgroups")
    bootstrap.spawn_background([*keeper, "--", *agent], log=folders.server_log)


def is_running(folders: settings.Folders) -> bool:
    """Whether a runner lives: its keeper holds a lock."""
    return bootstrap.is_locked(str(Path(folders.runner, "keeper.lock")))

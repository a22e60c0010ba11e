"""A joined runner on its machine: what it says of itself, its folder, its start."""

from __future__ import annotations

import os
import sys
from typing import Any

from updraft import bootstrap, settings
from updraft.runner import joined
from updraft.runner.agent.capacity import find_capacity


def machine(name: str = "") -> dict[str, Any]:
    """Return what this machine says of itself when it joins."""
    return {"name": name, "capacity": find_capacity(), "serves": _serves()}


def command(folder: str, *, cgroups: bool = True) -> list[str]:
    """Return the command line of a joined runner's keeper."""
    agent = [sys.executable, "-I", "-m", "updraft.runner.agent", "--folder", folder, "--joined"]
    keeper = [sys.executable, "-I", "-m", "updraft.runner.keeper", "--folder", folder]
    if not cgroups:
        keeper.append("--no-cgroups")
    return [*keeper, "--", *agent]


def keep(place: joined.Joined) -> str:
    """Keep a runner's place in a folder of its own; return the folder."""
    folder = os.path.join(settings.runners_folder(), place.name)
    os.makedirs(folder, mode=0o700, exist_ok=True)
    joined.save(folder, place)
    return folder


def start(folder: str, *, cgroups: bool = True) -> None:
    """Start a joined runner in the background."""
    log = os.path.join(folder, "runner.log")
    bootstrap.spawn_background(command(folder, cgroups=cgroups), log=log)


def _serves() -> str | None:
    """Return the one owner whose tasks this machine takes; None where it keeps owners apart."""
    return None

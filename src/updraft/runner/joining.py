"""A joined runner on its machine: what it says of itself, its folder, its start."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from updraft import bootstrap, errors, settings
from updraft.runner import joined
from updraft.runner.agent import owners
from updraft.runner.agent.capacity import find_capacity


def machine(name: str = "", serves: str = "") -> dict[str, Any]:
    """Return what this machine says of itself when it joins.

    ``serves``: the one owner whose tasks it is to take; without one it takes everybody's, if it can
    keep them apart, else those of whoever made its join token.
    """
    shared = not serves and owners.can_isolate() is None
    return {"name": name, "capacity": find_capacity(), "shared": shared, "serves": serves}


def command(folder: str, *, shared: bool, cgroups: bool = True) -> list[str]:
    """Return the command line of a joined runner's keeper."""
    agent = [sys.executable, "-I", "-m", "updraft.runner.agent", "--folder", folder, "--joined"]
    keeper = [sys.executable, "-I", "-m", "updraft.runner.keeper", "--folder", folder]
    if not cgroups:
        keeper.append("--no-cgroups")
    if shared:
        keeper.append("--shared")
    return [*keeper, "--", *agent]


def keep(place: joined.Joined) -> str:
    """Keep a runner's place in a folder of its own; return the folder.

    Raises ``errors.BadConfiguration`` where tasks of other users could not reach their workspaces.
    """
    folder = os.path.join(settings.runners_folder(), place.name)
    # Passed through by the users of isolated tasks, and listed by none.
    mode = 0o711 if place.shared else 0o700
    for each in (settings.runners_folder(), folder):
        os.makedirs(each, mode=mode, exist_ok=True)
        if place.shared:
            os.chmod(each, mode)
    joined.save(folder, place)
    return folder


def check_folder(*, shared: bool) -> None:
    """Refuse to join where tasks of other users could not reach their workspaces.

    Raises ``errors.BadConfiguration``.
    """
    if shared and owners.can_isolate() is None:
        owners.Owners(Path(settings.runners_folder()))


def only_folder() -> str:
    """Return the folder of this machine's joined runner.  Raises ``errors.UpdraftError``."""
    base = Path(settings.runners_folder())
    found = sorted(path.parent for path in base.glob("*/joined.json"))
    if not found:
        raise errors.NotFound("no runner has joined from here; let one: updraft runner join URL")
    if len(found) > 1:
        raise errors.BadRequest(
            f"several runners have joined from here; say which with --folder {found[0]}"
        )
    return str(found[0])


def command_of(folder: str) -> list[str]:
    """Return the command line of the keeper of what has joined from ``folder``.

    Raises ``errors.NotFound`` and ``errors.BadConfiguration``.
    """
    folder = os.path.abspath(folder)
    return command(folder, shared=joined.load(folder).shared)


def start(folder: str, *, shared: bool, cgroups: bool = True) -> None:
    """Start a joined runner in the background."""
    log = os.path.join(folder, "runner.log")
    bootstrap.spawn_background(command(folder, shared=shared, cgroups=cgroups), log=log)

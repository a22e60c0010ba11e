"""A joined runner on its machine: what it says of itself, its folder, its start."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from updraft import bootstrap, configuration, errors, settings
from updraft.configuration.schema import Runner
from updraft.runner import joined
from updraft.runner.agent import owners
from updraft.runner.agent.capacity import find_capacity
from updraft.runner.keeper.records import Records
from updraft.wire.sockets import as_standard, connect_unix, peer_pid

_STOP_SECONDS = 90.0
_LOOK_SECONDS = 0.05


def machine(name: str = "", serves: str = "") -> dict[str, Any]:
    """Return what this machine says of itself when it joins.

    ``serves``: the one owner whose tasks it is to take; without one it takes everybody's, if it can
    keep them apart and is not configured otherwise, else those of whoever made its join token.
    Raises ``errors.BadConfiguration`` where tasks of other users could not run.
    """
    configured = configuration.load(settings.folders()).runner
    shared = not serves and configured.isolation != "off" and owners.can_isolate() is None
    if shared:
        _check_owners(settings.runners_folder(), configured)
    said = {"name": name, "capacity": find_capacity(), "shared": shared, "serves": serves}
    if (
        before := _credentials()
    ):  # an older server knows no such field, and need not see it from a fresh machine
        said["joined_as"] = before
    return said


def command(folder: str, *, shared: bool) -> list[str]:
    """Return the command line of a joined runner's keeper, as this machine's configuration wants.

    Raises ``errors.BadConfiguration``.
    """
    configured = configuration.load(settings.folders()).runner
    agent = [sys.executable, "-I", "-m", "updraft.runner.agent", "--folder", folder, "--joined"]
    keeper = [sys.executable, "-I", "-m", "updraft.runner.keeper", "--folder", folder]
    if not configured.cgroups:
        keeper.append("--no-cgroups")
    if shared:
        if configured.isolation == "off":
            raise errors.BadConfiguration(
                'runner.isolation is "off", but this runner has joined to take everybody\'s tasks; '
                'set it to "auto", or remove the runner on the server and join again'
            )
        _check_owners(folder, configured)
        # Not looked up by the agent: one that starts anew goes on as its predecessor did.
        agent += ["--owners", configured.users, *map(str, configured.uid_range)]
        keeper.append("--shared")
    return [*keeper, "--", *agent]


def keep(place: joined.Joined) -> str:
    """Keep a runner's place in a folder of its own; return the folder."""
    folder = os.path.join(settings.runners_folder(), place.name)
    # Passed through by the users of isolated tasks, and listed by none.
    mode = 0o711 if place.shared else 0o700
    own = Path(folder)
    missing = [each for each in own.parents if not each.exists()]
    for each in (*reversed(missing), own.parent, own):
        each.mkdir(mode=mode, exist_ok=True)
        if place.shared:
            each.chmod(mode)  # whatever the umask is
    joined.save(folder, place)
    return folder


def _check_owners(folder: str, configured: Runner) -> None:
    """Refuse to start where the owners of tasks could have no users or reach no workspaces.

    Raises ``errors.BadConfiguration``.
    """
    owners.check_range(*configured.uid_range)
    owners.Owners(Path(folder), owners.Policy(configured.users), *configured.uid_range)


def folder_of(url: str, name: str) -> str:
    """Return the folder of the runner that has joined ``url`` from here; empty where none has.

    ``name``: its name, else the only one of that server's.
    """
    found = [str(path.parent) for path in Path(settings.runners_folder()).glob("*/joined.json")]
    of_url = [(each, joined.load(each)) for each in found]
    fit = [each for each, place in of_url if place.url == url and (not name or place.name == name)]
    return fit[0] if len(fit) == 1 else ""


def pin(folder: str, fingerprint: str) -> None:
    """Know the server of a joined runner by another certificate from now on, if one is given."""
    if fingerprint:
        joined.save(folder, dataclasses.replace(joined.load(folder), fingerprint=fingerprint))


def only_folder() -> str:
    """Return the folder of this machine's joined runner.  Raises ``errors.UpdraftError``."""
    found = _folders()
    if not found:
        raise errors.NotFound("no runner has joined from here; let one: updraft runner join URL")
    if len(found) > 1:
        raise errors.BadRequest(
            f"several runners have joined from here; say which with --folder {found[0]}"
        )
    return found[0]


def _credentials() -> list[str]:
    """Return the ids of the credentials that this machine has as a runner."""
    found = []
    for folder in _folders():
        with contextlib.suppress(errors.UpdraftError):  # what cannot be read says to join again
            found.append(joined.load(folder).credential_id)
    return found


def _folders() -> list[str]:
    """Return the folders of the runners that have joined from here."""
    base = Path(settings.runners_folder())
    return sorted(str(path.parent) for path in base.glob("*/joined.json"))


def pid(folder: str) -> int | None:
    """Return the process id of the keeper of what has joined from ``folder``; None: it has none."""
    if not bootstrap.is_locked(os.path.join(folder, "keeper.lock")):
        return None
    try:
        with as_standard(connect_unix(os.path.join(folder, "keeper.sock"))) as peer:
            return peer_pid(peer)
    except OSError:  # it is about to listen, or has ended
        return None


def tasks(folder: str) -> int:
    """Return how many tasks the runner in ``folder`` has."""
    records = Records(os.path.join(folder, "attempts")).load()
    return sum(end is None for _, end in records.values())


def stop(folder: str) -> None:
    """Ask the keeper of a runner to end, with all that it runs, and wait until it has.

    Raises ``errors.Unavailable`` when it does not.
    """
    lock = os.path.join(folder, "keeper.lock")
    until = time.monotonic() + _STOP_SECONDS
    while bootstrap.is_locked(lock):
        keeper = pid(folder)
        if keeper is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper, signal.SIGTERM)
        if time.monotonic() > until:
            raise errors.Unavailable(
                f"the runner was told to stop but has not ended; see {folder}/runner.log"
            )
        time.sleep(_LOOK_SECONDS)


def command_of(folder: str) -> list[str]:
    """Return the command line of the keeper of what has joined from ``folder``.

    Raises ``errors.NotFound`` and ``errors.BadConfiguration``.
    """
    folder = os.path.abspath(folder)
    if (keeper := pid(folder)) is not None:
        raise errors.Conflict(
            f"runner {joined.load(folder).name} runs already (pid {keeper}); end it: "
            f"updraft runner stop --folder {folder}"
        )
    return command(folder, shared=joined.load(folder).shared)


def start(folder: str, *, shared: bool) -> None:
    """Start a joined runner in the background.  Raises ``errors.BadConfiguration``."""
    log = os.path.join(folder, "runner.log")
    bootstrap.spawn_background(command(folder, shared=shared), log=log)

"""``updraft runner stop``."""

from __future__ import annotations

from pathlib import Path

import click

from updraft import errors
from updraft.cli.output import speech
from updraft.runner import joined, joining, systemd


@click.command
@click.option("--folder", metavar="DIR", help="The runner's; needed where several have joined.")
@click.option("--cancel", is_flag=True, help="End the tasks that it has.")
def command(folder: str | None, cancel: bool) -> None:
    """Stop a runner that has joined from this machine, where systemd does not run it.

    Refused while it has tasks: updraft runner drain, on the server, gives it no new ones.  With
    --cancel they are ended, and tried again elsewhere if they have retries left.  It stays joined:
    updraft runner run starts it again.
    """
    folder = str(Path(folder or joining.only_folder()).absolute())
    name = joined.load(folder).name
    if unit := systemd.unit_that_runs(folder):
        raise errors.Conflict(f"systemd runs runner {name}; stop it: systemctl stop {unit}")
    if joining.pid(folder) is None:
        speech.say(f"runner {name} is not running")
        return
    if not cancel and (tasks := joining.tasks(folder)):
        raise errors.Conflict(
            f"runner {name} has {tasks} task{'' if tasks == 1 else 's'}; let them end (on the "
            f"server: updraft runner drain {name}), or end them with --cancel"
        )
    joining.stop(folder)
    speech.say(f"runner {name} was stopped; to start it again: updraft runner run")

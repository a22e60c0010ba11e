"""``updraft runner remove``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="NAME")
@click.option("--force", is_flag=True, help="Give up the tasks that it has.")
def command(name: str, force: bool) -> None:
    """Forget a runner: what its machine holds to prove itself is worth nothing from now on.

    Refused while it has tasks.  With --force they are given up, and tried again elsewhere if they
    have retries left.
    """
    with options.client() as client:
        client.fleet.remove_runner(name, force=force)
    speech.say(f"runner {name} was removed")

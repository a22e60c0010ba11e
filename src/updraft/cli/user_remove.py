"""``updraft user remove``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Remove a user for good.

    Their jobs stay, and their name is never given to somebody else.  To keep them out for a while:
    updraft user disable.
    """
    with options.client() as client:
        client.access.remove_user(name)
    speech.say(f"user {name} was removed")

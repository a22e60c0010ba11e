"""``updraft pool delete``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import speech


@click.command
@click.argument("name", metavar="NAME")
def command(name: str) -> None:
    """Forget a pool, and the tokens to join it; refused while it has runners or jobs."""
    with options.client() as client:
        client.fleet.delete_pool(name)
    speech.say(f"pool {name} was deleted")

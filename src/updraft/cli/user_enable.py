"""``updraft user enable``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Let a user in again."""
    with options.client() as client:
        user = client.access.set_disabled(name, False)
    done.show(user, f"user {user.name} may sign in again", as_json=as_json)

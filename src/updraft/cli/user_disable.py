"""``updraft user disable``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Keep a user out, at once: no session and no token of theirs works.  Their jobs go on."""
    with options.client() as client:
        user = client.access.set_disabled(name, True)
    done.show(user, f"user {user.name} is kept out from now on", as_json=as_json)

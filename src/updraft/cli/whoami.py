"""``updraft whoami``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, table, text


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """Show who you are to the server, and in which project."""
    with options.client() as client:
        me = client.access.me()
    if as_json:
        json.show(me)
        return
    pairs = [
        ("name", me.name),
        ("project", "-" if me.project is None else f"{me.project} ({me.role})"),
        ("scope", str(me.scope)),
        ("server admin", text.yes_no(me.server_admin)),
    ]
    pairs += [("in", f"{each.project} ({each.role})") for each in me.projects]
    table.show_pairs(pairs)

"""``updraft user show``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, table, text


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Show a user and their projects."""
    with options.client() as client:
        user = client.access.user(name)
    if as_json:
        json.show(user)
        return
    pairs = [
        ("name", user.name),
        ("display", text.printable(user.display) or "-"),
        ("email", text.printable(user.email) or "-"),
        ("server admin", text.yes_no(user.server_admin)),
        ("disabled", text.yes_no(user.disabled)),
        ("signs in by", text.joined(("password", user.password), ("OpenID Connect", user.oidc))),
        ("created", text.clock(user.created)),
    ]
    pairs += [("project", f"{each.project} ({each.role})") for each in user.projects]
    table.show_pairs(pairs)

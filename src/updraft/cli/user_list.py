"""``updraft user list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, table, text

_HEADERS = ("NAME", "DISPLAY", "EMAIL", "ADMIN", "SIGNS IN BY", "DISABLED")


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """List users."""
    with options.client() as client:
        users = client.access.users()
    if as_json:
        json.show(users)
        return
    rows = [
        (
            user.name,
            text.printable(user.display) or "-",
            text.printable(user.email) or "-",
            text.yes_no(user.server_admin),
            text.joined(("password", user.password), ("OpenID Connect", user.oidc)),
            text.yes_no(user.disabled),
        )
        for user in users
    ]
    table.show(_HEADERS, rows)

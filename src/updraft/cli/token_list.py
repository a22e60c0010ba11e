"""``updraft token list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text

_HEADERS = ("ID", "KIND", "NAME", "SCOPE", "PROJECT", "CREATED", "EXPIRES", "LAST USED")


@click.command
@click.option("--user", metavar="USER", help="This user's: for server admins.")
@options.as_json
def command(user: str | None, as_json: bool) -> None:
    """List tokens and sessions that are good, and when each was last used."""
    with options.client() as client:
        tokens = client.access.tokens(user)
    if as_json:
        json.show(tokens)
    elif not tokens:
        speech.say("there is no token and no session")
    else:
        rows = [
            (
                token.id,
                token.kind,
                text.printable(token.name) or "-",
                str(token.scope),
                token.project or "-",
                text.clock(token.created),
                text.clock(token.expires),
                text.clock(token.last_used),
            )
            for token in tokens
        ]
        table.show(_HEADERS, rows)

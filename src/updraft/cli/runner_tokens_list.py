"""``updraft runner tokens list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import json, speech, table, text

_HEADERS = ("ID", "POOL", "MADE BY", "CREATED", "EXPIRES", "USED")


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """List the join tokens that are of use, newest first."""
    with options.client() as client:
        tokens = client.fleet.join_tokens()
    if as_json:
        json.show(tokens)
    elif not tokens:
        speech.say("there is no join token; make one: updraft runner token POOL")
    else:
        rows = [
            (
                token.id,
                token.pool,
                text.printable(token.created_by),
                text.clock(token.created),
                text.clock(token.expires),
                str(token.used) if token.uses is None else f"{token.used} of {token.uses}",
            )
            for token in tokens
        ]
        table.show(_HEADERS, rows)

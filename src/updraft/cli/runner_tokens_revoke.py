"""``updraft runner tokens revoke``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import speech


@click.command
@click.argument("token_id", metavar="ID")
def command(token_id: str) -> None:
    """Let no machine join with a token any more; what has joined with it stays."""
    with options.client() as client:
        client.fleet.revoke_join_token(token_id)
    speech.say(f"nothing joins with token {token_id} any more")

"""``updraft token revoke``."""

from __future__ import annotations

import click

from updraft import errors
from updraft.cli import exit_codes, options
from updraft.cli.output import speech


@click.command
@click.argument("token_ids", metavar="ID…", nargs=-1, required=True)
def command(token_ids: tuple[str, ...]) -> int:
    """Revoke tokens, and end sessions, at once."""
    code = exit_codes.OK
    with options.client() as client:
        for token_id in token_ids:
            try:
                client.access.revoke_token(token_id)
            except (errors.NotFound, errors.NotAllowed) as error:
                speech.say(error.message)  # the others are revoked all the same
                code = exit_codes.FAILED_REQUEST
            else:
                speech.say(f"token {token_id} is revoked")
    return code

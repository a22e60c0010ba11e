"""``updraft token create``."""

from __future__ import annotations

import sys

import click

from updraft.cli import options
from updraft.cli.output import json, speech, text
from updraft.model.access import Scope


def _expiry(value: str) -> float | None:
    return None if value == "never" else options.duration(value)


@click.command
@click.argument("name", metavar="NAME")
@click.option(
    "--scope",
    default=str(Scope.RUN),
    show_default=True,
    metavar="SCOPE",
    type=click.Choice([str(scope) for scope in Scope]),
    help="What it is good for at most: read, run (and read), or admin (all that you may).",
)
@click.option(
    "--expires",
    default="90d",
    show_default=True,
    metavar="TIME",
    type=_expiry,
    help="After how long it is no longer good, or never.",
)
@click.option("--project", metavar="PROJECT", help="Make it good for this project only.")
@click.option("--user", metavar="USER", help="Make it for this user: for server admins.")
@options.as_json
def command(
    name: str,
    scope: str,
    expires: float | None,
    project: str | None,
    user: str | None,
    as_json: bool,
) -> None:
    """Make a token called NAME and print it: it is shown this once."""
    from updraft.wire.access_schemas import TokenRequest  # noqa: PLC0415

    request = TokenRequest(
        name=name, scope=Scope(scope), expires_seconds=expires, project=project, user=user
    )
    with options.client() as client:
        made = client.access.create_token(request)
    if as_json:
        json.show(made)
        return
    sys.stdout.write(f"{made.token}\n")
    until = "never expires" if made.expires is None else f"expires {text.clock(made.expires)}"
    speech.say(f"token {made.id} {until}; it is shown this once")

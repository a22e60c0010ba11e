"""``updraft runner token``."""

from __future__ import annotations

import sys

import click

from updraft import errors
from updraft.cli import options
from updraft.cli.output import json
from updraft.quantities import parse_duration


@click.command
@click.argument("pool")
@click.option("--expires", default="1d", metavar="TIME", help="How long it is of use; 1d.")
@click.option("--uses", type=click.IntRange(min=1), help="For so many machines at most.")
@click.option("--line", is_flag=True, help="Print a line for the machine's shell.")
@options.as_json
def command(pool: str, expires: str, uses: int | None, line: bool, as_json: bool) -> None:
    """Make a token with which machines join POOL, and print it: it is shown only here.

    With --line, print what makes a machine a runner where Updraft is not installed: it needs
    Python 3.11 and curl, and gets the rest from this server (updraft admin wheelhouse).  Of a
    certificate that no authority here vouches for, the line names the key that curl has to meet.
    The token is passed in the environment: what is in a command's arguments, all users of a
    machine can read.
    """
    with options.client() as client:
        made = client.fleet.make_join_token(pool, parse_duration(expires), uses)
    if as_json:
        json.show(made)
        return
    if line and not made.line:
        raise errors.Conflict(
            "no other machine reaches this server, so there is no line; serve it with --listen"
        )
    sys.stdout.write((made.line if line else made.token) + "\n")

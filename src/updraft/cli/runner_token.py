"""``updraft runner token``."""

from __future__ import annotations

import sys

import click

from updraft.cli import options
from updraft.quantities import parse_duration


@click.command
@click.argument("pool")
@click.option("--expires", default="1d", metavar="TIME", help="How long it is of use; 1d.")
@click.option("--uses", type=click.IntRange(min=1), help="For so many machines at most.")
def command(pool: str, expires: str, uses: int | None) -> None:
    """Make a token with which machines join POOL, and print it: it is shown only here."""
    with options.client() as client:
        token = client.fleet.make_join_token(pool, parse_duration(expires), uses)
    sys.stdout.write(token + "\n")

"""``updraft help``."""

from __future__ import annotations

import sys

import click

from updraft.cli import exit_codes

_TOPICS = {"exit-codes": exit_codes.text}


@click.command
@click.argument("topic", metavar="TOPIC", required=False, type=click.Choice(list(_TOPICS)))
@click.pass_context
def command(context: click.Context, topic: str | None) -> None:
    """Explain TOPIC: exit-codes.  Without one, show what commands there are."""
    if topic is None:
        parent = context.parent
        sys.stdout.write((parent or context).get_help() + "\n")
        return
    sys.stdout.write(_TOPICS[topic]() + "\n")

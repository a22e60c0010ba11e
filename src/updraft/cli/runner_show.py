"""``updraft runner show``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import fleet, json, table


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Show a runner: what it has, and what of it is free."""
    with options.client() as client:
        runner = client.fleet.runner(name)
    if as_json:
        json.show(runner)
    else:
        table.show_pairs(fleet.runner_pairs(runner))

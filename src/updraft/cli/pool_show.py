"""``updraft pool show``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import fleet, json, table


@click.command
@click.argument("name", metavar="NAME")
@options.project
@options.as_json
def command(name: str, project: str | None, as_json: bool) -> None:
    """Show a pool: what it has, what of it is free, who waits, and its settings."""
    with options.client(project=project) as client:
        pool = client.fleet.pool(name)
    if as_json:
        json.show(pool)
    else:
        table.show_pairs(fleet.pool_pairs(pool))

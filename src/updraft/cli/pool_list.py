"""``updraft pool list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import fleet, json, speech, table


@click.command
@options.project
@options.as_json
def command(project: str | None, as_json: bool) -> None:
    """List the pools that your project may use: what is free in them, and why jobs wait.

    RUNNING and QUEUED count your project's jobs; a server admin sees all pools and counts all.
    """
    with options.client(project=project) as client:
        pools = client.fleet.pools()
    if as_json:
        json.show(pools)
    elif not pools:
        speech.say("there is no pool that you may use; an admin makes one: updraft pool create")
    else:
        table.show(fleet.POOL_HEADERS, [fleet.pool_row(pool) for pool in pools])

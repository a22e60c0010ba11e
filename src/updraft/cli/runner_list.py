"""``updraft runner list``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import fleet, json, speech, table


@click.command
@options.as_json
def command(as_json: bool) -> None:
    """List the runners of all pools: for server admins."""
    with options.client() as client:
        runners = client.fleet.runners()
    if as_json:
        json.show(runners)
    elif not runners:
        speech.say("no machine has joined yet; let one: updraft runner token POOL")
    else:
        table.show(fleet.RUNNER_HEADERS, [fleet.runner_row(runner) for runner in runners])

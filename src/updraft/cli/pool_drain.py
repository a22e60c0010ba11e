"""``updraft pool drain``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@click.option("--undo", is_flag=True, help="Take jobs again.")
@options.as_json
def command(name: str, undo: bool, as_json: bool) -> None:
    """Take no new jobs into a pool; those that it has are run to their end."""
    with options.client() as client:
        pool = client.fleet.drain_pool(name, undo=undo)
    less = f"takes no new jobs; {pool.running} run and {pool.queued} wait in it"
    done.show(pool, f"pool {name} {'takes jobs again' if undo else less}", as_json=as_json)

"""``updraft runner drain``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@click.option("--undo", is_flag=True, help="Give it tasks again.")
@options.as_json
def command(name: str, undo: bool, as_json: bool) -> None:
    """Give a runner no new tasks; those that it has are run to their end."""
    with options.client() as client:
        runner = client.fleet.drain_runner(name, undo=undo)
    less = f"gets no new tasks; it has {runner.tasks} now"
    done.show(runner, f"runner {name} {'gets tasks again' if undo else less}", as_json=as_json)

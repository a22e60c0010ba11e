"""``updraft project archive``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("project", metavar="PROJECT")
@click.option("--undo", is_flag=True, help="Let it take jobs again.")
@options.as_json
def command(project: str, undo: bool, as_json: bool) -> None:
    """Let a project take no more jobs; what there is can be looked at as before."""
    with options.client() as client:
        found = client.access.set_archived(project, not undo)
    line = f"project {found.name} takes {'jobs again' if undo else 'no more jobs'}"
    done.show(found, line, as_json=as_json)

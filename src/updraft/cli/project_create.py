"""``updraft project create``."""

from __future__ import annotations

import click

from updraft.cli import options
from updraft.cli.output import done


@click.command
@click.argument("name", metavar="NAME")
@options.as_json
def command(name: str, as_json: bool) -> None:
    """Make a project; you are its first admin.  For server admins."""
    with options.client() as client:
        project = client.access.create_project(name)
    done.show(project, f"project {project.name} was made", as_json=as_json)
